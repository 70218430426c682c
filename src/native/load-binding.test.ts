import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ManyfoldError } from '../core/errors.js';
import { findNativeFolder, loadFrom, loadNative } from './load-binding.js';

const root = mkdtempSync(join(tmpdir(), 'manyfold-binding-'));
after(() => {
  rmSync(root, { recursive: true });
});

test('the native folder is found from a compiled file at any depth of an output folder', () => {
  const native = join(process.cwd(), 'native');
  assert.equal(findNativeFolder(join(process.cwd(), 'dist', 'src', 'native')), native);
  assert.equal(findNativeFolder(join(process.cwd(), 'dist-any', 'src', 'native')), native);
});

test('an image with the addon alone is found too', () => {
  mkdirSync(join(root, 'image', 'native'), { recursive: true });
  writeFileSync(join(root, 'image', 'native', 'manyfold.linux-x64-gnu.node'), '');
  assert.equal(findNativeFolder(join(root, 'image', 'dist', 'src', 'native')), join(root, 'image', 'native'));
});

test('a missing addon says what was tried and how to build it', () => {
  const folder = join(root, 'empty');
  mkdirSync(folder);
  assert.throws(
    () => loadFrom(folder),
    (error) =>
      error instanceof ManyfoldError &&
      error.code === 'native_unavailable' &&
      error.message.includes(folder) &&
      error.message.includes('npm run build'),
  );
});

test('no native folder at all is told apart', () => {
  assert.equal(findNativeFolder(join(root, 'nowhere', 'a')), undefined);
});

test('the addon is loaded once', () => {
  assert.equal(loadNative(), loadNative());
});
