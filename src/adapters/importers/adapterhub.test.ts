/** AdapterHub's bottlenecks: exact terms of a hand-made file, and every configuration that has no term. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { DEFAULT_ADAPTER_LIMITS } from '../adapter-folder.js';
import { toFloats } from '../tensor-values.js';
import type { BottleneckTerm, Term } from '../../core/terms.js';
import { bf16, f32, ImporterBench, ramp } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { TINY_MODEL } from '../testing/peft-folder.js';

const bench = new ImporterBench();
after(() => bench.close());

type Tensors = Record<string, BenchTensor>;

/** double_seq_bn with a bottleneck of 2, in layer 0 alone. */
const INNER = {
  ...{ mh_adapter: true, output_adapter: true, reduction_factor: 4, non_linearity: 'swish', leave_out: [1] },
  ...{ original_ln_before: false, original_ln_after: true, residual_before_ln: true, scaling: 1.0, ln_before: false },
  ...{ ln_after: false, is_parallel: false, use_gating: false, phm_layer: false, inv_adapter: null, dropout: 0.1 },
};
const config = (inner: object = {}, outer: object = {}): Record<string, unknown> => ({
  config: { ...INNER, ...inner },
  ...{
    hidden_size: 8,
    model_type: 'llama',
    model_name: 'tiny',
    model_class: 'LlamaAdapterModel',
    name: 'n',
    version: '1',
  },
  ...outer,
});

const place = (layer: number, module: string): string => `model.layers.${layer}.${module}.adapters.n.`;
const MH = place(0, 'attention_adapters');
const OUT = place(0, 'output_adapters');

const block = (prefix: string, down = 'adapter_down.0'): Tensors => ({
  [`${prefix}${down}.weight`]: bf16([2, 8], ramp(16)),
  [`${prefix}${down}.bias`]: f32([2], [1, 2]),
  [`${prefix}adapter_up.weight`]: bf16([8, 2], ramp(16, 0.5)),
  [`${prefix}adapter_up.bias`]: f32([8], ramp(8)),
});
const BOTH = { ...block(MH), ...block(OUT) };

function bottleneck(term: Term | undefined): BottleneckTerm {
  return term?.kind === 'bottleneck' ? term : assert.fail(`expected a bottleneck, found ${term?.kind}`);
}

test('one sequential bottleneck behind attention and one behind the MLP, in the type of the file', async () => {
  const { terms } = await bench.compile(config(), BOTH);
  assert.deepEqual(
    terms.terms.map((term) => term.site),
    [
      { layer: 0, site: 'residualAttn' },
      { layer: 0, site: 'residualMlp' },
    ],
  );
  const term = bottleneck(terms.terms[0]);
  assert.equal(term.placement, 'sequential');
  assert.equal(term.activation, 'silu');
  assert.equal(term.down.dtype, 'bf16');
  assert.deepEqual([...toFloats(term.down)], ramp(16));
  assert.deepEqual([...(term.downBias ?? [])], [1, 2]);
  assert.deepEqual([...toFloats(term.up)], ramp(16, 0.5));
  assert.deepEqual([...(term.upBias ?? [])], ramp(8));
  assert.equal(term.scale, 1);
  assert.equal(term.norm, undefined);
});

test('seq_bn reads the sum of sub-block and residual stream, par_bn the stream itself', async () => {
  const placement = async (inner: object): Promise<string> => {
    const { terms } = await bench.compile(config(inner), BOTH);
    return bottleneck(terms.terms[0]).placement;
  };
  assert.equal(await placement({ original_ln_before: true }), 'sum');
  assert.equal(await placement({ is_parallel: true, scaling: 4.0 }), 'residual');
  assert.equal(await placement({ is_parallel: true, original_ln_before: true, residual_before_ln: false }), 'residual');
  // Without the sum, the residual is the sub-block's output either way.
  assert.equal(await placement({ residual_before_ln: false }), 'sequential');
});

