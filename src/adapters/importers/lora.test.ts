import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { ManyfoldError } from '../../core/errors.js';
import type { LowRankTerm } from '../../core/terms.js';
import { DEFAULT_ADAPTER_LIMITS, openAdapterFolder } from '../adapter-folder.js';
import type { AdapterLimits } from '../adapter-folder.js';
import { compileAdapter } from '../compile-adapter.js';
import type { CompiledAdapter } from '../importer.js';
import { dense, UNREAD_BASE } from '../testing/base.js';
import { pair, TINY_MODEL, writeAdapter } from '../testing/peft-folder.js';
import type { TestAdapter, TestTensor } from '../testing/peft-folder.js';
import { adapterVersion } from '../version.js';

let root = '';
let folders = 0;
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-lora-'));
});
after(() => rm(root, { recursive: true, force: true }));

async function compile(
  adapter: TestAdapter,
  model = TINY_MODEL,
  limits: AdapterLimits = DEFAULT_ADAPTER_LIMITS,
): Promise<CompiledAdapter> {
  const directory = await writeAdapter(path.join(root, `a${(folders += 1)}`), adapter);
  const folder = await openAdapterFolder(directory, { limits, keepTensors: false });
  const version = await adapterVersion(folder, 'base').finally(() => folder.close());
  return compileAdapter({ version, directory }, { model, base: UNREAD_BASE, baseFingerprint: 'base', limits });
}

async function refusal(adapter: TestAdapter, limits?: AdapterLimits): Promise<string> {
  try {
    await compile(adapter, TINY_MODEL, limits);
  } catch (error) {
    assert.ok(error instanceof ManyfoldError && error.code === 'invalid_adapter', String(error));
    return error.message;
  }
  return assert.fail(`should have been refused: ${JSON.stringify(adapter)}`);
}

function lowRank(compiled: CompiledAdapter): LowRankTerm[] {
  return compiled.terms.terms.map((term) => (term.kind === 'lowrank' ? term : assert.fail(term.kind)));
}

const Q = 'model.layers.0.self_attn.q_proj';
const UP = 'model.layers.1.mlp.up_proj';

test('one term for each adapted module, with alpha / r, in the type of the file', async () => {
  const terms = lowRank(
    await compile({
      tensors: { ...pair(Q, 8, 2, 8), ...pair(UP, 12, 2, 8) },
      config: { target_modules: ['q_proj', 'up_proj'] },
    }),
  );
  assert.deepEqual(
    terms.map(({ site, scale, a, b }) => ({ site, scale, a: a.shape, b: b.shape })),
    [
      { site: { layer: 0, site: 'q' }, scale: 2, a: [2, 8], b: [8, 2] },
      { site: { layer: 1, site: 'up' }, scale: 2, a: [2, 8], b: [12, 2] },
    ],
  );
  const [name] = Object.keys(pair(Q, 8, 2, 8)) as [string];
  const half = Object.fromEntries(
    Object.entries(pair(Q, 8, 2, 8)).map(([key, { shape }]) => [
      key,
      { dtype: key === name ? 'BF16' : 'F16', shape } as const,
    ]),
  );
  const [term] = lowRank(await compile({ tensors: half }));
  assert.deepEqual([term?.a.dtype, term?.b.dtype, dense(term?.a).data[0]], ['bf16', 'f16', 0x3c00]);
});

test('rslora, and the first rank and alpha pattern that matches as in PEFT', async () => {
  const [stable] = lowRank(
    await compile({ tensors: pair(Q, 8, 4, 8), config: { r: 4, lora_alpha: 6, use_rslora: true } }),
  );
  assert.equal(stable?.scale, 3);
  const config = {
    r: 2,
    lora_alpha: 4,
    target_modules: ['q_proj', 'up_proj'],
    rank_pattern: { 'layers.0.self_attn.q_proj': 1, down_proj: 7 },
    alpha_pattern: { proj: 99, 'layers\\.[1-9]+\\.mlp\\.(up|gate)_proj': 10, up_proj: 50, 'q.proj': 3 },
  };
  const terms = lowRank(await compile({ tensors: { ...pair(Q, 8, 1, 8), ...pair(UP, 12, 2, 8) }, config }));
  assert.deepEqual(
    terms.map(({ scale }) => scale),
    [3, 5],
  );
});

