/** `manyfold bench` as a user types it, against the load test's own mock server. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { readReport } from '../../loadtest/report/read-report.js';
import { startMock } from '../../loadtest/testing/start-mock.js';
import type { MockServer } from '../../loadtest/testing/start-mock.js';
import { systemClock } from '../core/clock.js';
import { runCli } from './program.js';

interface Run {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

async function manyfold(...argv: readonly string[]): Promise<Run> {
  const text = { stdout: '', stderr: '' };
  const streams = { stdin: new PassThrough(), stdout: new PassThrough(), stderr: new PassThrough() };
  streams.stdout.setEncoding('utf8').on('data', (chunk: string) => (text.stdout += chunk));
  streams.stderr.setEncoding('utf8').on('data', (chunk: string) => (text.stderr += chunk));
  const exitCode = await runCli({
    argv,
    env: {},
    readFile: (path) => readFileSync(path, 'utf8'),
    ...streams,
    clock: systemClock,
    serve: () => Promise.reject(new Error('bench serves nothing')),
    fetchModel: () => Promise.reject(new Error('bench fetches nothing')),
  });
  return { exitCode, ...text };
}

describe('manyfold bench', () => {
  let mock: MockServer;
  let folder: string;
  let scenario: string;
  before(async () => {
    mock = await startMock({
      ttftMs: { kind: 'fixed', value: 10 },
      itlMs: { kind: 'fixed', value: 5 },
      adapters: ['a', 'b'],
    });
    folder = mkdtempSync(join(tmpdir(), 'manyfold-bench-'));
    scenario = join(folder, 'small.yaml');
    writeFileSync(
      scenario,
      `name: small
target: { url: ${mock.url} }
arrivals: { kind: constant, rate: 20, duration: 2 }
adapters: { kind: uniform, from-server: true }
output: { tokens: 4 }
`,
    );
  });
  after(async () => {
    await mock.stop();
    rmSync(folder, { recursive: true });
  });

  test('prints a table and writes what was asked', async () => {
    const out = join(folder, 'before');
    const { exitCode, stdout, stderr } = await manyfold('bench', scenario, '--out', out, '--api-key', 's3cret');
    assert.equal(exitCode, 0, stdout);
    assert.match(stdout, /TTFT/);
    assert.match(stdout, /40 measured/);
    for (const name of ['report.json', 'requests.csv', 'summary.csv', 'report.html', 'trace.jsonl']) {
      assert.ok(stderr.includes(join(out, name)), name);
      const text = readFileSync(join(out, name), 'utf8');
      assert.ok(text.length > 100, name);
      assert.ok(!text.includes('s3cret'), `${name} holds the key`);
    }
    const report = await readReport(out);
    assert.equal(report.run.command, `manyfold bench ${scenario} --out ${out} --api-key KEY`);
    assert.equal(report.total.ok, 40);
    assert.equal(report.run.scenarioText, readFileSync(scenario, 'utf8'));
  });

  test('plays its own trace back', async () => {
    const replay = join(folder, 'replay.yaml');
    writeFileSync(
      replay,
      `name: replay\ntarget: { url: ${mock.url} }\narrivals: { kind: trace, file: before/trace.jsonl }\n`,
    );
    const { exitCode, stdout } = await manyfold('bench', replay, '--json', '--out', join(folder, 'after'));
    assert.equal(exitCode, 0, stdout);
    const [first, second] = [await readReport(join(folder, 'before')), await readReport(join(folder, 'after'))];
    const prompts = ({ trace }: typeof first): unknown[] => trace.requests.map(({ promptSeed }) => promptSeed);
    assert.deepEqual(prompts(second), prompts(first));
  });

  test('compares two runs and draws a sweep', async () => {
    const runs = [join(folder, 'before'), join(folder, 'after')] as const;
    const compared = await manyfold('bench', 'compare', ...runs, '--out', join(folder, 'compared'));
    assert.equal(compared.exitCode, 0, compared.stderr);
    assert.match(compared.stdout, /TTFT/);
    assert.match(compared.stderr, /comparison\.html/);
    const within = await manyfold('bench', 'compare', runs[0], '--adapters', 'a,b');
    assert.equal(within.exitCode, 0, within.stderr);
    assert.match(within.stdout, /small, a [^]*small, b /);
    const swept = await manyfold('bench', 'sweep', ...runs, '--out', join(folder, 'sweep'));
    assert.equal(swept.exitCode, 0, swept.stderr);
    assert.match(swept.stderr, /sweep\.html/);
  });

  test('refuses with a sentence and exit code 2', async () => {
    writeFileSync(join(folder, 'wrong.yaml'), 'name: x\narivals: {}\n');
    const cases: readonly (readonly [readonly string[], RegExp])[] = [
      [[join(folder, 'wrong.yaml')], /line 2: arivals: unknown key\. Did you mean arrivals\?/],
      [[join(folder, 'absent.yaml')], /absent\.yaml cannot be read/],
      [[scenario, '--url', 'http://198.51.100.7'], /198\.51\.100\.7 is not this machine.*--allow-remote/],
      [[scenario, '--url', 'nonsense'], /--url expects an address/],
      [[scenario, '--seed', '-1'], /whole number of 0 or more/],
      [['compare', join(folder, 'absent'), folder], /absent/],
      [['compare', join(folder, 'before')], /expects two runs, or one run and --adapters/],
      [['compare', join(folder, 'before'), '--adapters', 'a,c'], /no request of adapter 'c', but of [ab], [ab]\./],
      [['compare', join(folder, 'before'), '--adapters', 'a'], /two names with a comma/],
    ];
    for (const [argv, pattern] of cases) {
      const { exitCode, stderr } = await manyfold('bench', ...argv);
      assert.equal(exitCode, 2, argv.join(' '));
      assert.match(stderr, pattern);
    }
  });

  test('a run that is not valid ends with exit code 1, and is reported', async () => {
    const { exitCode, stdout } = await manyfold('bench', scenario, '--url', mock.url, '--seed', '3', '--quiet');
    assert.equal(exitCode, 0);
    assert.match(stdout, /seed 3/);
    const dead = join(folder, 'dead.yaml');
    writeFileSync(
      dead,
      'name: dead\ntarget: { url: http://127.0.0.1:1 }\narrivals: { kind: constant, rate: 20, requests: 5 }\n',
    );
    const failed = await manyfold('bench', dead);
    assert.equal(failed.exitCode, 1);
    assert.match(failed.stdout, /unreachable/);
  });

  test('Ctrl-C ends the run and reports what ran', async () => {
    const long = join(folder, 'long.yaml');
    writeFileSync(long, readFileSync(scenario, 'utf8').replace('duration: 2', 'duration: 600'));
    const main = fileURLToPath(new URL('./main.js', import.meta.url));
    const out = join(folder, 'long');
    const child = spawn(process.execPath, [main, 'bench', long, '--json', '--out', out], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    child.stdout.resume();
    child.stderr.resume();
    const seen = (await mock.log()).length;
    // The load has begun when the mock has something to do.
    while ((await mock.log()).length < seen + 10) await new Promise((resolve) => setTimeout(resolve, 50));
    child.kill('SIGINT');
    const [code] = (await once(child, 'exit')) as [number | null];
    assert.equal(code, 1);
    const report = await readReport(out);
    assert.equal(report.run.interrupted, true);
    assert.ok(report.total.ok > 0);
  });
});
