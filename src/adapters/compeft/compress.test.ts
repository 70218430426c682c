import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { safetensorsFile } from '../../checkpoint/testing/container-bytes.js';
import type { TestTensor } from '../../checkpoint/testing/container-bytes.js';
import { ManyfoldError } from '../../core/errors.js';
import { DEFAULT_ADAPTER_LIMITS, openAdapterFolder } from '../adapter-folder.js';
import { compressAdapter } from './compress.js';
import type { Compressed, CompressOptions } from './compress.js';
import { PAYLOAD_TENSOR, readPayload, readStream } from './payload.js';

const KINDS = 'test/goldens/kinds';
const OPTIONS: CompressOptions = { density: 0.5, alpha: 1, scope: 'tensor' };
const PATH = 'base_model.model.model.layers.0.mlp.down_proj';

let root = '';
let folders = 0;
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-compress-'));
});
after(() => rm(root, { recursive: true, force: true }));

async function compressFolder(directory: string, options: CompressOptions): Promise<Compressed> {
  const folder = await openAdapterFolder(directory, { limits: DEFAULT_ADAPTER_LIMITS, keepTensors: false });
  return compressAdapter(folder, options).finally(() => folder.close());
}

async function compress(
  config: Readonly<Record<string, unknown>>,
  tensors: readonly TestTensor[],
  options = OPTIONS,
): Promise<Compressed> {
  const directory = path.join(root, `a${(folders += 1)}`);
  await mkdir(directory);
  await writeFile(path.join(directory, 'adapter_config.json'), JSON.stringify(config));
  await writeFile(path.join(directory, 'adapter_model.safetensors'), safetensorsFile(tensors));
  return compressFolder(directory, options);
}

function floats(name: string, shape: readonly number[], values: readonly number[]): TestTensor {
  return { name, dtype: 'F32', shape, data: new Uint8Array(Float32Array.from(values).buffer) };
}
function integers(name: string, values: readonly number[]): TestTensor {
  return { name, dtype: 'I32', shape: [values.length], data: new Uint8Array(Int32Array.from(values).buffer) };
}
const factors = (b: readonly number[]): TestTensor[] => [
  floats(`${PATH}.lora_A.weight`, [1, 4], [1, -2, 3, -4]),
  floats(`${PATH}.lora_B.weight`, [3, 1], b),
];
const LORA = { peft_type: 'LORA', r: 1, lora_alpha: 2, bias: 'none', target_modules: ['down_proj'] };

/** Name, scale and signed positions of every entry. */
function unpack({ payload }: Compressed): unknown[] {
  const read = readPayload(payload);
  return [...readStream(read)].map(({ positions, negative }, i) => {
    const { name, shape } = read.entries[i] ?? assert.fail('an entry');
    return [name, shape, [...positions].map((position, n) => (negative?.[n] === 1 ? -position : position))];
  });
}

for (const model of ['llama-gqa', 'gemma3']) {
  for (const kind of ['compeft-lora', 'compeft-ia3', 'compeft-s2ft', 'compeft-sft']) {
    test(`the paper's mode on ${model}/${kind} equals the transcription of Algorithm 1, byte for byte`, async () => {
      const golden = path.join(KINDS, model, kind);
      const config = JSON.parse(await readFile(path.join(golden, 'adapter_config.json'), 'utf8')) as Record<
        string,
        unknown
      >;
      const compressed = await compressFolder(path.join(golden, 'source'), config['compression'] as CompressOptions);
      assert.deepEqual(compressed.config, config);
      const folder = await openAdapterFolder(golden, { limits: DEFAULT_ADAPTER_LIMITS, keepTensors: false });
      const expected = await folder.read(PAYLOAD_TENSOR).finally(() => folder.close());
      assert.ok(Buffer.from(compressed.payload).equals(expected));
    });
  }
}