test('embedding, head, old keys and other spellings of the path', async () => {
  const tensors: Record<string, TestTensor> = {
    'base_model.model.model.embed_tokens.lora_embedding_A': { dtype: 'F32', shape: [2, 20] },
    'base_model.model.model.embed_tokens.lora_embedding_B': { dtype: 'F32', shape: [8, 2] },
    ...pair('lm_head', 20, 2, 8),
    'base_model.model.model.language_model.layers.1.mlp.down_proj.lora_A.default.weight': {
      dtype: 'F32',
      shape: [2, 12],
    },
    'base_model.model.model.language_model.layers.1.mlp.down_proj.lora_B.default.weight': {
      dtype: 'F32',
      shape: [8, 2],
    },
  };
  const compiled = await compile({
    tensors,
    config: { target_modules: ['embed_tokens', 'lm_head', 'down_proj', 'c_attn'] },
  });
  assert.deepEqual(
    lowRank(compiled).map(({ site }) => site),
    [
      { layer: -1, site: 'embedding' },
      { layer: -1, site: 'head' },
      { layer: 1, site: 'down' },
    ],
  );
  assert.match(compiled.notes.join(), /target_modules names c_attn, which have no tensors/);
});

test('fused modules are split by rows of B and share A', async () => {
  const values = Array.from({ length: 16 * 2 }, (_, i) => i);
  const fused = pair('model.layers.1.self_attn.qkv_proj', 16, 2, 8);
  const key = Object.keys(fused)[1] ?? '';
  const terms = lowRank(
    await compile({
      tensors: { ...fused, [key]: { dtype: 'F32', shape: [16, 2], values } },
      config: { target_modules: ['qkv_proj'] },
    }),
  );
  assert.deepEqual(
    terms.map(({ site, b }) => [site.site, b.shape, dense(b).data[0], dense(b).data.length]),
    [
      ['q', [8, 2], 0, 16],
      ['k', [4, 2], 16, 8],
      ['v', [4, 2], 24, 8],
    ],
  );
  assert.equal(terms[0]?.a, terms[2]?.a);
});

test('B of zeros is served and noted', async () => {
  const tensors = pair(Q, 8, 2, 8);
  const key = Object.keys(tensors)[1] ?? '';
  const compiled = await compile({
    tensors: { ...tensors, [key]: { dtype: 'F32', shape: [8, 2], values: new Array<number>(16).fill(0) } },
  });
  assert.equal(lowRank(compiled).length, 1);
  assert.match(compiled.notes.join(), /B is all zero in 1 of 1 modules/);
});

test('every field that cannot be honoured is refused by name with a mend', async () => {
  const variants: Record<string, unknown> = {
    bias: 'most',
    target_parameters: ['mlp.experts.gate_up_proj'],
    layer_replication: [[0, 2]],
    megatron_config: { tensor_model_parallel_size: 2 },
    use_bdlora: [2],
    use_dora: 'yes',
    alora_invocation_tokens: ['x'],
    arrow_config: { top_k: 2 },
    init_lora_weights: 'pissa_niter_4',
    use_future_thing: true,
    task_type: 'SEQ_CLS',
    use_rslora: 'yes',
    r: 0,
    lora_alpha: 0,
    layers_to_transform: ['x'],
    rank_pattern: { q_proj: 1.5 },
    alpha_pattern: { '(?=q)q_proj': 2 },
    target_modules: [1],
  };
  for (const [field, value] of Object.entries(variants)) {
    const message = await refusal({ config: { [field]: value } });
    assert.match(message, new RegExp(`adapter_config\\.json: "?${field}`), message);
    assert.match(message, /\. [A-Z][^.]+.*\.$/, `${field} has no mend: ${message}`);
  }
  for (const init of ['pissa_niter_2', 'corda', 'lora_ga', 'unheard_of', 3]) {
    assert.match(await refusal({ config: { init_lora_weights: init } }), /init_lora_weights is .*(convert|Convert)/);
  }
});

