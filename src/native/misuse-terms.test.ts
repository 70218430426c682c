/** Terms of rows and columns, single entries, block chains and coded tensors that break a rule: a sentence, no crash. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import fc from 'fast-check';
import { SITES } from '../core/model-config.js';
import type { DenseTensor } from '../core/terms.js';
import type { NativeEngine, NativeTerm } from './binding-types.js';
import { loadNative } from './load-binding.js';
import { refusal } from './testing/refusal.js';
import { noise, tinyModel, withFields } from './testing/tiny-engine.js';

const PLACE = { layer: 1, site: SITES.q, scale: 1 } as const;

function dense(...shape: number[]): DenseTensor {
  return { dtype: 'f32', shape, data: noise(shape.reduce((a, b) => a * b, 1)) };
}

/** Good terms for a linear `[16, 16]`. */
const rowcol: NativeTerm = {
  kind: 'rowcol',
  ...PLACE,
  placement: 'in',
  rows: Uint32Array.of(0, 15),
  first: dense(16, 2),
};
const sparse: NativeTerm = {
  kind: 'sparse',
  ...PLACE,
  rowStart: Uint32Array.of(0, ...new Array<number>(16).fill(2)),
  rows: Uint32Array.of(3, 15),
  first: dense(1, 2),
};
const blockdiag: NativeTerm = {
  kind: 'blockdiag',
  ...PLACE,
  placement: 'pre',
  stages: [{ blocks: dense(4, 4, 4) }],
};
const ternary = {
  dtype: 'ternary',
  shape: [16, 2],
  positive: new Uint32Array(16).fill(1),
  negative: new Uint32Array(16).fill(2),
  scale: 0.5,
} as const;
const int8 = {
  dtype: 'int8',
  shape: [16, 2],
  data: new Int8Array(32).fill(-7),
  scales: new Float32Array(16).fill(0.1),
} as const;
const normed: NativeTerm = {
  kind: 'bottleneck',
  ...PLACE,
  site: SITES.residualMlp,
  placement: 'sequential',
  activation: 'relu',
  first: dense(3, 16),
  second: dense(16, 3),
  norm: { weight: noise(16), bias: noise(16), eps: 1e-5 },
};
const mixed: NativeTerm = {
  kind: 'lowrank',
  ...PLACE,
  first: dense(2, 16),
  second: { ...ternary, shared: 'a name' },
  third: dense(2, 2),
};

describe('terms of every kind', () => {
  const { options, remove } = tinyModel();
  let engine: NativeEngine;
  before(async () => {
    engine = await loadNative().createEngine(options);
  });
  after(() => {
    engine.dispose();
    remove();
  });

  async function rejected(term: NativeTerm, fields: Record<string, unknown>, ...parts: string[]): Promise<void> {
    await assert.rejects(
      async () => engine.loadTerms([withFields(term, fields)]),
      refusal('invalid_argument', ...parts),
    );
  }

  test('good ones load, and are freed to the last byte', async () => {
    const handles: number[] = [];
    for (const term of [rowcol, sparse, blockdiag, normed, mixed, withFields(rowcol, { first: int8 })]) {
      handles.push(await engine.loadTerms([term]));
    }
    assert.ok(engine.info().termBytes > 0);
    for (const handle of handles) engine.freeTerms(handle);
    assert.equal(engine.info().termBytes, 0);
  });

  test('coded tensors that do not fit', async () => {
    const first = (tensor: object, fields: object) => ({ first: { ...tensor, ...fields } });
    await rejected(rowcol, first(int8, { data: new Uint8Array(32) }), 'terms[0].first.data', 'Int8Array');
    await rejected(rowcol, first(int8, { data: new Int8Array(31) }), '32 bytes', 'found 31');
    await rejected(rowcol, first(int8, { scales: undefined }), 'terms[0].first.scales');
    await rejected(rowcol, first(int8, { scales: new Float32Array(2) }), '16 scales, found 2');
    await rejected(rowcol, first(ternary, { positive: new Uint32Array(15) }), '16 words, found 15 and 16');
    await rejected(rowcol, first(ternary, { negative: new Uint32Array(16).fill(1) }), 'both planes');
    await rejected(rowcol, first(ternary, { negative: new Uint32Array(16).fill(4) }), 'past the last column');
    await rejected(rowcol, first(ternary, { scale: Infinity }), 'terms[0].first.scale');
    await rejected(rowcol, first(ternary, { shared: 5 }), 'terms[0].first.shared', 'a string');
    await rejected(rowcol, first(ternary, { dtype: 'int4' }), 'terms[0].first.dtype');
  });

  test('indices and shapes that do not fit', async () => {
    await rejected(rowcol, { placement: 'pre' }, 'terms[0].placement');
    await rejected(rowcol, { rows: undefined }, 'rowcol index', 'found none');
    await rejected(rowcol, { rows: Int32Array.of(0, 1) }, 'terms[0].rows', 'Uint32Array');
    await rejected(rowcol, { rows: Uint32Array.of(4, 16) }, 'below 16, found 16');
    await rejected(rowcol, { placement: 'out' }, 'rowcol values', '[2, 16]', '[16, 2]');
    await rejected(sparse, { rowStart: undefined }, 'row starts', 'expected 17, found 0');
    await rejected(sparse, { rows: Uint32Array.of(3, 3) }, 'found 3 after 3');
    await rejected(blockdiag, { stages: undefined }, 'terms[0].stages');
    await rejected(blockdiag, { stages: [] }, 'at least one stage');
    await rejected(blockdiag, { stages: [{ blocks: dense(4, 4) }] }, '[any, any, any]');
    await rejected(blockdiag, { stages: [{ gather: [], blocks: dense(4, 4, 4) }] }, 'terms[0].stages[0].gather');
    await rejected(blockdiag, { rows: new Uint32Array(16).fill(16) }, 'blockdiag output');
    await rejected(blockdiag, { scale: 2 }, 'blockdiag scale');
    await rejected(normed, { norm: { weight: noise(16), bias: noise(15), eps: 1 } }, 'norm bias');
    await rejected(normed, { norm: { weight: noise(16), bias: noise(16) } }, 'terms[0].norm.eps');
    await rejected(mixed, { vectorA: noise(2) }, 'found both');
    await rejected(mixed, { third: dense(3, 2) }, 'mid matrix');
    const twice = async () => engine.loadTerms([blockdiag, blockdiag]);
    await assert.rejects(twice, refusal('invalid_argument', 'term 1', 'at most one'));
  });

  test('no lists of random numbers do harm', async () => {
    const list = fc.array(fc.oneof(fc.integer({ min: 0, max: 20 }), fc.nat()), { maxLength: 40 });
    const load = async (terms: NativeTerm[]) => {
      const handle = await engine.loadTerms(terms).catch((error: unknown) => error);
      if (handle instanceof Error) refusal('invalid_argument')(handle);
      else engine.freeTerms(handle as number);
    };
    await fc.assert(
      fc.asyncProperty(list, list, fc.nat(3), async (rows, rowStart, kind) => {
        const lists = { rows: Uint32Array.from(rows), rowStart: Uint32Array.from(rowStart) };
        const stages = [{ gather: lists.rowStart, blocks: dense(4, 4, 4) }];
        await load([{ ...[rowcol, sparse, blockdiag, mixed][kind]!, ...lists, ...(kind === 2 && { stages }) }]);
      }),
      { numRuns: 200 },
    );
    assert.equal(engine.info().termBytes, 0);
  });
});
