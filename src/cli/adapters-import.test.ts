import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { PassThrough } from 'node:stream';
import { after, before, test } from 'node:test';
import { runCli } from './program.js';

const BASE = 'test/goldens/s2ft/mha/base';
const CHECKPOINT = 'test/goldens/s2ft/mha/checkpoint';

let root = '';
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-adapters-cli-'));
});
after(() => rm(root, { recursive: true, force: true }));

async function manyfold(...argv: string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  const streams = { stdin: new PassThrough(), stdout: new PassThrough(), stderr: new PassThrough() };
  const text = { stdout: '', stderr: '' };
  streams.stdout.setEncoding('utf8').on('data', (chunk: string) => (text.stdout += chunk));
  streams.stderr.setEncoding('utf8').on('data', (chunk: string) => (text.stderr += chunk));
  const exitCode = await runCli({
    argv: ['adapters', ...argv],
    env: {},
    readFile: () => assert.fail('no configuration is read'),
    ...streams,
    clock: { nowMs: () => 0, unixSeconds: () => 0 },
    serve: () => assert.fail('nothing is served'),
    fetchModel: () => assert.fail('nothing is fetched'),
  });
  return { exitCode, ...text };
}

test('import s2ft: progress and the table on stderr, the folder on stdout', async () => {
  const out = path.join(root, 'imported');
  const run = await manyfold('import', 's2ft', '--base', BASE, '--checkpoint', CHECKPOINT, '--out', out);
  assert.equal(run.exitCode, 0, run.stderr);
  assert.equal(run.stdout, `${out}\n`);
  assert.match(run.stderr, /^layer 1 of 3\nlayer 2 of 3\nlayer 3 of 3\nlayer {2}v rows/);
  assert.match(run.stderr, /\n0 +4 \(1 head\) +4 \(1 head\) +2 +3 +heads permuted, FFN permuted\n/);
  assert.match(run.stderr, /Residual elsewhere: max\|Δ\| = 0\.\nExact: /);
  assert.deepEqual(await readdir(out), ['adapter_config.json', 'adapter_model.safetensors']);
  const again = await manyfold('import', 's2ft', '--base', BASE, '--checkpoint', CHECKPOINT, '--out', out);
  assert.equal(again.exitCode, 2);
  assert.match(again.stderr, /^manyfold: --out .* holds files, expected a folder that is empty or does not exist/);
});

test('extract: the same checkpoint, taken as a dense fine-tune, is said to be an approximation', async () => {
  const out = path.join(root, 'extracted');
  const run = await manyfold('extract', '--base', BASE, '--finetuned', CHECKPOINT, '--out', out, '--rank', '3');
  assert.equal(run.exitCode, 0, run.stderr);
  assert.equal(run.stdout, `${out}\n`);
  assert.match(run.stderr, /^comparing model\.embed_tokens\.weight\n/);
  assert.match(run.stderr, /decomposing model\.layers\.0\.self_attn\.q_proj\.weight\n/);
  assert.match(run.stderr, /LORA, \d+ bytes of tensors\. An approximation: .* Raise --rank/);
  assert.match(run.stderr, /appended ones are left out/);
});

test('what is missing or wrong is said, with the exit code of a wrong command line', async () => {
  const wrong: Record<string, string[]> = {
    '--base <DIR>': ['import', 's2ft', '--checkpoint', 'a', '--out', 'b'],
    '--finetuned <DIR>': ['extract', '--base', 'a', '--out', 'b'],
    'Allowed choices are auto, bf16, f32': [
      'import',
      's2ft',
      '--base',
      'a',
      '--checkpoint',
      'b',
      '--out',
      'c',
      '--dtype',
      'f16',
    ],
    'Give a whole number of 1 to 4096': ['extract', '--base', 'a', '--finetuned', 'b', '--out', 'c', '--rank', '0'],
  };
  for (const [message, argv] of Object.entries(wrong)) {
    const run = await manyfold(...argv);
    assert.equal(run.exitCode, 2);
    assert.ok(run.stderr.includes(message), run.stderr);
  }
  const gone = await manyfold('extract', '--base', 'no/such', '--finetuned', BASE, '--out', path.join(root, 'x'));
  assert.equal(gone.exitCode, 1);
  assert.match(gone.stderr, /no\/such does not exist or cannot be read\. Check the path/);
});
