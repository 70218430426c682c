/** Every input that was kept from fuzzing, run again: earlier finds stay mended. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';

import { closeBases } from './fuzz/adapter-rules.js';
import { corpora, readCorpus } from './fuzz/corpus.js';
import { judge } from './fuzz/harness.js';
import { TARGETS } from './fuzz/targets.js';

const MAX_BYTES = 1_000_000;

after(closeBases);

for (const name of corpora()) {
  test(`the corpus of ${name} holds`, async () => {
    const target = TARGETS.find((candidate) => candidate.name === name) ?? assert.fail('no target has this name');
    for (const { file, input } of readCorpus(name)) {
      const { broken } = await judge(target, input);
      assert.equal(broken, undefined, file);
    }
  });
}

test('there are corpora, and all of them together are small', () => {
  assert.ok(corpora().length > 50);
  const files = corpora().flatMap((name) => readCorpus(name).map(({ file }) => file));
  const bytes = files.reduce((sum, file) => sum + readFileSync(file).length, 0);
  assert.ok(bytes < MAX_BYTES, `${bytes} bytes`);
});
