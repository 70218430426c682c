/** `manyfold adapters compress` through the program: the folder that it writes, what it says, what it refuses, and a sweep. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { PassThrough } from 'node:stream';
import { after, before, test } from 'node:test';
import type { CliContext } from './context.js';
import { runCli } from './program.js';

const MODEL = path.resolve('test/goldens/models/llama-gqa');
const GOLDEN = path.resolve('test/goldens/kinds/llama-gqa/compeft-lora');
const SOURCE = path.join(GOLDEN, 'source');

let root = '';
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-cli-compress-'));
});
after(() => rm(root, { recursive: true, force: true }));

async function run(...flags: string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  const streams = { stdin: new PassThrough(), stdout: new PassThrough(), stderr: new PassThrough() };
  const text = { stdout: '', stderr: '' };
  streams.stdout.setEncoding('utf8').on('data', (chunk: string) => (text.stdout += chunk));
  streams.stderr.setEncoding('utf8').on('data', (chunk: string) => (text.stderr += chunk));
  const context: CliContext = {
    argv: ['adapters', 'compress', SOURCE, ...flags],
    env: {},
    readFile: (file) => assert.fail(`${file} was read`),
    ...streams,
    clock: { nowMs: () => 0, unixSeconds: () => 0 },
    serve: () => assert.fail('nothing is served'),
    fetchModel: (settings) => Promise.resolve(settings.model ?? assert.fail('no model was named')),
  };
  const exitCode = await runCli(context);
  await new Promise((resolve) => setImmediate(resolve));
  return { exitCode, ...text };
}

test('writes the packed adapter and says what became of its size', async () => {
  const out = path.join(root, 'packed');
  const { exitCode, stdout, stderr } = await run('--density', '0.2', '--scope', 'global', '--out', out);
  assert.equal(exitCode, 0, stderr);
  assert.equal(stdout, `${out}\n`);
  assert.match(
    stderr,
    /^\d+ values, \d+ kept \(2\d\.\d\d %\)\.\n.* → .*: \d+\.\d times smaller, \d\.\d{3} bits a value, /,
  );
  assert.deepEqual((await readdir(out)).sort(), ['adapter_config.json', 'adapter_model.safetensors']);
  const config = async (folder: string): Promise<unknown> =>
    JSON.parse(await readFile(path.join(folder, 'adapter_config.json'), 'utf8')) as unknown;
  assert.deepEqual(await config(out), await config(GOLDEN));
});

test('warns of every tensor of which nothing is left', async () => {
  const { exitCode, stderr } = await run('--density', '0.0001', '--scope', 'global', '--out', path.join(root, 'empty'));
  assert.equal(exitCode, 0);
  assert.match(stderr, /Warning: nothing is left of base_model\S+lora_A\.weight; its module does nothing now\./);
  assert.match(stderr, /Warning: nothing is left of \d more tensors\./);
  assert.match(stderr, /Try --scope tensor, or a higher --density\./);
});

test('sweeps on the base: a line for each density and alpha, nearer to the adapter where more is kept', async () => {
  const { exitCode, stdout, stderr } = await run('--sweep', '--base', MODEL);
  assert.equal(exitCode, 0, stderr);
  assert.match(stdout, /^Uncompressed: perplexity \d+\.\d{3} over \d+ tokens\.\n/);
  const points = [...stdout.matchAll(/^\| (0\.\d+) \| (\S+) \| .* \| (\S+) \| \d+ \|$/gm)];
  assert.equal(points.length, 30);
  const kl = (density: string): number =>
    Number(points.find((point) => point[1] === density && point[2] === 'auto')?.[3] ?? assert.fail('no such point'));
  assert.ok(kl('0.5') < kl('0.1'), `KL ${kl('0.5')} at density 0.5, ${kl('0.1')} at 0.1`);
});

const WRONG: readonly (readonly [readonly string[], RegExp])[] = [
  [[], /--out is missing, expected a folder to write/],
  [['--out', 'x', '--density', '0'], /--density is 0, expected a number above 0 and at most 1/],
  [['--out', 'x', '--density', 'much'], /--density is much/],
  [['--out', 'x', '--alpha', '-1'], /--alpha is -1, expected a number above 0, or auto/],
  [['--out', 'x', '--scope', 'layer'], /--scope is layer, expected tensor or global/],
  [['--sweep'], /--base is missing, expected a model to sweep on/],
  [['--out', SOURCE], /holds files, expected a folder that is empty/],
];
for (const [flags, message] of WRONG) {
  test(`refuses ${
    flags
      .slice(0, 4)
      .map((flag) => path.basename(flag))
      .join(' ') || 'no --out'
  }`, async () => {
    const { exitCode, stderr } = await run(...flags);
    assert.equal(exitCode, 2);
    assert.match(stderr, message);
  });
}
