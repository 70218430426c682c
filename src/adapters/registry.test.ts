import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, realpath, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { ManyfoldError } from '../core/errors.js';
import { DEFAULT_ADAPTER_LIMITS } from './adapter-folder.js';
import { AdapterRegistry } from './registry.js';
import { writeAdapter } from './testing/peft-folder.js';

let root = '';
before(async () => {
  root = await realpath(await mkdtemp(path.join(tmpdir(), 'manyfold-registry-')));
});
after(() => rm(root, { recursive: true, force: true }));

function registryOf(directory: string | undefined): AdapterRegistry {
  return new AdapterRegistry({
    root: directory,
    reservedNames: ['base'],
    baseFingerprint: 'f',
    limits: DEFAULT_ADAPTER_LIMITS,
    clock: { nowMs: () => 0, unixSeconds: () => 7 },
  });
}

function hasCode(code: string): (error: unknown) => boolean {
  return (error) => error instanceof ManyfoldError && error.code === code;
}

test('names move at once, and what was resolved before keeps its version', async () => {
  const store = path.join(root, 'moves');
  await writeAdapter(path.join(store, 'one'));
  await writeAdapter(path.join(store, 'two'), { config: { lora_alpha: 9 } });
  const registry = registryOf(store);
  const name = registry.checkName('support');
  const one = await registry.inspect(name, 'one');
  const two = await registry.inspect(name, 'two');
  assert.equal(registry.resolve('support'), undefined);
  registry.publish(one);
  const held = registry.resolve('support');
  registry.publish(two);
  assert.equal(held?.version, one.version);
  assert.equal(registry.resolve('support')?.version, two.version);
  assert.deepEqual(
    registry.list().map(({ createdSeconds, directory }) => [createdSeconds, directory]),
    [[7, path.join(store, 'two')]],
  );
  assert.equal(registry.remove('support'), two);
  assert.equal(registry.remove('support'), undefined);
});

test('names that break the rule or are the base are refused', () => {
  const registry = registryOf(root);
  const paths = ['../x', '..', '.', '.x', 'a/../b', 'a/./b', 'a\\b', '/a', 'a/', 'a//b', 'a%2f..%2fb', 'a\0', 'a\n'];
  const alike = ['é', '\uff41', 'a\u202eb', '\u0430', 'a\u2215b'];
  for (const name of ['', 'a:b', 'a@1', '-x', 'base', 'x'.repeat(129), ...paths, ...alike]) {
    assert.throws(() => registry.checkName(name), hasCode('invalid_user_input'), name);
  }
  assert.equal(registry.checkName('team-a/support.v1'), 'team-a/support.v1');
});

test('a request can name only what lies under the adapter folder; the operator may name anything', async () => {
  const outside = await writeAdapter(path.join(root, 'elsewhere', 'x'));
  const registry = registryOf(path.join(root, 'moves'));
  const name = registry.checkName('x');
  await assert.rejects(registry.inspect(name, outside), hasCode('forbidden'));
  await assert.rejects(registry.inspect(name, 'nothing'), hasCode('not_found'));
  await assert.rejects(registryOf(undefined).inspect(name, 'one'), hasCode('forbidden'));
  assert.equal((await registry.inspectAnywhere(name, outside)).directory, outside);
  await assert.rejects(registry.inspectAnywhere(name, path.join(root, 'nothing')), hasCode('not_found'));
});

test('a scan finds every adapter folder by its path and follows no link', async () => {
  const store = path.join(root, 'scan');
  await writeAdapter(path.join(store, 'b'));
  await writeAdapter(path.join(store, 'team', 'a'));
  await writeAdapter(path.join(store, '.hidden', 'c'));
  await mkdir(path.join(store, 'empty'));
  await symlink(path.join(root, 'moves', 'one'), path.join(store, 'link'));
  const found = await registryOf(store).scan();
  assert.deepEqual(
    found.map(({ name }) => name),
    ['b', 'team/a'],
  );
  assert.deepEqual(await registryOf(undefined).scan(), []);
  await assert.rejects(registryOf(path.join(store, 'missing')).scan(), hasCode('invalid_config'));
});

test('a refused folder is listed with its reason until a good one takes the name', async () => {
  const store = path.join(root, 'refused');
  const directory = await writeAdapter(path.join(store, 'bad'), { config: { use_dora: true } });
  const registry = registryOf(store);
  registry.refuse('bad', directory, new ManyfoldError('invalid_adapter', 'use_dora. Merge it.'));
  assert.deepEqual(registry.refused(), [
    { name: 'bad', directory, error: { code: 'invalid_adapter', message: 'use_dora. Merge it.' } },
  ]);
  const good = await registry.inspect(registry.checkName('bad'), 'bad');
  registry.publish(good);
  assert.deepEqual(registry.refused(), []);
  registry.refuse('bad', directory, new Error('late'));
  assert.deepEqual(registry.refused(), []);
});

test('a folder that cannot be read is listed and the scan goes on', async () => {
  const store = path.join(root, 'locked');
  await writeAdapter(path.join(store, 'good'));
  await mkdir(path.join(store, 'secret'));
  await chmod(path.join(store, 'secret'), 0o000);
  const registry = registryOf(store);
  assert.deepEqual(
    (await registry.scan()).map(({ name }) => name),
    ['good'],
  );
  // Root reads everything, so for root there is nothing to refuse.
  const unreadable = process.getuid?.() === 0 ? [] : ['secret'];
  assert.deepEqual(
    registry.refused().map(({ name }) => name),
    unreadable,
  );
  await chmod(path.join(store, 'secret'), 0o700);
});
