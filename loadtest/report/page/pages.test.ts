import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { compareRuns } from '../compare-runs.js';
import type { RunReport } from '../run-report.js';
import { HOSTILE_NAMES } from '../testing/fixture-pages.js';
import { fixtureReport } from '../testing/report-fixture.js';
import { comparisonPage } from './comparison-page.js';
import { runPage } from './run-page.js';
import { sweepPage } from './sweep-page.js';

const HOSTILE = {
  requests: 400,
  adapters: [...HOSTILE_NAMES, null],
  errorText: '<img src="//evil.example/x">',
  name: '</title><script>',
};
const report = fixtureReport(HOSTILE);
const PAGES: readonly (readonly [name: string, html: string])[] = [
  ['run', runPage(report)],
  ['run without requests', runPage(fixtureReport({ requests: 0, warmup: 0, withServer: false }))],
  ['comparison', comparisonPage(compareRuns(report, fixtureReport({ ...HOSTILE, seed: 2, slow: 1.4 })))],
  ['sweep', sweepPage([10, 20].map((rate) => fixtureReport({ ...HOSTILE, askedPerSecond: rate })))],
];

/** Tags of a page in order, with their attributes; the text between is left out. */
function tagsOf(html: string): { name: string; isEnd: boolean; attributes: string }[] {
  return [...html.matchAll(/<(\/?)([a-zA-Z][\w-]*)((?: [\w-]+(?:="[^"]*")?)*)>/g)].map(
    ([, slash = '', name = '', attributes = '']) => ({
      name,
      isEnd: slash === '/',
      attributes,
    }),
  );
}

for (const [name, html] of PAGES) {
  test(`${name}: every tag is ours, closed in order, and none can run or load anything`, () => {
    const stack: string[] = [];
    for (const { name: tag, isEnd, attributes } of tagsOf(html)) {
      if (/^(meta|br)$/.test(tag)) continue;
      assert.doesNotMatch(tag, /^(script|img|image|link|iframe|object|embed|use|foreignobject|base|form)$/i);
      for (const [, attribute = '', value = ''] of attributes.matchAll(/ ([\w-]+)(?:="([^"]*)")?/g)) {
        assert.doesNotMatch(attribute, /^(on\w+|src|srcset|style|action|formaction|background)$/i);
        if (attribute === 'href') assert.match(value, /^#/);
      }
      if (isEnd) assert.equal(stack.pop(), tag);
      else stack.push(tag);
    }
    assert.deepEqual(stack, []);
    const bare = html.replace(/<style>[^<]*<\/style>/, '').replace(/^<!doctype html>/, '');
    const left = bare.replace(/<\/?[a-zA-Z][\w-]*(?: [\w-]+(?:="[^"]*")?)*>/g, '');
    assert.doesNotMatch(left, /[<>]/);
  });

  test(`${name}: the policy forbids every request and allows the one style sheet by its hash`, () => {
    const [, css = ''] = /<style>([^<]*)<\/style>/.exec(html) ?? [];
    const hash = createHash('sha256').update(css).digest('base64');
    assert.match(html, /http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;;/);
    assert.ok(html.includes(`style-src &#39;sha256-${hash}&#39;;`));
    assert.doesNotMatch(css, /url\(|@import|@font-face/);
  });

  test(`${name}: ids are used once, drawings have a title and a description, no figure is broken`, () => {
    const ids = [...html.matchAll(/ id="([^"]*)"/g)].map(([, id]) => id);
    assert.equal(new Set(ids).size, ids.length);
    const drawings = html.match(/<svg [^>]*>/g) ?? [];
    assert.ok(drawings.length > 0);
    for (const drawing of drawings) {
      const [, labels = ''] = / aria-labelledby="([^"]*)"/.exec(drawing) ?? [];
      for (const id of labels.split(' ')) assert.match(html, new RegExp(`<(title|desc) id="${id}">[^<]+<`));
    }
    assert.doesNotMatch(html, /NaN|Infinity|undefined|\[object|"null"/);
  });
}

test('any name from outside stands on the page as text', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', minLength: 1, maxLength: 50 }), (name) => {
      const html = runPage(fixtureReport({ requests: 20, adapters: [name], errorShare: 0.5, errorText: name, name }));
      const known = new Set(tagsOf(PAGES[0]?.[1] ?? '').map(({ name: tag }) => tag));
      for (const { name: tag } of tagsOf(html)) assert.ok(known.has(tag), tag);
    }),
    { seed: 31, numRuns: 25, examples: HOSTILE_NAMES.map((name): [string] => [name]) },
  );
});

test('an invalid run says so in its title and before its figures', () => {
  const invalid: RunReport = {
    ...report,
    verdict: {
      valid: false,
      findings: [{ kind: 'client_limit', severity: 'invalid', message: 'The client was the limit.' }],
    },
  };
  const html = runPage(invalid);
  assert.match(html, /<title>[^<]*not valid<\/title>/);
  assert.ok(html.indexOf('The client was the limit.') < html.indexOf('class="cards"'));
});

test('the page has what repeats the run, the disagreements and the error texts', () => {
  const html = runPage(report);
  for (const text of [
    report.trace.sha256,
    'manyfold bench',
    'The server also counts tokens',
    '&lt;img src=&quot;//evil.example/x&quot;&gt;',
  ]) {
    assert.ok(html.includes(text), text);
  }
});

test('a sweep is drawn in order of load and names the runs that are not valid', () => {
  const [slow, fast] = [10, 20].map((rate) =>
    fixtureReport({ requests: 100, askedPerSecond: rate, name: `rate-${rate}` }),
  );
  assert.ok(slow !== undefined && fast !== undefined);
  const message = 'Only 80 % of the asked rate was achieved.';
  const invalid: RunReport = {
    ...fast,
    verdict: { valid: false, findings: [{ kind: 'achieved_rate', severity: 'invalid', message }] },
  };
  const html = sweepPage([invalid, slow]);
  assert.ok(html.lastIndexOf('rate-10 (') < html.lastIndexOf('rate-20 ('));
  assert.match(html, /1 of 2 runs are not valid/);
  assert.ok(html.includes(message));
  assert.match(html, /class="rings tone-bad"/);
  assert.doesNotMatch(sweepPage([]), /NaN|Infinity|undefined/);
});
