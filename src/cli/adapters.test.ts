/** `manyfold adapters`: what it prints and how it ends. What the tools make is tested beside them. */
import assert from 'node:assert/strict';
import { access, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { PassThrough } from 'node:stream';
import { after, before, test } from 'node:test';

import type { CliContext } from './context.js';
import { runCli } from './program.js';

let root = '';
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-cli-adapters-'));
});
after(() => rm(root, { recursive: true, force: true }));

const PICKLE = path.join(process.cwd(), 'test', 'goldens', 'kinds', 'llama-gqa', 'composable-sft', 'pytorch_diff.bin');

async function adapters(...argv: string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  const streams = { stdin: new PassThrough(), stdout: new PassThrough(), stderr: new PassThrough() };
  const text = { stdout: '', stderr: '' };
  streams.stdout.setEncoding('utf8').on('data', (chunk: string) => (text.stdout += chunk));
  streams.stderr.setEncoding('utf8').on('data', (chunk: string) => (text.stderr += chunk));
  const context: CliContext = {
    argv: ['adapters', ...argv],
    env: {},
    readFile: (file) => assert.fail(`${file} was read`),
    ...streams,
    clock: { nowMs: () => 0, unixSeconds: () => 0 },
    serve: () => assert.fail('nothing is served'),
    fetchModel: () => assert.fail('no model is fetched'),
  };
  const exitCode = await runCli(context);
  return { exitCode, ...text };
}

test('convert writes the folder and prints its path alone on stdout', async () => {
  const out = path.join(root, 'converted');
  const done = await adapters('convert', 'composable-sft', PICKLE, '--out', out);
  assert.deepEqual(done, { exitCode: 0, stdout: `${out}\n`, stderr: '19 tensors written.\n' });
  await access(path.join(out, 'adapter_config.json'));
  const again = await adapters('convert', 'composable-sft', PICKLE, '--out', out);
  assert.equal(again.exitCode, 2);
  assert.match(again.stderr, /^manyfold: --out .* holds files/);
});

test('convert ends with 1 when a file is refused, and with 2 without --out', async () => {
  const wrong = await adapters('convert', 'pickle', path.join(root, 'none.bin'), '--out', path.join(root, 'b'));
  assert.equal(wrong.exitCode, 1);
  assert.match(wrong.stderr, /^manyfold: .*none.bin does not exist/);
  const missing = await adapters('convert', 'pickle', PICKLE);
  assert.equal(missing.exitCode, 2);
  assert.match(missing.stderr, /required option '--out <DIR>'/);
});