test('the names of activations', async () => {
  const names = { relu: 'relu', gelu: 'gelu', gelu_new: 'gelu_tanh', SiLU: 'silu', tanh: 'tanh', linear: 'identity' };
  for (const [name, activation] of Object.entries(names)) {
    const { terms } = await bench.compile(config({ non_linearity: name }), BOTH);
    assert.equal(bottleneck(terms.terms[0]).activation, activation);
  }
  assert.match(await bench.refusal(config({ non_linearity: 'leakyrelu' }), BOTH), /non_linearity is "leakyrelu"/);
  assert.match(await bench.refusal(config({ non_linearity: 'constructor' }), BOTH), /non_linearity is "constructor"/);
});

test('scaling: a number, a learned number, or a learned factor a channel', async () => {
  const one = config({ output_adapter: false, scaling: 0.5 });
  assert.equal(bottleneck((await bench.compile(one, block(MH))).terms.terms[0]).scale, 0.5);
  const learned = await bench.compile(config({ output_adapter: false, scaling: 'learned' }), {
    ...block(MH),
    [`${MH}scaling`]: f32([1], [3]),
  });
  assert.equal(bottleneck(learned.terms.terms[0]).scale, 3);
  const channel = await bench.compile(config({ output_adapter: false, scaling: 'channel' }), {
    ...block(MH),
    [`${MH}scaling`]: f32([8], [1, 2, 3, 4, 5, 6, 7, 8]),
  });
  const term = bottleneck(channel.terms.terms[0]);
  assert.equal(term.scale, 1);
  assert.deepEqual(
    [...toFloats(term.up)],
    ramp(16, 0.5).map((value, i) => value * (1 + Math.floor(i / 2))),
  );
  assert.deepEqual(
    [...(term.upBias ?? [])],
    ramp(8).map((value, i) => value * (i + 1)),
  );
});

test('a norm before the bottleneck, which the file holds twice', async () => {
  const norm = {
    [`${MH}adapter_norm_before.weight`]: f32([8], ramp(8)),
    [`${MH}adapter_norm_before.bias`]: f32([8], ramp(8, 1)),
    [`${MH}adapter_down.0.weight`]: f32([8], ramp(8)),
    [`${MH}adapter_down.0.bias`]: f32([8], ramp(8, 1)),
  };
  const normed = config({ output_adapter: false, ln_before: true });
  const tensors = { ...block(MH, 'adapter_down.1'), ...norm };
  const term = bottleneck((await bench.compile(normed, tensors)).terms.terms[0]);
  assert.deepEqual([...(term.norm?.weight ?? [])], ramp(8));
  assert.deepEqual([...(term.norm?.bias ?? [])], ramp(8, 1));
  assert.equal(term.norm?.eps, 1e-5);
  const differing = { ...tensors, [`${MH}adapter_down.0.bias`]: f32([8], ramp(8)) };
  assert.match(await bench.refusal(normed, differing), /are one tensor of the library and differ/);
});

test('PHM layers are materialised: the sum of Kronecker products, transposed', async () => {
  const phm = { phm_layer: true, phm_dim: 2, output_adapter: false, phm_rank: 1, reduction_factor: 4 };
  const rule = [1, 2, 3, 4, 0, 1, 1, 0];
  const [left, right] = [ramp(8, 1), [1, 2]];
  const tensors = {
    'model.shared_parameters.n.phm_rule': f32([2, 2, 2], rule),
    [`${MH}adapter_down.0.W_left`]: f32([2, 4, 1], left),
    [`${MH}adapter_down.0.W_right`]: f32([2, 1, 1], right),
    [`${MH}adapter_down.0.b`]: f32([2], [1, 2]),
    [`${MH}adapter_up.W_left`]: f32([2, 1, 1], [1, 1]),
    [`${MH}adapter_up.W_right`]: f32([2, 1, 4], ramp(8)),
    [`${MH}adapter_up.b`]: f32([8], ramp(8)),
  };
  const term = bottleneck((await bench.compile(config(phm), tensors)).terms.terms[0]);
  const wanted = new Array<number>(16).fill(0);
  for (let i = 0; i < 2; i += 1) {
    for (let r = 0; r < 8; r += 1) {
      for (let c = 0; c < 2; c += 1) {
        wanted[c * 8 + r]! += rule[i * 4 + Math.floor(r / 4) * 2 + c]! * left[i * 4 + (r % 4)]! * right[i]!;
      }
    }
  }
  assert.deepEqual(term.down.shape, [2, 8]);
  assert.deepEqual([...toFloats(term.down)], wanted);
  assert.deepEqual(term.up.shape, [8, 2]);
  assert.match(
    await bench.refusal(config({ ...phm, phm_dim: 3 }), tensors),
    /phm_dim is 3, which does not divide 2 and 8/,
  );
  assert.match(await bench.refusal(config({ ...phm, shared_phm_rule: false }), tensors), /no tensor that/);
});