test('ways to begin that leave the base as it is are served as the factors lie', async () => {
  for (const init of ['eva', 'gaussian', 'loftq', 'mica', 'orthogonal', true, false]) {
    const compiled = await compile({ config: { init_lora_weights: init } });
    assert.equal(lowRank(compiled).length, 2, String(init));
    assert.equal(compiled.notes.join().includes('LoftQ'), init === 'loftq', String(init));
  }
});

test('fields without effect and switched-off fields are accepted', async () => {
  const config = {
    auto_mapping: { base_model_class: 'X' },
    init_lora_weights: 'loftq',
    loftq_config: { loftq_bits: 4 },
    eva_config: { rho: 2 },
    velora_config: { rank: 2 },
    megatron_core: 'megatron.core',
    qalora_group_size: 16,
    lora_dropout: 0.1,
    fan_in_fan_out: false,
    use_future_thing: false,
    future_config: null,
    future_list: [],
    modules_to_save: [],
    ensure_weight_tying: true,
    layers_to_transform: 0,
    target_modules: '(?<=x)not decidable',
    exclude_modules: ['lm_head'],
  };
  const compiled = await compile({ config });
  assert.equal(lowRank(compiled).length, 2);
  assert.match(compiled.notes.join(), /LoftQ/);
});

test('config and tensors that disagree are refused', async () => {
  assert.match(await refusal({ config: { r: 3 } }), /r is 3 for .*its tensors have rank 2/);
  assert.match(await refusal({ config: { rank_pattern: { v_proj: 4 } } }), /r is 4 for .*v_proj/);
  assert.match(await refusal({ config: { target_modules: ['q_proj'] } }), /target_modules is without .*v_proj/);
  assert.match(await refusal({ config: { target_modules: '.*\\.q_proj' } }), /target_modules is without .*v_proj/);
  assert.match(await refusal({ config: { exclude_modules: '.*v_proj' } }), /exclude_modules is with .*v_proj/);
  assert.match(await refusal({ config: { layers_to_transform: [1] } }), /layers_to_transform is without 0/);
  const head = { tensors: pair('lm_head', 20, 2, 8) };
  assert.match(
    await refusal({ ...head, config: { target_modules: 'all-linear' } }),
    /target_modules is without "lm_head"/,
  );
  const tied = { target_modules: ['lm_head'], ensure_weight_tying: true };
  assert.match(await refusal({ ...head, config: tied }), /ensure_weight_tying is true with factors for "lm_head"/);
});

