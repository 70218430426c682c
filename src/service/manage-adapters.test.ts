import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManyfoldError } from '../core/errors.js';
import { completion, makeFixture } from './testing/fixture.js';
import type { Fixture } from './testing/fixture.js';

async function refused(promise: Promise<unknown>): Promise<[string, number, string]> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof ManyfoldError, String(error));
    return [error.type, error.status, error.message];
  }
  return assert.fail('nothing was refused');
}

function load(fixture: Fixture, name: string | undefined, path: string | undefined, inPlace = false): Promise<unknown> {
  return fixture.service.manageAdapters.load({ name, path, inPlace });
}

test('a loaded adapter is served under its name with its version, then not any more', async () => {
  const fixture = makeFixture();
  await load(fixture, 'tenant-a', 'a');
  const version = fixture.adapters.resolve('tenant-a')?.version;
  const generation = await fixture.service.generate(completion('x', { model: 'tenant-a' }), {
    signal: new AbortController().signal,
    record: fixture.record(),
  });
  for await (const event of generation.events) assert.notEqual(event.type, 'failed');
  assert.equal(generation.model, 'tenant-a');
  assert.equal(fixture.engine.requests[0]?.adapter, version);
  assert.match(generation.fingerprint, /^fp_ba5eba5eba_[0-9a-f]{10}$/);
  await fixture.service.manageAdapters.unload('tenant-a');
  assert.deepEqual(fixture.engine.released, [version]);
  assert.throws(() => fixture.service.models.resolve('tenant-a'), { code: 'model_not_found' });
});

test('every refusal has the type, status and text of the contract', async () => {
  const fixture = makeFixture();
  await load(fixture, 'tenant-a', 'a');
  const both = "Both 'lora_name' and 'lora_path' must be provided.";
  assert.deepEqual(await refused(load(fixture, undefined, 'a')), ['InvalidUserInput', 400, both]);
  assert.deepEqual(await refused(load(fixture, 'b', '')), ['InvalidUserInput', 400, both]);
  const taken =
    "The lora adapter 'tenant-a' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.";
  assert.deepEqual(await refused(load(fixture, 'tenant-a', 'b')), ['InvalidUserInput', 400, taken]);
  assert.deepEqual((await refused(load(fixture, 'c', 'missing'))).slice(0, 2), ['NotFoundError', 404]);
  assert.deepEqual((await refused(load(fixture, 'c', 'broken'))).slice(0, 2), ['BadRequestError', 400]);
  assert.deepEqual((await refused(load(fixture, '../x', 'a'))).slice(0, 2), ['BadRequestError', 400]);
  assert.deepEqual((await refused(load(fixture, 'toy', 'a'))).slice(0, 2), ['BadRequestError', 400]);
  const { manageAdapters } = fixture.service;
  const needed = "'lora_name' needs to be provided to unload a LoRA adapter.";
  assert.deepEqual(await refused(manageAdapters.unload(undefined)), ['InvalidUserInput', 400, needed]);
  const unknown = "The lora adapter 'nobody' cannot be found.";
  assert.deepEqual(await refused(manageAdapters.unload('nobody')), ['NotFoundError', 404, unknown]);
});

test('what the engine notes of an adapter is logged; a refused one is told with its reason', async () => {
  const fixture = makeFixture();
  fixture.engine.notes = ['B is all zero.'];
  await load(fixture, 'tenant-a', 'a');
  const line = fixture.log.find((entry) => entry['msg'] === 'adapter notes');
  assert.deepEqual([line?.['adapter'], line?.['notes']], ['tenant-a', ['B is all zero.']]);
  fixture.adapters.broken.push({ name: 'dora', error: { code: 'invalid_adapter', message: 'It is DoRA. Merge it.' } });
  const told = { code: 'bad_request', message: /'dora' was found but could not be loaded: It is DoRA\. Merge it\.$/ };
  assert.throws(() => fixture.service.models.resolve('dora'), told);
  assert.throws(() => fixture.service.models.card('dora'), told);
});

test('loading in place moves the name and releases the old version; a shared version stays', async () => {
  const fixture = makeFixture();
  await load(fixture, 'a', 'one');
  await load(fixture, 'b', 'one');
  const one = fixture.adapters.resolve('a')?.version;
  await load(fixture, 'a', 'two', true);
  assert.deepEqual(fixture.engine.released, []);
  assert.notEqual(fixture.adapters.resolve('a')?.version, one);
  await fixture.service.manageAdapters.unload('b');
  assert.deepEqual(fixture.engine.released, [one]);
});

test('an adapter that the engine refuses keeps the old version under its name', async () => {
  const fixture = makeFixture();
  await load(fixture, 'a', 'one');
  const before = fixture.adapters.resolve('a');
  fixture.engine.onLoad = () => Promise.reject(new ManyfoldError('invalid_adapter', 'Rank 99. Use a smaller one.'));
  assert.deepEqual(await refused(load(fixture, 'a', 'two', true)), [
    'BadRequestError',
    400,
    'Rank 99. Use a smaller one.',
  ]);
  assert.equal(fixture.adapters.resolve('a'), before);
  assert.deepEqual(fixture.engine.released, []);
});

test('an unload waits for a load of the same version and then does not release what is named', async () => {
  const fixture = makeFixture();
  await load(fixture, 'a', 'one');
  let finish: () => void = () => undefined;
  fixture.engine.onLoad = () => new Promise((resolve) => (finish = resolve));
  const loading = load(fixture, 'b', 'one');
  await new Promise((resolve) => setImmediate(resolve));
  const unloading = fixture.service.manageAdapters.unload('a');
  await new Promise((resolve) => setImmediate(resolve));
  finish();
  await Promise.all([loading, unloading]);
  assert.deepEqual(fixture.engine.released, []);
  assert.equal(fixture.adapters.list().length, 1);
});

test('changes of one name happen one after the other', async () => {
  const fixture = makeFixture();
  const answers = await Promise.allSettled([
    load(fixture, 'a', 'one'),
    load(fixture, 'a', 'two'),
    load(fixture, 'a', 'x', true),
  ]);
  assert.deepEqual(
    answers.map((answer) => answer.status),
    ['fulfilled', 'rejected', 'fulfilled'],
  );
  assert.equal(fixture.adapters.resolve('a')?.directory, '/adapters/x');
});
