/**
 * Looks at the pages of this folder through a real browser: `node dist/loadtest/report/testing/check-pages.js [FOLDER]`. Pages are
 * made from fixture runs with hostile names (or are the .html files of FOLDER), opened at the width of a desk and of a
 * phone, in light and dark. A page fails when it asks for anything but itself, runs a script, is wider than the
 * screen, or lacks its drawings. Screenshots are left beside the pages. Exit code 2: no Chromium is installed.
 */
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';
import type { Page, View } from './chromium.js';
import { startChromium } from './chromium.js';
import { writeFixturePages } from './fixture-pages.js';

const VIEWS: readonly (View & { readonly name: string })[] = [
  { name: 'desk-light', width: 1280, height: 900, scheme: 'light' },
  { name: 'desk-dark', width: 1280, height: 900, scheme: 'dark' },
  { name: 'phone-light', width: 360, height: 740, scheme: 'light' },
  { name: 'phone-dark', width: 360, height: 740, scheme: 'dark' },
];
/** Longer pictures are of no use to the eye. */
const MAX_PICTURE = 9000;

/** What is asked of the page itself; runs in the browser. */
const PROBE = `JSON.stringify((() => {
  const visible = (node) => node.getBoundingClientRect().width > 0;
  const drawings = [...document.querySelectorAll('svg')].filter(visible);
  const wide = [...document.querySelectorAll('body *')].filter((node) =>
    visible(node) && !node.closest('.scroll, svg') && node.getBoundingClientRect().right > innerWidth + 1);
  const ids = [...document.querySelectorAll('[id]')].map((node) => node.id);
  return {
    screen: innerWidth,
    page: document.documentElement.scrollWidth,
    figures: document.querySelectorAll('figure').length,
    drawings: drawings.length,
    marks: drawings.map((node) => node.querySelectorAll('path, circle, rect').length),
    unnamed: drawings.filter((node) => !node.querySelector('title')?.textContent || !node.querySelector('desc')?.textContent).length,
    smallestText: Math.min(99, ...drawings.flatMap((node) => {
      const scale = node.getBoundingClientRect().width / node.viewBox.baseVal.width;
      return [...node.querySelectorAll('text')].map((text) => parseFloat(getComputedStyle(text).fontSize) * scale);
    })),
    tooWide: wide.slice(0, 5).map((node) => node.tagName + '.' + node.className + ' ' + node.textContent.slice(0, 40)),
    scripts: document.scripts.length,
    handlers: [...document.querySelectorAll('*')].filter((node) => node.getAttributeNames().some((name) => name.startsWith('on'))).length,
    twiceUsedIds: ids.filter((id, index) => ids.indexOf(id) !== index),
    styled: getComputedStyle(document.body).marginTop === '0px',
    ink: getComputedStyle(document.body).color,
  };
})())`;

interface Probe {
  readonly screen: number;
  readonly page: number;
  readonly figures: number;
  readonly drawings: number;
  readonly marks: readonly number[];
  readonly unnamed: number;
  readonly smallestText: number;
  readonly tooWide: readonly string[];
  readonly scripts: number;
  readonly handlers: number;
  readonly twiceUsedIds: readonly string[];
  readonly styled: boolean;
  readonly ink: string;
}

/** Characters of drawings smaller than this cannot be read on a phone. */
const SMALLEST_TEXT = 9;

function problemsOf(probe: Probe, page: Page, url: string, view: View): string[] {
  const elsewhere = page.requests.filter((request) => request !== url);
  const checks: readonly (readonly [boolean, string])[] = [
    [elsewhere.length > 0, `asked for ${elsewhere.join(', ')}`],
    [page.complaints.length > 0, `the browser complains: ${page.complaints.join('; ')}`],
    // A phone zooms out when a page is too wide, and then calls its screen wider than it is.
    [
      Math.max(probe.page, probe.screen) > view.width,
      `is ${Math.max(probe.page, probe.screen)} pixels wide on a screen of ${view.width}`,
    ],
    [probe.tooWide.length > 0, `goes over the edge: ${probe.tooWide.join('; ')}`],
    [probe.figures === 0 || probe.drawings < probe.figures, `${probe.drawings} drawings in ${probe.figures} figures`],
    [probe.marks.some((marks) => marks === 0), 'has an empty drawing'],
    [probe.unnamed > 0, `${probe.unnamed} drawings without title and description`],
    [probe.smallestText < SMALLEST_TEXT, `has text of ${probe.smallestText.toFixed(1)} pixels in a drawing`],
    [probe.scripts + probe.handlers > 0, 'has scripts'],
    [probe.twiceUsedIds.length > 0, `uses ids twice: ${probe.twiceUsedIds.join(', ')}`],
    [!probe.styled, 'has lost its style sheet'],
  ];
  return checks.flatMap(([isWrong, what]) => (isWrong ? [what] : []));
}

async function checkFolder(folder: string, page: Page): Promise<number> {
  let failures = 0;
  for (const file of (await readdir(folder)).filter((name) => name.endsWith('.html')).sort()) {
    const url = pathToFileURL(join(folder, file)).href;
    const inks = new Set<string>();
    for (const view of VIEWS) {
      await page.open(url, view);
      const probe = JSON.parse(String(await page.evaluate(PROBE))) as Probe;
      inks.add(probe.ink);
      const problems = problemsOf(probe, page, url, view);
      await writeFile(join(folder, `${file}.${view.name}.png`), await page.screenshot(MAX_PICTURE));
      process.stdout.write(
        `${problems.length === 0 ? 'ok  ' : 'FAIL'} ${file} ${view.name}: ${probe.drawings} drawings, ${page.requests.length} request\n`,
      );
      for (const problem of problems) process.stdout.write(`     ${problem}\n`);
      failures += problems.length;
    }
    if (inks.size !== 2) {
      process.stdout.write(`FAIL ${file}: light and dark look the same\n`);
      failures += 1;
    }
  }
  return failures;
}

const [given] = process.argv.slice(2);
const browser = await startChromium();
if (browser === undefined) {
  process.stderr.write(
    'No Chromium on the PATH, so nothing was checked. Install it (Debian: apt-get install chromium) and repeat.\n',
  );
  process.exit(2);
}
const folder = given === undefined ? await mkdtemp(join(tmpdir(), 'manyfold-pages-')) : resolve(given);
let failures = 1;
try {
  process.stdout.write(`${browser.version}, pages and screenshots in ${folder}\n`);
  if (given === undefined) await writeFixturePages(folder);
  failures = await checkFolder(folder, browser.page);
} finally {
  await browser.close();
  if (given === undefined && failures === 0) await rm(folder, { recursive: true, force: true });
}
process.stdout.write(failures === 0 ? 'All pages are fine.\n' : `${failures} problems.\n`);
process.exitCode = failures === 0 ? 0 : 1;
