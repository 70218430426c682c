import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { DEFAULT_ADAPTER_LIMITS } from '../adapter-folder.js';
import { f32, ImporterBench } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { sixteenths } from '../testing/matrices.js';

const bench = new ImporterBench();
after(() => bench.close());

const Q = 'base_model.model.model.layers.0.self_attn.q_proj';
const CONFIG = { peft_type: 'ADALORA', init_r: 3, r: 8, target_r: 2, lora_alpha: 6, total_step: 10, beta1: 0.85 };
const MASK = { 'model.layers.0.self_attn.q_proj.lora_E': [true, false, true] };

function factors(rank: number): Record<string, BenchTensor> {
  return {
    [`${Q}.lora_A`]: f32([rank, 8], sixteenths(1, 8 * rank)),
    [`${Q}.lora_B`]: f32([8, rank], sixteenths(2, 8 * rank)),
    [`${Q}.lora_E`]: f32([rank, 1], sixteenths(3, rank)),
  };
}

test('E is the diagonal, and the scale counts the ranks from before pruning', async () => {
  const whole = await bench.compile(CONFIG, factors(3));
  const pruned = await bench.compile({ ...CONFIG, rank_pattern: MASK }, factors(2));
  for (const [compiled, rank] of [
    [whole, 3],
    [pruned, 2],
  ] as const) {
    const [term] = compiled.terms.terms;
    assert.ok(term?.kind === 'lowrank');
    assert.equal(term.scale, 6 / (3 + 1e-5));
    assert.deepEqual([...(term.mid ?? [])], sixteenths(3, rank));
  }
  const [negative] = (await bench.compile({ ...CONFIG, lora_alpha: -1 }, factors(3))).terms.terms;
  assert.ok(negative?.kind === 'lowrank' && negative.scale === 3 / (3 + 1e-5));
  const named = { 'model.layers.0.self_attn.q_proj.lora_E.default': [[true], [false], [true]] };
  assert.equal((await bench.compile({ ...CONFIG, rank_pattern: named }, factors(2))).terms.terms.length, 1);
});

test('what does not fit is refused', async () => {
  const without = (part: string): Record<string, BenchTensor> =>
    Object.fromEntries(Object.entries(factors(3)).filter(([key]) => !key.endsWith(part)));
  const cases: [object, Record<string, BenchTensor>, RegExp][] = [
    [{}, without('_E'), /lora_A" has no lora_E beside it/],
    [{}, without('_B'), /has no B beside it/],
    [{}, factors(2), /rank_pattern is one that keeps 3 ranks of .*its tensors have rank 2/],
    [{ rank_pattern: MASK }, factors(3), /keeps 2 ranks of .*rank 3/],
    [{ rank_pattern: { x: [true] } }, factors(3), /rank_pattern "x" is \[true\], expected 3 times true or false/],
    [{ rank_pattern: [1] }, factors(3), /rank_pattern is \[1\], expected an object of masks/],
    [{ use_dora: true }, factors(3), /use_dora is true.*AdaLoRA has no such variant/],
    [{ unheard_of: 1 }, factors(3), /a field that this server does not know/],
    [{ init_r: 0 }, factors(3), /init_r is 0, expected an integer of at least 1/],
    [{}, { ...factors(3), [`${Q}.lora_F`]: f32([1], [1]) }, /lora_F" is no tensor of a LoRA/],
    [{}, {}, /holds no tensors/],
    [{ target_modules: ['v_proj'] }, factors(3), /target_modules is without/],
  ];
  for (const [config, tensors, expected] of cases) {
    assert.match(await bench.refusal({ ...CONFIG, ...config }, tensors), expected);
  }
  const limits = { ...DEFAULT_ADAPTER_LIMITS, maxRank: 2 };
  assert.match(await bench.refusal(CONFIG, factors(3), { limits }), /r is 3 for .*at most 2 is allowed/);
});
