/**
 * Terms that are two ways to say one function give one answer in the same batch: shared projections and the plain LoRA that they
 * stand for, ternary factors and their dense values, and S²FT adapters fused from parts.
 */
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import { toFloats } from '../src/adapters/tensor-values.js';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import type { DenseTensor, LowRankTerm, RowColTerm, Term, TermSet, TermTensor } from '../src/core/terms.js';
import {
  compileFolder,
  forcedLogits,
  loadTermSet,
  openTestEngine,
  testedIsas,
  type TestEngine,
} from './support/engine.js';
import { GOLDENS } from './support/goldens.js';
import { alone, assertSame } from './support/identity.js';
import { TestSequence } from './support/plan.js';

const MODEL = 'llama-gqa';
const PROMPT = [7, 21, 33, 4, 90, 151, 12, 60, 301];
/** Of max|logit|: other orders of the same float32 sums. */
const TOLERANCE = 1e-5;

function plain(tensor: TermTensor): DenseTensor {
  if (tensor.dtype === 'int8') assert.fail('no kind of these has int8 values');
  if (tensor.dtype !== 'ternary') return { dtype: 'f32', shape: tensor.shape, data: toFloats(tensor) };
  const [rows = 0, cols = 0] = tensor.shape;
  const words = Math.ceil(cols / 32);
  const data = Float32Array.from({ length: rows * cols }, (_, i) => {
    const at = Math.floor(i / cols) * words + ((i % cols) >>> 5);
    const bit = 1 << ((i % cols) & 31);
    const sign = Number(((tensor.positive[at] ?? 0) & bit) !== 0) - Number(((tensor.negative[at] ?? 0) & bit) !== 0);
    return sign * tensor.scale;
  });
  return { dtype: 'f32', shape: tensor.shape, data };
}

/** Row i times factors[i]. */
function scaledRows(tensor: DenseTensor, factors: Float32Array | undefined): DenseTensor {
  const cols = tensor.shape[1] ?? 0;
  const data = toFloats(tensor).map((value, i) => value * (factors?.[Math.floor(i / cols)] ?? 1));
  return { dtype: 'f32', shape: tensor.shape, data };
}

/** The same function as a LoRA that shares nothing: D is in A, e in B. */
function materialised(term: LowRankTerm): LowRankTerm {
  assert.equal(term.midMatrix, undefined);
  const { kind, site, scale } = term;
  return { kind, site, scale, a: scaledRows(plain(term.a), term.mid), b: scaledRows(plain(term.b), term.outDiag) };
}

const lowRank = (term: Term): LowRankTerm => (term.kind === 'lowrank' ? term : assert.fail(term.kind));
const rowCol = (term: Term): RowColTerm => (term.kind === 'rowcol' ? term : assert.fail(term.kind));

/** Other numbers in the place of λ, the projections as they are. */
function withOtherLambda(term: LowRankTerm): LowRankTerm {
  const other = (values: Float32Array | undefined): Float32Array | undefined =>
    values?.map((value, i) => value * (i % 2 === 0 ? 1.5 : -0.5));
  const [mid, outDiag] = [other(term.mid), other(term.outDiag)];
  return { ...term, ...(mid === undefined ? {} : { mid }), ...(outDiag === undefined ? {} : { outDiag }) };
}

/** Rows or columns from `first` to `end` of an S²FT term, times `factor`. */
function part(term: RowColTerm, [first, end]: readonly [number, number], factor = 1): RowColTerm {
  const [rows = 0, cols = 0] = term.values.shape;
  const all = toFloats(plain(term.values));
  const width = end - first;
  const data =
    term.side === 'out'
      ? all.slice(first * cols, end * cols)
      : Float32Array.from(
          { length: rows * width },
          (_, i) => all[Math.floor(i / width) * cols + first + (i % width)] ?? NaN,
        );
  const shape = term.side === 'out' ? [width, cols] : [rows, width];
  const values: DenseTensor = { dtype: 'f32', shape, data: data.map((value) => value * factor) };
  return { ...term, index: term.index.slice(first, end), values };
}

