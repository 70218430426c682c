/** Methods that are known and not served: each is refused by its own reason, whatever the file holds. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { f32, ImporterBench } from '../testing/importer-bench.js';
import { IMPORTERS } from './index.js';
import { REFUSED_METHODS } from './refused-methods.js';

const bench = new ImporterBench();
after(() => bench.close());

/** What each message says, and its mend. */
const MESSAGES: Readonly<Record<string, RegExp>> = {
  FOURIERFT: /places that a seed of torch draws again.*merge_and_unload\(\)/,
  WAVEFT: /places that a seed of torch draws again.*merge_and_unload\(\)/,
  RANDLORA: /sum of random pairs of full rank.*merge_and_unload\(\)/,
  PSOFT: /singular vectors that it rotates are not in the file.*merge_and_unload\(\)/,
  ADAMSS: /which subspace is not in the file.*merge_and_unload\(\)/,
  HIRA: /multiplies every entry of the base weight.*merge_and_unload\(\)/,
  PEANUT: /a small network makes of the weight itself.*merge_and_unload\(\)/,
  FROD: /between rotations of its full width.*merge_and_unload\(\)/,
  OSF: /all but a few singular vectors of a weight.*merge_and_unload\(\)/,
  LILY: /averages over all tokens of a batch.*for example a LoRA/,
  XLORA: /every token is computed twice.*Serve the LoRAs that it blends one by one/,
  SHADOW: /a second network beside the base.*for example a LoRA/,
};

for (const { type } of REFUSED_METHODS) {
  test(`${type} is refused with its reason and mend`, async () => {
    const message = await bench.refusal({ peft_type: type, r: 4 }, { any: f32([1], [1]) });
    assert.match(message, new RegExp(`^adapter_config.json: peft_type is "${type}", which cannot be served: `));
    assert.match(message, MESSAGES[type] ?? assert.fail(`no message of ${type} is known`));
    assert.ok(message.endsWith('.'));
  });
}

test('no method is both served and refused', () => {
  for (const { type } of REFUSED_METHODS) {
    assert.equal(IMPORTERS.filter(({ matches }) => matches({ peft_type: type }, new Set())).length, 1, type);
  }
});
