/** Every rule of an engine's methods that a caller can break: a sentence with the field's name comes back, no crash. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import fc from 'fast-check';
import { SITES } from '../core/model-config.js';
import type { NativeEngine, NativePlan, NativeTerm } from './binding-types.js';
import { loadNative } from './load-binding.js';
import { refusal } from './testing/refusal.js';
import {
  KV_PAGES,
  MAX_ENTRIES,
  MAX_ROWS,
  noise,
  tinyModel,
  tinyPlan,
  VOCAB,
  withFields,
} from './testing/tiny-engine.js';

const native = loadNative();

describe('engine methods', () => {
  const { options, remove } = tinyModel();
  let engine: NativeEngine;
  before(async () => {
    engine = await native.createEngine(options);
  });
  after(() => {
    engine.dispose();
    remove();
  });

  async function refused(fields: Partial<Record<keyof NativePlan, unknown>>, ...parts: string[]): Promise<void> {
    await assert.rejects(
      async () => engine.step(withFields(tinyPlan(), fields)),
      refusal('invalid_argument', ...parts),
    );
  }

  test('a good plan gives a token and its log-probability', async () => {
    const result = await engine.step(tinyPlan());
    const [token = -1] = result.tokens;
    assert.ok(token >= 0 && token < VOCAB);
    assert.deepEqual([...result.ranks], [1]);
    assert.equal(result.topIds.length, 2);
    assert.equal(result.topIds[0], token);
    assert.equal(result.topLogprobs[0], result.logprobs[0]);
    assert.ok(result.stepNs > 0);
  });

  test('rows out of range', async () => {
    await refused({ rowToken: new Float32Array(3) }, 'rowToken', 'Int32Array', 'Float32Array');
    await refused({ rowToken: undefined }, 'rowToken', 'undefined');
    await refused({ rowToken: Int32Array.of(1, 2) }, 'rowToken', 'length 3', 'found 2');
    await refused({ rowToken: Int32Array.of(0, VOCAB, 0) }, 'rowToken[1]', `found ${VOCAB}`);
    await refused({ rowToken: Int32Array.of(0, 0, -1) }, 'rowToken[2]');
    await refused({ rowSequence: Int32Array.of(0, 1, 0) }, 'rowSequence[1]');
    await refused({ rowSequence: Int32Array.of(0, -1, 0) }, 'rowSequence[1]');
    await refused({ rowPosition: Int32Array.of(0, 0, 1) }, 'rowPosition[1]');
    await refused({ rowPosition: Int32Array.of(0, 1, 3) }, 'rowPosition[2]');
    await refused({ rowPosition: Int32Array.of(-1, 1, 2) }, 'rowPosition[0]');
    await refused({ rowTerms: Int32Array.of(0, -1, -1) }, 'rowTerms[0]');
    await refused({ rowGate: Int32Array.of(-1, 0, -1) }, 'rowGate[1]');
    await refused({ gateWidth: -1 }, 'gateWidth');
    await refused({ rankGates: Float32Array.of(1), gateWidth: 2 }, 'rankGates');
    await refused({ embeddings: Float32Array.of(1) }, 'embeddings');
    await assert.rejects(
      engine.step(tinyPlan(MAX_ROWS + 1)),
      refusal('invalid_argument', 'rowPosition', `${MAX_ROWS}`),
    );
  });

  test('runs out of range', async () => {
    await refused({ pages: Int32Array.of(KV_PAGES) }, 'pages[0]');
    await refused({ pages: Int32Array.of(-1) }, 'pages[0]');
    await refused({ pages: new Int32Array(0) }, 'runRef[0]');
    await refused({ runRef: Int32Array.of(1) }, 'runRef[0]');
    await refused({ runRef: Int32Array.of(2 ** 31 - 1) }, 'runRef[0]');
    await refused({ runTokens: Int32Array.of(2) }, 'rowPosition[2]');
    await refused({ runTokens: Int32Array.of(17) }, 'runRef[0]');
    await refused({ runTokens: Int32Array.of(2 ** 31 - 1) }, 'runTokens[0]');
    await refused({ runTokens: Int32Array.of(-5) }, 'runTokens[0]');
    await refused({ runKind: Uint8Array.of(3) }, 'runKind[0]');
    await refused({ runKind: Uint8Array.of(1) }, 'runRef[0]');
    await refused({ sequenceRuns: Int32Array.of(0, 2) }, 'sequenceRuns[1]');
    await refused({ sequenceRuns: Int32Array.of(1, 1) }, 'sequenceRuns[0]');
    await refused({ sequenceRuns: Int32Array.of(0) }, 'sequenceRuns', 'length 2');
    await refused({ sequenceBase: Int32Array.of(4) }, 'sequenceBase[0]');
    await refused({ termSets: Int32Array.of(99) }, 'termSets[0]', '99');
    await refused({ termSets: Int32Array.of(0) }, 'termSets[0]');
  });

  test('two rows may not write one KV slot', async () => {
    const plan = {
      rowSequence: Int32Array.of(0, 0, 1),
      rowPosition: Int32Array.of(0, 1, 0),
      sequenceBase: Int32Array.of(0, 0),
      sequenceRuns: Int32Array.of(0, 1, 2),
      runKind: Uint8Array.of(0, 0),
      runRef: Int32Array.of(0, 0),
      runTokens: Int32Array.of(2, 1),
    };
    await refused(plan, 'KV slot', 'page 0 offset 0');
  });

  test('entries out of range', async () => {
    await refused({ entryRow: Int32Array.of(3) }, 'entryRow[0]');
    await refused({ entryRow: new Int32Array(MAX_ENTRIES + 1) }, 'entryRow', `${MAX_ENTRIES}`);
    await refused({ entryTarget: Int32Array.of(VOCAB) }, 'entryTarget[0]');
    await refused({ entryTarget: Int32Array.of(-3) }, 'entryTarget[0]');
    await refused({ entryTarget: Int32Array.of(-2) }, 'entryTopLogprobs[0]');
    await refused({ entryTopLogprobs: Int32Array.of(VOCAB + 1) }, 'entryTopLogprobs[0]');
    await refused({ entryTopLogprobs: Int32Array.of(-2) }, 'entryTopLogprobs[0]');
    await refused({ entrySeed: new Uint32Array(3) }, 'entrySeed');
    await refused({ entryBias: Int32Array.of(0, 1) }, 'entryBias[1]');
    await refused(
      { entryBias: Int32Array.of(0, 1), biasIds: Int32Array.of(VOCAB), biasValues: Float32Array.of(1) },
      'biasIds[0]',
    );
    await refused(
      { entryBias: Int32Array.of(0, 1), biasIds: Int32Array.of(1), biasValues: Float32Array.of(Number.NaN) },
      'biasValues[0]',
    );
    await refused(
      { entryHistory: Int32Array.of(0, 1), historyIds: Int32Array.of(-1), historyCounts: Int32Array.of(1) },
      'historyIds[0]',
    );
    await refused(
      { entryHistory: Int32Array.of(0, 1), historyIds: Int32Array.of(1), historyCounts: new Int32Array(0) },
      'historyCounts',
    );
    await refused({ entryMask: Int32Array.of(0) }, 'entryMask[0]');
    await refused({ masks: new Uint32Array(1) }, 'masks');
  });

  test('sampling parameters out of range', async () => {
    const good = [1, 0, 1, 0, 1, 0, 0, 0];
    const bad: [number, number][] = [
      [0, -1],
      [0, Number.NaN],
      [0, Infinity],
      [1, -1],
      [1, 0.5],
      [2, 0],
      [2, 1.5],
      [3, -0.1],
      [3, 2],
      [4, 0],
      [5, Number.NaN],
      [6, Infinity],
    ];
    for (const [index, value] of bad) {
      const entryParams = Float32Array.from(good, (v, i) => (i === index ? value : v));
      await refused({ entryParams }, `entryParams[${index}]`);
    }
  });

  test('a refused plan leaves the engine as it was', async () => {
    const first = await engine.step(tinyPlan());
    await refused({ rowToken: Int32Array.of(0, 0, VOCAB) }, 'rowToken[2]');
    const second = await engine.step(tinyPlan());
    assert.deepEqual(second.logprobs, first.logprobs);
  });

  test('no plan of random numbers does harm', async () => {
    const names = Object.keys(tinyPlan()).filter((name) => name !== 'gateWidth') as (keyof NativePlan)[];
    const value = fc.oneof(fc.integer({ min: -3, max: 70 }), fc.integer());
    const change = fc.record({ name: fc.constantFrom(...names), index: fc.nat(8), value, cut: fc.boolean() });
    const run = async (changes: { name: keyof NativePlan; index: number; value: number; cut: boolean }[]) => {
      const plan = tinyPlan();
      const patch: Record<string, unknown> = { gateWidth: plan.gateWidth };
      for (const { name, index, value, cut } of changes) {
        const array = plan[name];
        if (typeof array === 'number') continue;
        if (cut) patch[name] = array.slice(0, index);
        else if (index < array.length) array[index] = value;
      }
      const result = await engine.step(withFields(plan, patch)).catch((error: unknown) => error);
      if (result instanceof Error) return refusal('invalid_argument')(result);
      return undefined;
    };
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), async (changes) => void (await run(changes))),
      { numRuns: 300 },
    );
  });

  test('terms that do not fit', async () => {
    const tensor = (shape: number[], count = shape.reduce((a, b) => a * b, 1)) =>
      ({ dtype: 'f32', shape, data: noise(count) }) as const;
    const lowrank = (fields: Record<string, unknown>): NativeTerm =>
      withFields(
        { kind: 'lowrank', layer: 1, site: SITES.q, scale: 1, first: tensor([2, 16]), second: tensor([16, 2]) },
        fields,
      );
    const rejected = async (terms: readonly NativeTerm[], ...parts: string[]) => {
      await assert.rejects(async () => engine.loadTerms(terms), refusal('invalid_argument', ...parts));
    };
    await rejected([lowrank({ kind: 'highrank' })], 'terms[0].kind');
    await rejected([lowrank({ first: tensor([2, 17]) })], 'term 0 at layer 1 q', 'lowrank A', '[any, 16]', '[2, 17]');
    await rejected([lowrank({ second: tensor([16, 3]) })], 'lowrank B', '[16, 2]', '[16, 3]');
    await rejected([lowrank({ first: tensor([2, 16], 31) })], 'lowrank A', '128 bytes', '124');
    await rejected([lowrank({ first: { dtype: 'bf16', shape: [2, 16], data: new Float32Array(32) } })], 'Uint16Array');
    await rejected([lowrank({ first: undefined })], 'terms[0].first');
    await rejected([lowrank({ layer: 2 })], 'layer 2', 'no such site');
    await rejected([lowrank({ site: SITES.attnNorm })], 'lowrank: expected a linear');
    await rejected([lowrank({ scale: Number.NaN })], 'scale');
    await rejected([lowrank({ vectorA: Float32Array.of(1) })], 'lowrank mid');
    await rejected(
      [lowrank({ first: { dtype: 'f32', shape: [2, 16], data: new Float32Array(32).fill(Number.NaN) } })],
      'finite',
    );
    const diag: NativeTerm = { kind: 'diag', layer: 0, site: SITES.q, scale: 1, vectorA: noise(16) };
    await rejected([diag, diag], 'term 1', 'at most one');
    await rejected(
      [{ kind: 'override', layer: -1, site: SITES.head, scale: 1, rows: Uint32Array.of(3, 3), first: tensor([2, 16]) }],
      'override rows',
    );
    await rejected(
      [
        {
          kind: 'override',
          layer: -1,
          site: SITES.head,
          scale: 1,
          rows: Uint32Array.of(VOCAB),
          first: tensor([1, 16]),
        },
      ],
      'override rows',
    );
    const prefix = (layer: number, n: number): NativeTerm => ({
      kind: 'prefix',
      layer,
      site: SITES.attention,
      scale: 1,
      first: tensor([n, 1, 8]),
      second: tensor([n, 1, 8]),
    });
    await rejected([prefix(0, 2), prefix(1, 3)], 'same number of keys');
    assert.equal(engine.info().termSets, 0);
  });

  test('handles: freed once, not while a step uses them', async () => {
    const diag: NativeTerm = { kind: 'diag', layer: 0, site: SITES.q, scale: 1, vectorA: noise(16) };
    const handle = await engine.loadTerms([diag]);
    assert.equal(engine.info().termSets, 1);
    assert.ok(engine.info().termBytes >= 64);
    const plan = withFields(tinyPlan(), { rowTerms: new Int32Array(3), termSets: Int32Array.of(handle) });
    const step = engine.step(plan);
    assert.throws(() => engine.freeTerms(handle), refusal('invalid_argument', 'running step'));
    await step;
    engine.freeTerms(handle);
    assert.equal(engine.info().termSets, 0);
    assert.equal(engine.info().termBytes, 0);
    assert.throws(() => engine.freeTerms(handle), refusal('invalid_argument', 'handle'));
    assert.throws(() => engine.freeTerms(0), refusal('invalid_argument', 'handle'));
    await assert.rejects(engine.step(plan), refusal('invalid_argument', 'termSets[0]'));
  });

  test('readWeight gives what the file holds, within its bounds', () => {
    const expected = noise(VOCAB * 16, 7).slice(32, 64);
    assert.deepEqual(engine.readWeight(-1, SITES.embedding, 'weight', 2, 2), expected);
    assert.deepEqual(engine.readWeight(-1, SITES.head, 'weight', 2, 2), expected);
    assert.equal(engine.readWeight(0, SITES.mlpNorm, 'weight', 0, 1).length, 16);
    const read =
      (...args: Parameters<NativeEngine['readWeight']>) =>
      () =>
        engine.readWeight(...args);
    assert.throws(read(-1, SITES.embedding, 'weight', VOCAB - 1, 2), refusal('invalid_argument', 'rowCount'));
    assert.throws(read(-1, SITES.embedding, 'weight', VOCAB, 0), refusal('invalid_argument', 'row0'));
    assert.throws(read(-1, SITES.embedding, 'weight', -1, 1), refusal('invalid_argument', 'row0'));
    assert.throws(read(2, SITES.q, 'weight', 0, 1), refusal('invalid_argument', 'layer 2'));
    assert.equal(read(0, SITES.q, 'bias', 0, 1)().length, 0);
    assert.throws(read(0, SITES.attnNorm, 'bias', 0, 1), refusal('invalid_argument', 'bias'));
    assert.throws(read(0, SITES.attention, 'weight', 0, 1), refusal('invalid_argument', 'attention'));
    assert.throws(read(0, 19, 'weight', 0, 1), refusal('invalid_argument', 'site'));
  });

  test('one step at a time', async () => {
    const first = engine.step(tinyPlan());
    assert.throws(() => void engine.step(tinyPlan()), refusal('invalid_argument', 'one at a time'));
    assert.equal((await first).tokens.length, 1);
    assert.equal((await engine.step(tinyPlan())).tokens.length, 1);
  });

  test('arrays may change while the step runs', async () => {
    const expected = await engine.step(tinyPlan());
    const plan = tinyPlan();
    const step = engine.step(plan);
    plan.rowToken.fill(2 ** 30);
    plan.pages.fill(-1);
    const { buffer } = plan.rowPosition;
    assert.ok(buffer instanceof ArrayBuffer);
    structuredClone(buffer, { transfer: [buffer] });
    assert.deepEqual((await step).logprobs, expected.logprobs);
    await assert.rejects(async () => engine.step(plan), refusal('invalid_argument', 'rowPosition'));
  });

  test('methods on a foreign object, and the constructor', () => {
    const foreign = (self: object) => () => engine.info.call(self as NativeEngine);
    assert.throws(foreign({}), /illegal invocation/i);
    assert.throws(foreign(Object.create(engine) as object), /illegal invocation/i);
    assert.throws(foreign(new Map()), /illegal invocation/i);
    const constructor: unknown = Reflect.get(engine, 'constructor');
    assert.ok(typeof constructor === 'function');
    assert.throws(
      () => Reflect.construct(constructor, [engine]) as object,
      refusal('invalid_argument', 'createEngine'),
    );
    assert.throws(() => Reflect.apply(constructor, engine, []) as object, refusal('invalid_argument', 'createEngine'));
  });
});
