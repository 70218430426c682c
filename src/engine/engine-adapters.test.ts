/** What others got wrong with adapters under load; each a regression test of the engine behind its port. */
import assert from 'node:assert/strict';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { test } from 'node:test';

import { closeClean, loadAdapter, makeHarness, prompt, request, run, version } from './testing/harness.js';

test('an adapter that is not loaded is an error, never the base', async () => {
  const harness = makeHarness();
  const { last } = await run(harness.engine, request(prompt(4), {}, { adapter: version(1) }));
  assert.equal(last.type === 'failed' && last.error.code, 'model_not_found');
  assert.equal(harness.native.steps, 0);
  await closeClean(harness);
});

test('a released adapter serves what holds it to the end, then its memory goes', async () => {
  const harness = makeHarness();
  const { engine, native } = harness;
  const quiet = makeHarness();
  const expected = await run(
    quiet.engine,
    request(prompt(12), { maxTokens: 20 }, { adapter: await loadAdapter(quiet.engine, 1) }),
  );
  await closeClean(quiet);

  const adapter = await loadAdapter(engine, 1);
  const held = run(engine, request(prompt(12), { maxTokens: 20 }, { adapter }));
  for (let turn = 0; turn < 4; turn += 1) await nextTurn();
  await engine.release(adapter);
  const late = await run(engine, request(prompt(12), {}, { adapter }));
  assert.equal(late.last.type === 'failed' && late.last.error.code, 'model_not_found');
  assert.deepEqual(
    engine.stats().residentAdapters.map(({ leases }) => leases),
    [1],
  );
  await loadAdapter(engine, 2);
  assert.deepEqual((await held).tokens, expected.tokens);
  assert.deepEqual(
    engine.stats().residentAdapters.map((one) => one.version),
    [version(2)],
  );
  assert.equal(native.info().termSets, 1);
  await closeClean(harness);
});

test('loads and unloads during a generation change nothing for it, and read each folder once', async () => {
  const quiet = makeHarness();
  const alone = await run(quiet.engine, request(prompt(12), { maxTokens: 40 }));
  await closeClean(quiet);
  const harness = makeHarness();
  const { engine } = harness;
  const generating = run(engine, request(prompt(12), { maxTokens: 40 }));
  for (let round = 0; round < 10; round += 1) {
    const loads = await Promise.all([loadAdapter(engine, 1), loadAdapter(engine, 1), loadAdapter(engine, 4)]);
    const mixed = loads.map((adapter) => run(engine, request(prompt(5), { maxTokens: 2 }, { adapter })));
    await engine.release(version(1));
    for (const { last } of await Promise.all(mixed)) assert.equal(last.type, 'done');
  }
  assert.deepEqual((await generating).tokens, alone.tokens);
  assert.deepEqual(
    engine.stats().residentAdapters.map((one) => one.version),
    [version(4)],
  );
  assert.equal(harness.reads.get(version(1)), 10, 'once for each load after an unload');
  assert.equal(harness.reads.get(version(4)), 1);
  await closeClean(harness);
});

test('a bad adapter fails its own load and touches nobody else', async () => {
  const harness = makeHarness();
  const { engine, native } = harness;
  const generating = run(engine, request(prompt(12), { maxTokens: 20 }));
  await assert.rejects(loadAdapter(engine, 9), /cannot be compiled/);
  native.beforeLoad = () => {
    throw new Error('does not fit');
  };
  await assert.rejects(loadAdapter(engine, 1), /does not fit/);
  assert.deepEqual(engine.stats().residentAdapters, []);
  assert.equal((await generating).last.type, 'done');
  native.beforeLoad = () => undefined;
  harness.clock.ms += 10_000;
  await loadAdapter(engine, 1);
  await closeClean(harness);
});

test('a prefix that leaves no room for a prompt is refused at load', async () => {
  const harness = makeHarness({ maxModelLen: 5 });
  await assert.rejects(loadAdapter(harness.engine, 3), /prefix takes 5 positions, the longest context has 5/);
  await closeClean(harness);
});
