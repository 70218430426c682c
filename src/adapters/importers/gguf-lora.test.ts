import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, test } from 'node:test';

import type { ModelConfig } from '../../core/model-config.js';
import type { LowRankTerm } from '../../core/terms.js';
import type { CompiledAdapter } from '../importer.js';
import { dense } from '../testing/base.js';
import { ggufBytes } from '../testing/gguf-file.js';
import type { GgufTestTensor, GgufTestValue } from '../testing/gguf-file.js';
import { ImporterBench, refusalOf } from '../testing/importer-bench.js';
import { sixteenths } from '../testing/matrices.js';
import { TINY_MODEL } from '../testing/peft-folder.js';
import { toFloats } from '../tensor-values.js';

const bench = new ImporterBench();
after(() => bench.close());

const HEADER = {
  'general.architecture': 'llama',
  'general.type': 'adapter',
  'adapter.type': 'lora',
  'adapter.lora.alpha': 6,
};
const Q = 'blk.0.attn_q.weight';
const A = { shape: [2, 8], values: sixteenths(1, 16) };
/** Row i holds 2i and 2i + 1. */
const B = { shape: [8, 2], values: Array.from({ length: 16 }, (_, i) => i) };
const PAIR = { [`${Q}.lora_a`]: A, [`${Q}.lora_b`]: B };

type Tensors = Record<string, GgufTestTensor>;

async function compile(
  tensors: Tensors,
  header: object = {},
  model: ModelConfig = TINY_MODEL,
): Promise<CompiledAdapter> {
  const directory = await bench.folder();
  await mkdir(directory, { recursive: true });
  const metadata = { ...HEADER, ...header } as Record<string, GgufTestValue>;
  await writeFile(path.join(directory, 'my-lora.gguf'), ggufBytes(metadata, tensors));
  return bench.compileFolder(directory, { model });
}

function lowRank({ terms }: CompiledAdapter): LowRankTerm[] {
  return terms.terms.map((term) => (term.kind === 'lowrank' ? term : assert.fail(term.kind)));
}

const rowStarts = ({ b }: LowRankTerm): number[] => [...toFloats(dense(b))].filter((_, i) => i % 2 === 0);

test("rows of Llama's q and k are put back into Hugging Face's order, those of others stay", async () => {
  const [term] = lowRank(await compile(PAIR));
  assert.deepEqual([term?.site, term?.scale], [{ layer: 0, site: 'q' }, 3]);
  // Two heads of four rows: 0 1 2 3 is the pair order 0 2 | 1 3.
  assert.deepEqual(term && rowStarts(term), [0, 4, 2, 6, 8, 12, 10, 14]);
  const qwen = { ...TINY_MODEL, family: 'qwen3' as const };
  const [other] = lowRank(await compile(PAIR, { 'general.architecture': 'qwen3' }, qwen));
  assert.deepEqual(other && rowStarts(other), [0, 2, 4, 6, 8, 10, 12, 14]);
  const v = { 'blk.1.attn_output.weight.lora_a': A, 'blk.1.attn_output.weight.lora_b': B };
  const [plain] = lowRank(await compile(v));
  assert.deepEqual(plain && [plain.site, rowStarts(plain)], [{ layer: 1, site: 'o' }, [0, 2, 4, 6, 8, 10, 12, 14]]);
});

test('the embedding, a scale without alpha, an activated LoRA, and a file by its own path', async () => {
  const table = {
    'token_embd.weight.lora_a': { shape: [20, 2], values: sixteenths(2, 40) },
    'token_embd.weight.lora_b': B,
  };
  const compiled = await compile(table, { 'adapter.lora.alpha': 0, 'adapter.alora.invocation_tokens': [4, 5] });
  const [term] = lowRank(compiled);
  assert.deepEqual([term?.site.site, term?.a.shape, term?.scale], ['embedding', [2, 20], 1]);
  assert.equal(toFloats(dense(term?.a))[1], sixteenths(2, 40)[2]);
  assert.deepEqual(compiled.terms.invocation, [4, 5]);
  const file = `${await bench.folder()}.gguf`;
  await writeFile(file, ggufBytes(HEADER, PAIR));
  assert.equal(lowRank(await bench.compileFolder(file)).length, 1);
});

test('what does not fit is refused', async () => {
  const cases: [Tensors, object, RegExp][] = [
    [PAIR, { 'general.type': 'model' }, /general\.type is "model".*A whole model is served with --model/],
    [PAIR, { 'adapter.type': 'control_vector' }, /adapter\.type "control_vector", expected "adapter" and "lora"/],
    [PAIR, { 'general.architecture': 'qwen3' }, /general\.architecture is "qwen3", the base is llama/],
    [PAIR, { 'adapter.lora.alpha': 'x' }, /adapter\.lora\.alpha is "x", expected a number/],
    [PAIR, { 'adapter.other': 1 }, /"adapter\.other" is 1, a field that this server does not know/],
    [PAIR, { 'adapter.alora.invocation_tokens': [99] }, /invocation_tokens is \[99\], expected token ids below 20/],
    [PAIR, { 'adapter.alora.invocation_tokens': 1.5 }, /invocation_tokens is 1\.5, expected token ids below 20/],
    [{ [`${Q}.lora_a`]: A }, {}, /lora_a" has no B beside it/],
    [
      { ...PAIR, 'blk.0.attn_norm.weight': { shape: [8], values: sixteenths(1, 8) } },
      {},
      /the GGUF file: .*is no tensor of a LoRA/,
    ],
    [
      { ...PAIR, 'blk.9.attn_q.weight.lora_a': A, 'blk.9.attn_q.weight.lora_b': B },
      {},
      /which the base .* does not have/,
    ],
    [
      { ...PAIR, [`${Q}.lora_a`]: { shape: [2, 4], values: sixteenths(1, 8) } },
      {},
      /has shape \[2, 4\], expected \[r, 8\]/,
    ],
    [{}, {}, /holds no tensors/],
  ];
  for (const [tensors, header, expected] of cases) {
    assert.match(await refusalOf(() => compile(tensors, header)), expected);
  }
  const quantised = { [`${Q}.lora_a`]: { shape: [1, 32], values: new Array<number>(9).fill(0), type: 8 } };
  assert.match(
    await refusalOf(() => compile(quantised)),
    /my-lora\.gguf: .*is q8_0, expected f32, f16 or bf16.*--outtype f16/,
  );
  const two = await bench.folder();
  await mkdir(two, { recursive: true });
  for (const name of ['a.gguf', 'b.gguf']) await writeFile(path.join(two, name), ggufBytes(HEADER, PAIR));
  assert.match(await refusalOf(() => bench.compileFolder(two)), /holds 2 GGUF files, expected one/);
  const broken = `${await bench.folder()}.gguf`;
  await writeFile(broken, ggufBytes(HEADER, PAIR).subarray(0, 60));
  assert.match(await refusalOf(() => bench.compileFolder(broken)), /\.gguf/);
});