test('tensors that do not fit are refused with their name and both shapes', async () => {
  const q = pair(Q, 8, 2, 8);
  const [a, b] = Object.keys(q) as [string, string];
  const f32 = (shape: number[]): TestTensor => ({ dtype: 'F32', shape });
  const cases: [Record<string, TestTensor>, RegExp][] = [
    [{ [a]: f32([2, 8]) }, /q_proj\.lora_A\.weight" has no B beside it/],
    [{ [b]: f32([8, 2]) }, /q_proj\.lora_B\.weight" has no A beside it/],
    [{ ...q, [b]: f32([8, 3]) }, /lora_B\.weight" has shape \[8, 3\], expected \[8, 2\].*\[2, 8\]/],
    [{ ...q, [a]: f32([8, 2]) }, /lora_A\.weight" has shape \[8, 2\], expected \[r, 8\]/],
    [{ ...q, [a]: f32([16]) }, /has shape \[16\], expected \[r, 8\]/],
    [{ ...q, [a]: f32([0, 8]), [b]: f32([8, 0]) }, /has shape \[0, 8\]/],
    [pair('model.layers.0.self_attn.k_proj', 8, 2, 8), /has shape \[8, 2\], expected \[4, 2\]/],
    [
      pair('model.layers.2.self_attn.q_proj', 8, 2, 8),
      /adapts "model\.layers\.2\.self_attn\.q_proj", which the base \(llama, 2 layers\) does not have/,
    ],
    [pair('model.layers.00.self_attn.q_proj', 8, 2, 8), /does not have/],
    [pair('model.vision_tower.fc1', 8, 2, 8), /does not have/],
    [{ ...q, ...pair('layers.0.self_attn.q_proj', 8, 2, 8) }, /adapt the same place/],
    [{ ...q, ...pair('model.layers.0.self_attn.qkv_proj', 16, 2, 8) }, /adapt the same place/],
    [{ ...q, [a.replace('.weight', '.default.weight')]: f32([2, 8]) }, /adapt the same place/],
    [{ ...q, [`base_model.model.${Q}.lora_magnitude_vector`]: f32([8]) }, /while use_dora is off/],
    [{ ...q, [b.replace('.weight', '.bias')]: f32([8]) }, /while lora_bias is off/],
    [{ ...q, [b.replace('_B.', '_B.other.')]: f32([8, 2]) }, /is not named as PEFT names LoRA factors/],
    [{ 'base_model.model.score.weight': f32([2, 8]) }, /is a head for another task/],
    [{ [a]: { dtype: 'F64', shape: [2, 8] }, [b]: f32([8, 2]) }, /is F64, expected F32, F16 or BF16/],
    [{}, /holds no tensors/],
    [{ ...q, [a]: { dtype: 'F32', shape: [2, 8], values: [1, Number.NaN] } }, /lora_A\.weight" holds NaN or infinity/],
    [
      { ...q, [b]: { dtype: 'BF16', shape: [8, 2], values: [0x3f80, 0x7f80] } },
      /lora_B\.weight" holds NaN or infinity/,
    ],
    [{ ...q, [b]: { dtype: 'F16', shape: [8, 2], values: [0xfc00] } }, /lora_B\.weight" holds NaN or infinity/],
    [
      {
        'base_model.model.model.embed_tokens.lora_A.weight': f32([2, 20]),
        'base_model.model.model.embed_tokens.lora_B.weight': f32([8, 2]),
      },
      /a factor of a linear, the module is not/,
    ],
  ];
  for (const [tensors, expected] of cases)
    assert.match(await refusal({ tensors, config: { target_modules: null } }), expected);
});

test('the rank cap is checked on the header', async () => {
  assert.match(
    await refusal({}, { ...DEFAULT_ADAPTER_LIMITS, maxRank: 1 }),
    /r is 2 .*at most 1 is allowed\. Raise --max-lora-rank/,
  );
});

test('a method without an importer, and a folder that changed since it was hashed, are refused', async () => {
  const unheard = await refusal({ config: { peft_type: 'UNHEARD_OF' } });
  assert.match(unheard, /peft_type is "UNHEARD_OF", expected one of LORA, ADALORA, [A-Z0-9_, ]+\. .*merge_and_unload/);
  assert.doesNotMatch(unheard, /\bHIRA|LILY/);
  const directory = await writeAdapter(path.join(root, 'changing'));
  const folder = await openAdapterFolder(directory, { limits: DEFAULT_ADAPTER_LIMITS, keepTensors: false });
  const version = await adapterVersion(folder, 'base').finally(() => folder.close());
  await writeAdapter(directory, { config: { lora_alpha: 8 } });
  const context = { model: TINY_MODEL, base: UNREAD_BASE, baseFingerprint: 'base', limits: DEFAULT_ADAPTER_LIMITS };
  await assert.rejects(
    compileAdapter({ version, directory }, context),
    /changed after it was published: expected sha256:.*Load the adapter again/,
  );
});
