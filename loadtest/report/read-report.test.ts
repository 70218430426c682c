import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import fc from 'fast-check';
import { ManyfoldError } from '../../src/core/errors.js';
import { jsonPieces } from './json-text.js';
import { parseReport, readReport } from './read-report.js';
import type { RunReport } from './run-report.js';
import { fixtureReport } from './testing/report-fixture.js';
import { writeReport } from './write-report.js';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'manyfold-report-'));
});
after(() => rm(folder, { recursive: true, force: true }));

const JSON_ONLY = { json: true, csv: false, html: false } as const;
const report = fixtureReport({ requests: 60 });
const text = [...jsonPieces(report)].join('');

function refusal(message: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof ManyfoldError, String(error));
    assert.equal(error.code, 'invalid_config');
    assert.match(error.message, message);
    return true;
  };
}

test('a report is read back as it was written, from the file and from its folder', async () => {
  const own = join(folder, 'own');
  const [path = ''] = await writeReport(report, own, JSON_ONLY);
  assert.deepEqual(await readReport(path), report);
  assert.deepEqual(await readReport(own), report);
});

test('every optional field of the trace survives, unknown fields do not', () => {
  const traced = { atMs: null, adapter: 'a', promptTokens: 1, outputTokens: 2 };
  const requests = [
    { ...traced, promptSeed: 3, prefixTokens: 4, prefixSeed: 5 },
    { ...traced, prompt: 'text' },
  ];
  const changed: RunReport = { ...report, trace: { ...report.trace, requests } };
  assert.deepEqual(parseReport(JSON.stringify({ ...changed, later: 1 }), 'x'), changed);
});

test('the text is JSON whatever is in it, and empty lists are lists', () => {
  const none = fixtureReport({ requests: 0, warmup: 0 });
  assert.deepEqual(JSON.parse([...jsonPieces(none)].join('')), none);
  assert.equal([...jsonPieces({})].join(''), '{}\n');
  assert.deepEqual(JSON.parse([...jsonPieces({ a: undefined, b: [], c: [1, 'x'] })].join('')), { b: [], c: [1, 'x'] });
});

test('what is no report is refused by what it is', async () => {
  const write = async (content: string): Promise<string> => {
    const path = join(folder, 'given.json');
    await writeFile(path, content);
    return path;
  };
  await assert.rejects(
    readReport(join(folder, 'absent.json')),
    refusal(/cannot be read \(ENOENT\).*Give a report\.json/),
  );
  await assert.rejects(readReport(folder), refusal(/cannot be read \(ENOENT\)/));
  await assert.rejects(readReport(await write('no json')), refusal(/is not JSON/));
  for (const other of ['[]', '7', 'null', '{"format":"other"}']) {
    await assert.rejects(readReport(await write(other)), refusal(/not a load test's report/));
  }
  const later = JSON.stringify({ ...report, formatVersion: 2 });
  await assert.rejects(readReport(await write(later)), refusal(/has report version 2; this build reads version 1/));
  const unversioned = JSON.stringify({ ...report, formatVersion: undefined });
  await assert.rejects(readReport(await write(unversioned)), refusal(/has report version none/));
});

test('an edited report is refused with the place of the edit', () => {
  const broken = {
    ...report,
    requests: report.requests.map((request, index) => (index === 3 ? { ...request, outcome: 'fine' } : request)),
  };
  assert.throws(
    () => parseReport(JSON.stringify(broken), 'r.json'),
    refusal(/'r\.json' is no whole report: requests\.3\.outcome/),
  );
  const { total: _total, ...rest } = report;
  assert.throws(() => parseReport(JSON.stringify(rest), 'r.json'), refusal(/no whole report: total/));
});

test('a damaged file is refused or read, never a crash of another kind', () => {
  fc.assert(
    fc.property(fc.nat(text.length - 1), fc.constantFrom('', '0', '"', '}', 'null', '\u0000'), (at, patch) => {
      try {
        parseReport(text.slice(0, at) + patch + text.slice(at + 1), 'r.json');
      } catch (error) {
        assert.ok(error instanceof ManyfoldError, String(error));
      }
    }),
    {
      seed: 8,
      numRuns: 150,
      examples: [
        [0, ''],
        [text.length - 1, ''],
      ],
    },
  );
});
