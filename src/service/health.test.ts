import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Merge } from './merge.js';
import { makeFixture } from './testing/fixture.js';

test('health fails when work waits and no step has ended for 60 s', () => {
  const { engine, service } = makeFixture();
  engine.stalledMs = 59_999;
  assert.equal(service.liveness().ok, true);
  engine.stalledMs = 60_000;
  const answer = service.liveness();
  assert.equal(answer.ok, false);
  assert.match(answer.reason, /No step has ended for 60 s.*Restart the server\.$/);
  assert.equal(service.readiness().ok, false);
});

test('a draining server lives but is not ready', async () => {
  const { service } = makeFixture();
  assert.equal(service.readiness().ok, true);
  await service.lifecycle.drain();
  assert.equal(service.readiness().ok, false);
  assert.equal(service.liveness().ok, true);
});

test('merge asks each source for one event at a time and hands out failures', async () => {
  let asked = 0;
  async function* counted(): AsyncGenerator<number> {
    for (asked = 1; ; asked += 1) yield asked;
  }
  async function* broken(): AsyncGenerator<number> {
    yield -1;
    throw new Error('broken');
  }
  const merge = new Merge([counted(), broken()]);
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual([asked, merge.ready.length], [1, 2]);
  assert.deepEqual(await merge.next(), { source: 0, value: 1 });
  assert.deepEqual(await merge.next(), { source: 1, value: -1 });
  assert.equal(asked, 2);
  const kinds = [await merge.next(), await merge.next()].map((item) =>
    item?.failure === undefined ? 'value' : 'failure',
  );
  assert.deepEqual(kinds.sort(), ['failure', 'value']);
});
