import assert from 'node:assert/strict';
import path from 'node:path';
import { test } from 'node:test';
import { loadConfig } from '../config/load-config.js';
import { demoAdapterFolder } from './demo-adapters.js';

const DEMO = path.resolve('examples/adapters');

function folderOf(argv: readonly string[], env: Readonly<Record<string, string>> = {}, file = ''): string | undefined {
  return demoAdapterFolder(loadConfig(argv, env, () => file));
}

test('a start that names no model and no adapter serves the demo adapters', () => {
  assert.equal(folderOf([]), DEMO);
  assert.equal(folderOf(['--port', '9000', '--dtype', 'f32']), DEMO);
});

test('whoever names a model or an adapter, in whatever place, gets these alone', () => {
  for (const argv of [['./model'], ['--model', './model'], ['--adapter', 'a=./a'], ['--adapter-dir', './adapters']]) {
    assert.equal(folderOf(argv), undefined, argv.join(' '));
  }
  assert.equal(folderOf([], { MANYFOLD_ADAPTER_DIR: './adapters' }), undefined);
  assert.equal(folderOf(['--config', 'manyfold.yaml'], {}, 'model: ./model\n'), undefined);
});
