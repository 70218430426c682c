/** Ends of life: dispose, garbage collection, worker threads and their termination, each also in the middle of a step. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import type { LoadOptions, NativeEngine } from './binding-types.js';
import { loadNative } from './load-binding.js';
import { MAX_ROWS, SLOW, tinyModel, tinyPlan } from './testing/tiny-engine.js';

const native = loadNative();

function collectGarbage(): void {
  setFlagsFromString('--expose-gc');
  const collect: unknown = runInNewContext('gc');
  assert.ok(typeof collect === 'function');
  Reflect.apply(collect, undefined, []);
}

function isUnavailable(error: unknown): boolean {
  return (
    error instanceof Error && 'code' in error && error.code === 'unavailable' && error.message.includes('disposed')
  );
}

test('dispose twice, and every call after it', async () => {
  const { options, remove } = tinyModel();
  const engine = await native.createEngine(options);
  engine.dispose();
  engine.dispose();
  assert.throws(() => engine.info(), isUnavailable);
  assert.throws(() => engine.counters(), isUnavailable);
  assert.throws(() => engine.readWeight(-1, 0, 'weight', 0, 1), isUnavailable);
  assert.throws(() => engine.freeTerms(1), isUnavailable);
  assert.throws(() => void engine.step(tinyPlan()), isUnavailable);
  assert.throws(() => void engine.loadTerms([]), isUnavailable);
  remove();
});

test('dispose waits for the running step, whose promise still settles', async () => {
  const { options, remove } = tinyModel(SLOW);
  const engine = await native.createEngine(options);
  const step = engine.step(tinyPlan(MAX_ROWS));
  engine.dispose();
  assert.equal((await step).tokens.length, 1);
  remove();
});

test('an engine that nobody holds is collected, but not while its step runs', async () => {
  const { options, remove } = tinyModel(SLOW);
  const collected: string[] = [];
  const registry = new FinalizationRegistry((name: string) => collected.push(name));
  const startStep = async (): Promise<{ step: ReturnType<NativeEngine['step']> }> => {
    const engine = await native.createEngine(options);
    registry.register(engine, 'engine');
    return { step: engine.step(tinyPlan(MAX_ROWS)) };
  };
  const { step } = await startStep();
  collectGarbage();
  await sleep(1);
  assert.deepEqual(collected, []);
  assert.equal((await step).tokens.length, 1);
  for (let turn = 0; turn < 50 && collected.length === 0; turn += 1) {
    collectGarbage();
    await sleep(10);
  }
  assert.deepEqual(collected, ['engine']);
  remove();
});

test('two engines live side by side', async () => {
  const { options, remove } = tinyModel();
  const [a, b] = await Promise.all([native.createEngine(options), native.createEngine(options)]);
  const [first, second] = await Promise.all([a.step(tinyPlan()), b.step(tinyPlan())]);
  assert.deepEqual(first.logprobs, second.logprobs);
  a.dispose();
  assert.equal((await b.step(tinyPlan())).tokens[0], first.tokens[0]);
  b.dispose();
  remove();
});

function startWorker(options: LoadOptions, rows: number, steps: number): Worker {
  return new Worker(new URL('./testing/step-worker.js', import.meta.url), { workerData: { options, rows, steps } });
}

test('a worker thread runs an engine of its own and ends by itself', async () => {
  const { options, remove } = tinyModel();
  const here = await native.createEngine(options);
  const expected = await here.step(tinyPlan());
  const messages: unknown[] = [];
  const worker = startWorker(options, 3, 2);
  worker.on('message', (message) => messages.push(message));
  const [code] = (await once(worker, 'exit')) as [number];
  assert.equal(code, 0);
  assert.deepEqual(messages, ['loaded', [...expected.tokens], [...expected.tokens]]);
  assert.equal((await here.step(tinyPlan())).tokens[0], expected.tokens[0]);
  here.dispose();
  remove();
});

test('a worker is terminated while its step runs', async () => {
  const { options, remove } = tinyModel(SLOW);
  for (let round = 0; round < 3; round += 1) {
    const worker = startWorker(options, MAX_ROWS, 1000);
    await once(worker, 'message');
    await sleep(round * 20);
    await worker.terminate();
  }
  const here = await native.createEngine(options);
  assert.equal((await here.step(tinyPlan())).tokens.length, 1);
  here.dispose();
  remove();
});

test('a worker is terminated while it loads', async () => {
  const { options, remove } = tinyModel(SLOW);
  const worker = startWorker(options, 3, 1);
  await once(worker, 'online');
  await worker.terminate();
  remove();
  assert.equal(native.info().pageTokens, 16);
});
