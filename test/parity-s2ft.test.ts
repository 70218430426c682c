/**
 * S²FT from end to end: the permuted dense checkpoint that the paper's code saves (tools/oracle/s2ft_goldens.py) is imported,
 * the adapter is served on the base, and its logits are those of the checkpoint itself, in one batch with rows of the base,
 * whose bits do not change.
 */
import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { importS2ft, type ImportReport } from '../src/adapters/convert/s2ft/import-s2ft.js';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import {
  assertSameBits,
  compileFolder,
  forcedLogits,
  loadTermSet,
  openTestEngine,
  testedIsas,
} from './support/engine.js';
import { GOLDENS, LOGIT_TOLERANCE } from './support/goldens.js';
import { kindRowError, readGolden } from './support/kind-goldens.js';
import { TestSequence } from './support/plan.js';

interface Chosen {
  readonly v: number;
  readonly o: number;
  readonly up: number;
  readonly down: number;
}

const folderOf = (name: string): string => path.join(GOLDENS, 's2ft', name);
/** Folders of the base's weights, of a base that can be served, and the heads and channels that were trained. */
const CASES = [
  { name: 'llama-gqa', base: path.join(GOLDENS, 'models', 'llama-gqa'), note: undefined },
  { name: 'mha', base: path.join(folderOf('mha'), 'base'), note: /96 vocabulary rows, the base 90: the 6 appended/ },
] as const;

for (const { name, base, note } of CASES) {
  describe(`the S2FT checkpoint ${name}`, () => {
    let root = '';
    let report: ImportReport;
    const golden = readGolden(folderOf(name));
    before(async () => {
      root = await mkdtemp(path.join(tmpdir(), 'manyfold-parity-s2ft-'));
      report = await importS2ft({
        base,
        checkpoint: path.join(folderOf(name), 'checkpoint'),
        out: path.join(root, 'adapter'),
        dtype: 'auto',
      });
    });
    after(() => rm(root, { recursive: true, force: true }));

    test('every trained head and channel is found, and every weight is exact', () => {
      const { layers } = JSON.parse(readFileSync(path.join(folderOf(name), 'golden.json'), 'utf8')) as {
        layers: Chosen[];
      };
      assert.deepEqual(
        report.layers.map(({ heads, channels }) => ({ ...heads, up: channels.up, down: channels.down })),
        layers,
      );
      assert.equal(report.inexact, 0);
      assert.ok(report.layers.every(({ permuted, channels }) => permuted.ffn || channels.down + channels.up === 0));
      if (note === undefined) assert.deepEqual(report.notes, []);
      else assert.match(report.notes.join(), note);
    });

    for (const isa of testedIsas()) {
      test(`served, it answers as the checkpoint does, ${isa}`, async () => {
        // The base of the paper's shape comes without a tokenizer, which serving asks for and logits do not.
        const folder = path.join(root, `base-${isa}`);
        const served = name === 'llama-gqa' ? base : await withTokenizer(base, folder);
        const engine = await openTestEngine(await openCheckpoint(served), { isa });
        const alone = await forcedLogits(engine, [new TestSequence(golden.prompt)]);
        const terms = await loadTermSet(engine.engine, await compileFolder(engine, path.join(root, 'adapter')));
        const sequences = [new TestSequence(golden.prompt, { terms }), new TestSequence(golden.prompt)];
        const [adapted = [], plain = []] = await forcedLogits(engine, sequences, { chunk: 4 });
        assert.equal(adapted.length, golden.rows.length);
        golden.rows.forEach((row, position) => {
          const error = kindRowError(adapted[position] ?? new Float32Array(0), row, golden.stride);
          assert.ok(error <= LOGIT_TOLERANCE, `position ${position} is off by ${error.toExponential(2)} of max|logit|`);
        });
        plain.forEach((row, i) => {
          assertSameBits(row, alone[0]?.[i] ?? new Float32Array(0), `the base, position ${i}`);
        });
        engine.engine.dispose();
      });
    }
  });
}

async function withTokenizer(base: string, folder: string): Promise<string> {
  await mkdir(folder);
  for (const file of ['config.json', 'model.safetensors'])
    await copyFile(path.join(base, file), path.join(folder, file));
  for (const file of ['tokenizer.json', 'tokenizer_config.json']) {
    await copyFile(path.join(GOLDENS, 'models', 'llama-gqa', file), path.join(folder, file));
  }
  return folder;
}
