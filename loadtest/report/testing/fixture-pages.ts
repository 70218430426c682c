/** Every page that this folder can make, from fixture runs, as .html files of one folder. Used by check-pages.ts. */
import { mkdtemp, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { compareRuns } from '../compare-runs.js';
import { writeComparison, writeReport, writeSweep } from '../write-report.js';
import { fixtureReport } from './report-fixture.js';

const HTML = { json: false, csv: false, html: true } as const;

/** Names that would do harm where text is taken for markup, a formula or a terminal's command. */
export const HOSTILE_NAMES: readonly string[] = [
  '<script>fetch("//evil.example/")</script>',
  '"><img src=x onerror=alert(1)>',
  '</title></style></svg><svg onload=alert(1)>',
  "=cmd|' /C calc'!A0",
  '\u001b]0;owned\u0007\u001b[31mred',
  '\u202eright-to-left-override',
  'ein-sehr-langer-name/'.repeat(12),
  'アダプター／日本語の名前',
];

export async function writeFixturePages(folder: string): Promise<void> {
  const hostile = {
    adapters: ['support', null, ...HOSTILE_NAMES],
    errorText: '<img src="http://evil.example/x.png"> upstream closed',
    requests: 2000,
  };
  const thousand = Array.from({ length: 1000 }, (_, index) => `tenant-${index}/assistant`);
  const pages: readonly (readonly [name: string, write: (to: string) => Promise<readonly string[]>])[] = [
    ['hostile', (to) => writeReport(fixtureReport(hostile), to, HTML)],
    ['none', (to) => writeReport(fixtureReport({ requests: 0, warmup: 0, withServer: false }), to, HTML)],
    ['one', (to) => writeReport(fixtureReport({ requests: 1, warmup: 0, errorShare: 0, withServer: false }), to, HTML)],
    [
      'large',
      (to) => writeReport(fixtureReport({ requests: 20_000, askedPerSecond: 50, adapters: thousand }), to, HTML),
    ],
    [
      'comparison',
      (to) => {
        const after = fixtureReport({ ...hostile, seed: 2, slow: 1.15, errorShare: 0.01, name: 'after <b>' });
        return writeComparison(compareRuns(fixtureReport(hostile), after), to, HTML);
      },
    ],
    [
      'sweep',
      (to) => {
        const rates = [5, 10, 20, 30, 40];
        const runs = rates.map((rate, index) =>
          fixtureReport({
            seed: index,
            askedPerSecond: rate,
            requests: rate * 30,
            slow: 1 + Math.max(0, rate - 20) / 10,
            name: `rate-${rate}`,
          }),
        );
        return writeSweep(runs, to);
      },
    ],
  ];
  for (const [name, write] of pages) {
    const own = await mkdtemp(join(folder, 'part-'));
    const [path = ''] = await write(own);
    await rename(path, join(folder, `${name}.html`));
    await rm(own, { recursive: true, force: true });
  }
}