test('configurations without a term are refused with the mend', async () => {
  const cases: [object, RegExp][] = [
    [{ original_ln_before: true, residual_before_ln: false }, /residual_before_ln is false: .*added twice.*seq_bn/],
    [{ original_ln_after: false }, /original_ln_after is false/],
    [{ residual_before_ln: 'post_add' }, /residual_before_ln is "post_add"/],
    [{ ln_after: true }, /ln_after is true/],
    [{ use_gating: true }, /use_gating is true: the gate is the mean over all tokens/],
    [{ inv_adapter: 'nice' }, /inv_adapter is "nice"/],
    [{ cross_adapter: true }, /cross_adapter is true/],
    [{ architecture: 'prefix_tuning' }, /architecture is "prefix_tuning"/],
    [{ mh_adapter: false, output_adapter: false }, /nothing is adapted/],
    [{ leave_out: 'all' }, /leave_out is "all"/],
    [{ reduction_factor: 0 }, /reduction_factor is 0/],
    [{ magic: 1 }, /"magic" is 1, a field that this server does not know/],
  ];
  for (const [inner, message] of cases) assert.match(await bench.refusal(config(inner), BOTH), message);
  assert.match(
    await bench.refusal(config({}, { model_type: 'bert' }), BOTH),
    /model_type is "bert", the base is llama/,
  );
  const qwen = { model: { ...TINY_MODEL, family: 'qwen3' } } as const;
  assert.match(await bench.refusal(config({}, { model_type: 'qwen3' }), BOTH, qwen), /llama and mistral are known/);
  assert.match(await bench.refusal(config({}, { hidden_size: 16 }), BOTH), /hidden_size is 16, the base has 8/);
});

test('tensors that do not belong to the config are refused', async () => {
  assert.match(
    await bench.refusal(config(), { ...BOTH, 'heads.x.weight': f32([1], [1]) }),
    /is no tensor of a bottleneck/,
  );
  assert.match(await bench.refusal(config({ mh_adapter: false }), BOTH), /layer 0 has a mh_adapter/);
  assert.match(
    await bench.refusal(config({ leave_out: [] }), BOTH),
    /"layers.1.mh_adapter" has no adapter_down.0.weight/,
  );
  const gate = { ...BOTH, [`${MH}gate.weight`]: f32([1, 8], ramp(8)) };
  assert.match(await bench.refusal(config(), gate), /is no tensor that layers.0.mh_adapter has/);
  const second = { ...BOTH, ...block(place(0, 'output_adapters').replace('.n.', '.m.')) };
  assert.match(await bench.refusal(config(), second), /the same tensor|several adapters/);
  const bare = { ...BOTH, [`${MH}adapter_up.bias`.replace('model.', '')]: f32([8], ramp(8)) };
  assert.match(await bench.refusal(config(), bare), /are the same tensor/);
  assert.match(await bench.refusal(config({ reduction_factor: 2 }), BOTH), /has width 2, reduction_factor gives 4/);
  const tall = { ...BOTH, [`${MH}adapter_up.weight`]: f32([7, 2], ramp(14)) };
  assert.match(await bench.refusal(config(), tall), /expected \[8, 2\]/);
  const limits = { limits: { ...DEFAULT_ADAPTER_LIMITS, maxRank: 1 } };
  assert.match(await bench.refusal(config(), BOTH, limits), /has width 2, at most 1 is allowed/);
  assert.match(await bench.refusal(config(), {}), /holds no tensors/);
});