/** All sets and the base in one batch; each row also alone, with the same bits. */
async function batched(engine: TestEngine, sets: readonly (readonly Term[])[]): Promise<Float32Array[][]> {
  const loaded = await Promise.all(sets.map((terms) => loadTermSet(engine.engine, { terms })));
  const make = (): TestSequence[] => [
    ...loaded.map((terms) => new TestSequence([...PROMPT], { terms })),
    new TestSequence([...PROMPT]),
  ];
  const together = await forcedLogits(engine, make(), { chunk: 4 });
  assertSame(together, await alone({ test: engine, make }), 'alone');
  for (const { handle } of loaded) engine.engine.freeTerms(handle);
  return together;
}

function distance(found: readonly Float32Array[] = [], wanted: readonly Float32Array[] = []): number {
  assert.ok(found.length === PROMPT.length && wanted.length === PROMPT.length);
  return Math.max(
    ...wanted.map((row, i) => {
      const largest = row.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
      return row.reduce((max, value, k) => Math.max(max, Math.abs(value - (found[i]?.[k] ?? NaN))), 0) / largest;
    }),
  );
}

function assertNear(found: readonly Float32Array[] | undefined, wanted: readonly Float32Array[] | undefined): void {
  const off = distance(found, wanted);
  assert.ok(off <= TOLERANCE, `off by ${off.toExponential(2)} of max|logit|`);
}

function check(isa: string): void {
  describe(`one function said in two ways, ${isa}`, () => {
    let engine: TestEngine;
    before(async () => {
      engine = await openTestEngine(await openCheckpoint(path.join(GOLDENS, 'models', MODEL)), { isa });
    });
    after(() => {
      engine.engine.dispose();
    });

    const compiled = (kind: string): Promise<TermSet> =>
      compileFolder(engine, path.join(GOLDENS, 'kinds', MODEL, kind));

    const logitsOf = (...sets: readonly (readonly Term[])[]): Promise<Float32Array[][]> => batched(engine, sets);

    for (const kind of ['vera', 'pvera', 's2lora']) {
      test(`${kind}: shared projections equal the LoRA that they stand for, with two λ in one batch`, async () => {
        const first = (await compiled(kind)).terms.map(lowRank);
        assert.ok(first.every(({ a, b }) => a.shared !== undefined && b.shared !== undefined));
        const second = first.map(withOtherLambda);
        const [plainFirst, plainSecond] = [first.map(materialised), second.map(materialised)];
        const [one, two, plainOne, plainTwo, base] = await logitsOf(first, second, plainFirst, plainSecond);
        assertNear(one, plainOne);
        assertNear(two, plainTwo);
        assert.ok(distance(one, two) > 1e-3 && distance(one, base) > 1e-3, 'λ counts');
      });
    }

    test('ComPEFT: ternary factors equal the dense product s · c² · T_B T_A', async () => {
      const packed = (await compiled('compeft-lora')).terms.map(lowRank);
      assert.ok(packed.every(({ a, b }) => a.dtype === 'ternary' && b.dtype === 'ternary'));
      const [ternary, dense, base] = await logitsOf(packed, packed.map(materialised));
      assertNear(ternary, dense);
      assert.ok(distance(ternary, base) > 1e-3);
    });

    test('S²FT: disjoint parts equal the whole, and on common rows and columns the parts are summed', async () => {
      const whole = (await compiled('s2ft')).terms.map(rowCol);
      assert.ok(whole.every(({ index }) => index.length > 1));
      const disjoint = whole.flatMap((term) => {
        const middle = Math.ceil(term.index.length / 2);
        return [part(term, [0, middle]), part(term, [middle, term.index.length])];
      });
      const overlapping = whole.flatMap((term) => {
        const { length } = term.index;
        return [part(term, [0, length], 0.25), part(term, [0, 1], 0.75), part(term, [1, length], 0.75)];
      });
      const [all, fused, summed, base] = await logitsOf(whole, disjoint, overlapping);
      assertNear(fused, all);
      assertNear(summed, all);
      assert.ok(distance(all, base) > 1e-3);
    });
  });
}

for (const isa of testedIsas()) check(isa);
