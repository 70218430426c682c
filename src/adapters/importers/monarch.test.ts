/** Monarch: the dense matrix that its blocks are, padded widths, biases, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import type { DiagTerm, Term } from '../../core/terms.js';
import { toFloats } from '../tensor-values.js';
import { baseOf } from '../testing/base.js';
import { f32, ImporterBench, ramp } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { TINY_MODEL } from '../testing/peft-folder.js';

const bench = new ImporterBench();
after(() => bench.close());

const UP = 'base_model.model.model.layers.0.mlp.up_proj';
const MONARCH = { peft_type: 'MONARCH' };
const { hiddenSize: WIDTH, ffnSize: OUT } = TINY_MODEL;
const base = baseOf(new Map());

function tensors(first: readonly number[], second: readonly number[]): Record<string, BenchTensor> {
  const size = (shape: readonly number[]): number => shape.reduce((product, dim) => product * dim, 1);
  return {
    [`${UP}.blkdiag1`]: f32(first, ramp(size(first))),
    [`${UP}.blkdiag2`]: f32(second, ramp(size(second), 0.5)),
  };
}

/** What the chain makes of x. */
function chain(term: Term | undefined, x: readonly number[]): number[] {
  assert.equal(term?.kind, 'blockdiag');
  const { stages, output } = term;
  let t = [...x];
  for (const { gather, blocks } of stages) {
    const input = gather === undefined ? t : [...gather].map((i) => t[i] ?? NaN);
    const [count = 0, p = 0, q = 0] = blocks.shape;
    const values = toFloats(blocks);
    t = Array.from({ length: count * p }, (_, row) => {
      let sum = 0;
      for (let j = 0; j < q; j += 1) sum += (values[row * q + j] ?? NaN) * (input[Math.floor(row / p) * q + j] ?? NaN);
      return sum;
    });
  }
  return [...(output ?? [])].map((i) => t[i] ?? NaN);
}

/** The paper's formula, index by index: z[a k + b] goes to run b' of the second map. */
function monarch(x: readonly number[], first: readonly number[], second: readonly number[]): number[] {
  const [k = 0, q = 0, p = 0] = first;
  const [l = 0, s = 0, r = 0] = second;
  const [w1, w2] = [ramp(k * q * p), ramp(l * s * r, 0.5)];
  const inner = Array.from({ length: k * q }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < p; j += 1) sum += (w1[i * p + j] ?? NaN) * (x[Math.floor(i / q) * p + j] ?? 0);
    return sum;
  });
  const result = new Array<number>(OUT).fill(0);
  for (let run = 0; run < l; run += 1) {
    for (let row = 0; row < s && row * l + run < OUT; row += 1) {
      for (let j = 0; j < r; j += 1) {
        result[row * l + run]! += (w2[(run * s + row) * r + j] ?? NaN) * (inner[j * l + run] ?? NaN);
      }
    }
  }
  return result;
}

test('the chain is the dense map of its blocks, and the base product is switched off', async () => {
  const x = ramp(WIDTH, 0.75);
  for (const [first, second] of [
    [
      [2, 4, 4],
      [2, 6, 4],
    ],
    [
      [3, 3, 3],
      [3, 4, 3],
    ],
    [
      [4, 5, 2],
      [5, 3, 4],
    ],
  ] as const) {
    const { terms } = await bench.compile(MONARCH, tensors(first, second), { base });
    const [map, off] = terms.terms;
    assert.deepEqual(chain(map, x), monarch(x, first, second));
    assert.deepEqual(off, { kind: 'diag', site: { layer: 0, site: 'up' }, g: new Float32Array(OUT) });
  }
});

test('a bias stands in the place of the base’s, which must not be left out', async () => {
  const old = Float32Array.from(ramp(OUT, 2));
  const biased = baseOf(new Map(), new Map([['0 up', old]]));
  const own = tensors([2, 4, 4], [2, 6, 4]);
  const { terms } = await bench.compile(MONARCH, { ...own, [`${UP}.bias`]: f32([OUT], ramp(OUT)) }, { base: biased });
  assert.deepEqual(
    [...((terms.terms[1] as DiagTerm).c ?? [])],
    ramp(OUT).map((value, i) => value - (old[i] ?? 0)),
  );
  assert.match(await bench.refusal(MONARCH, own, { base: biased }), /has no bias beside its other tensors/);
});

test('blocks that do not fit the linear or each other are refused', async () => {
  const refusal = (first: readonly number[], second: readonly number[], config = {}): Promise<string> =>
    bench.refusal({ ...MONARCH, ...config }, tensors(first, second), { base });
  assert.match(await refusal([2, 4, 3], [2, 6, 4]), /expected \[k, q, p\] and \[l, s, r\] with k q = l r, k p = 8/);
  assert.match(await refusal([2, 4, 4], [2, 6, 3]), /with k q = l r/);
  assert.match(await refusal([2, 4, 4], [2, 8, 4]), /l s = 12/);
  assert.match(await refusal([2, 4, 4], [2, 6, 4], { nblocks: 4 }), /nblocks is 4 for .*, its tensors have 2 blocks/);
  assert.match(await bench.refusal(MONARCH, { [`${UP}.blkdiag1`]: f32([2, 4, 4], ramp(32)) }), /has no blkdiag2/);
});
