import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { after, before, test } from 'node:test';
import { ManyfoldError } from '../../src/core/errors.js';
import { compareRuns } from './compare-runs.js';
import { readReport } from './read-report.js';
import { HOSTILE_NAMES } from './testing/fixture-pages.js';
import { fixtureReport } from './testing/report-fixture.js';
import { writeComparison, writeReport, writeSweep } from './write-report.js';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'manyfold-write-'));
});
after(() => rm(folder, { recursive: true, force: true }));
const ALL = { json: true, csv: true, html: true } as const;

test('what is asked for is written, and nothing else is left', async () => {
  const report = fixtureReport({ requests: 30 });
  const to = join(folder, 'a', 'deep');
  const paths = await writeReport(report, to, ALL);
  assert.deepEqual(
    paths.map((path) => basename(path)),
    ['report.json', 'requests.csv', 'summary.csv', 'report.html'],
  );
  assert.deepEqual((await readdir(to)).sort(), ['report.html', 'report.json', 'requests.csv', 'summary.csv']);
  assert.deepEqual(await writeReport(report, join(folder, 'none'), { json: false, csv: false, html: false }), []);
  const compared = await writeComparison(compareRuns(report, report), to, ALL);
  assert.deepEqual(
    compared.map((path) => basename(path)),
    ['comparison.json', 'comparison.html'],
  );
  assert.deepEqual(
    (await writeSweep([report, report], to)).map((path) => basename(path)),
    ['sweep.html'],
  );
});

test('two runs that write to one folder at once leave whole files of one or the other, and nothing else', async () => {
  const to = join(folder, 'shared');
  const runs = [1, 2].map((seed) => fixtureReport({ requests: 3000, seed }));
  await Promise.all(runs.map((run) => writeReport(run, to, ALL)));
  assert.deepEqual((await readdir(to)).sort(), ['report.html', 'report.json', 'requests.csv', 'summary.csv']);
  const { run } = await readReport(to);
  assert.ok(runs.some((one) => one.run.id === run.id));
});

test('requests.csv has a record a request, its times in order, hostile names as text', async () => {
  const report = fixtureReport({
    requests: 300,
    adapters: [...HOSTILE_NAMES, null],
    errorText: '=HYPERLINK("x"),\r\nnext',
  });
  const [requests = '', summary = ''] = await writeReport(report, join(folder, 'csv'), {
    json: false,
    csv: true,
    html: false,
  });
  const text = await readFile(requests, 'utf8');
  const lines = text.split('\r\n');
  assert.match(lines[0] ?? '', /^index,phase,adapter,user,scheduledAtMs,.*,errorText$/);
  const records = lines.filter((line) => /^\d+,(warmup|measured),/.test(line));
  assert.equal(records.length, report.requests.length);
  assert.doesNotMatch(text, /(^|,)"?[=+@]/m);
  assert.match(await readFile(summary, 'utf8'), /^scope,adapter,requests,[^\r]*\r\ntotal,,300,/);
});

test('a hundred thousand requests of a thousand adapters make a page under 2 MB', async () => {
  const adapters = Array.from({ length: 1000 }, (_, index) => `tenant-${index}/assistant-with-a-long-name`);
  const report = fixtureReport({ requests: 100_000, askedPerSecond: 100, adapters });
  const [path = ''] = await writeReport(report, join(folder, 'large'), { json: false, csv: false, html: true });
  const page = await readFile(path, 'utf8');
  assert.ok(page.length < 2e6, `${page.length} bytes`);
  assert.match(page, /tenant-999\/assistant/);
});

test('no request, and a single one, have whole reports too', async () => {
  for (const requests of [0, 1]) {
    const report = fixtureReport({ requests, warmup: 0, withServer: false, errorShare: 0 });
    const paths = await writeReport(report, join(folder, `few-${requests}`), ALL);
    const page = await readFile(paths[3] ?? '', 'utf8');
    assert.doesNotMatch(page, /NaN|Infinity|undefined|\[object/);
  }
});

test('a folder that cannot be made is refused, not a crash', async () => {
  const file = join(folder, 'a-file');
  await writeFile(file, '');
  await assert.rejects(writeReport(fixtureReport({ requests: 1 }), join(file, 'x'), ALL), (error: unknown) => {
    assert.ok(error instanceof ManyfoldError);
    assert.match(error.message, /cannot be written.*Name a folder/);
    return true;
  });
});