test('LORA: what the scale needs goes with it; a tensor that empties is named', async () => {
  const config = {
    ...LORA,
    use_rslora: true,
    alpha_pattern: { down_proj: 3 },
    rank_pattern: {},
    lora_dropout: 0.1,
    inference_mode: true,
  };
  const compressed = await compress(config, factors([0, 0, 0]));
  assert.deepEqual(JSON.parse(JSON.stringify(compressed.config['source'])), {
    r: 1,
    lora_alpha: 2,
    use_rslora: true,
    alpha_pattern: { down_proj: 3 },
  });
  assert.deepEqual(unpack(compressed), [
    [`${PATH}.lora_A.weight`, [1, 4], [-1, 2, -3]],
    [`${PATH}.lora_B.weight`, [3, 1], []],
  ]);
  assert.deepEqual(compressed.emptied, [`${PATH}.lora_B.weight`]);
  assert.deepEqual([compressed.parameters, compressed.nonZeros], [7, 3]);
});

test('the global scope empties a B that is small beside A, the scope of each tensor does not', async () => {
  const small = factors([0.01, -0.02, 0.03]);
  assert.deepEqual((await compress(LORA, small, { ...OPTIONS, scope: 'global' })).emptied, [`${PATH}.lora_B.weight`]);
  assert.deepEqual((await compress(LORA, small)).emptied, []);
});

test('S2FT: the numbers of the columns are packed beside the values', async () => {
  const tensors = [integers('m.s2ft_columns.index', [2, 7]), floats('m.s2ft_columns.values', [2, 2], [1, -2, 0, 0])];
  const compressed = await compress({ peft_type: 'S2FT', s2ft_version: 1 }, tensors);
  assert.deepEqual(unpack(compressed), [
    ['m.s2ft_columns.index', [8], [2, 7]],
    ['m.s2ft_columns.values', [2, 2], [0, -1]],
  ]);
});

test('SFT: entries come sorted, at their places of the weight', async () => {
  const tensors = [integers('m.sft_delta.indices', [90, 4, 30]), floats('m.sft_delta.values', [3], [-5, 1, 4])];
  const compressed = await compress({ peft_type: 'SFT', density: 0.1 }, tensors);
  assert.deepEqual(unpack(compressed), [['m.sft_delta', [91], [30, -90]]]);
});

const REFUSED: readonly (readonly [string, Readonly<Record<string, unknown>>, readonly TestTensor[], RegExp])[] = [
  [
    'another kind',
    { peft_type: 'OFT' },
    factors([1, 2, 3]),
    /peft_type is "OFT", expected one of LORA, IA3, S2FT, SFT/,
  ],
  ['DoRA', { ...LORA, use_dora: true }, factors([1, 2, 3]), /use_dora is true.*only the plain form/],
  ['trained biases', { ...LORA, bias: 'all' }, factors([1, 2, 3]), /bias is "all"/],
  ['PiSSA', { ...LORA, init_lora_weights: 'pissa' }, factors([1, 2, 3]), /init_lora_weights is "pissa"/],
  ['no tensors', LORA, [], /holds no tensors/],
  [
    'a foreign tensor',
    LORA,
    [...factors([1, 2, 3]), floats('x.weight', [1], [1])],
    /"x.weight" is no tensor of a linear/,
  ],
  ['a factor alone', LORA, factors([1, 2, 3]).slice(0, 1), /lora_A.weight" has no partner/],
  [
    'ranks that differ',
    LORA,
    [floats(`${PATH}.lora_A.weight`, [2, 2], [1, 2, 3, 4]), floats(`${PATH}.lora_B.weight`, [3, 1], [1, 2, 3])],
    /has rank 2, its partner 1/,
  ],
  [
    'an index twice',
    { peft_type: 'SFT' },
    [integers('m.sft_delta.indices', [4, 4]), floats('m.sft_delta.values', [2], [1, 2])],
    /holds 4 as number 1, expected unique/,
  ],
  [
    'an index without order',
    { peft_type: 'S2FT' },
    [integers('m.s2ft_rows.index', [4, 1]), floats('m.s2ft_rows.values', [2, 1], [1, 2])],
    /holds 1 as number 1/,
  ],
  [
    'fewer indices than values',
    { peft_type: 'SFT' },
    [integers('m.sft_delta.indices', [4]), floats('m.sft_delta.values', [2], [1, 2])],
    /2 values for 1 indices/,
  ],
];
for (const [name, config, tensors, message] of REFUSED) {
  test(`refuses ${name}`, async () => {
    await assert.rejects(
      compress(config, tensors),
      (error) => error instanceof ManyfoldError && error.code === 'invalid_adapter' && message.test(error.message),
    );
  });
}
