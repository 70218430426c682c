import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { numberText } from '../number-text.js';
import type { Chart, Series } from './chart.js';
import { drawChart } from './chart.js';

const MARKS: readonly Series['mark'][] = ['line', 'dashes', 'step', 'dashed-step', 'bars', 'dots', 'rings'];
const SIZE = { width: 520, height: 290 };

function chart(series: readonly Series[], kinds: { x?: Chart['x']['kind']; y?: Chart['y']['kind'] } = {}): Chart {
  return {
    x: { kind: kinds.x ?? 'linear', label: 'x', text: numberText },
    y: { kind: kinds.y ?? 'linear', label: 'y', text: numberText },
    series,
  };
}

function pathOf(series: Series): string {
  const drawn = drawChart(chart([series]), SIZE).toString();
  return /class="(?:line|bars)[^"]*" d="([^"]*)"/.exec(drawn)?.[1] ?? 'none';
}

test('whatever the values are, every number of a drawing is finite and inside it', () => {
  const point = fc.tuple(
    fc.double({ noNaN: true, min: -1e12, max: 1e12 }),
    fc.option(fc.double({ noNaN: true, min: -1e12, max: 1e12 })),
  );
  fc.assert(
    fc.property(
      fc.array(point, { maxLength: 30 }),
      fc.constantFrom(...MARKS),
      fc.constantFrom('linear' as const, 'log' as const, 'time' as const),
      (points, mark, kind) => {
        const series: Series = { name: 's', tone: 1, mark, points };
        const drawn = drawChart(chart([series], { x: kind, y: kind === 'time' ? 'linear' : kind }), SIZE).toString();
        assert.doesNotMatch(drawn, /NaN|Infinity|undefined|null/);
        for (const [, x] of drawn.matchAll(/ (?:x|cx)="(-?[\d.]+)"/g))
          assert.ok(Number(x) >= -1 && Number(x) <= SIZE.width + 1);
        for (const [, y] of drawn.matchAll(/ (?:y|cy)="(-?[\d.]+)"/g))
          assert.ok(Number(y) >= -1 && Number(y) <= SIZE.height + 1);
      },
    ),
    {
      seed: 4,
      numRuns: 300,
      examples: [
        [[], 'line', 'log'],
        [[[0, 0]], 'bars', 'linear'],
        [[[-1, null]], 'step', 'time'],
      ],
    },
  );
});

test('gaps break a line, a lonely point is a dot, a step lasts until the gap', () => {
  const points = [
    [0, 1],
    [1, null],
    [2, 1],
    [3, 2],
  ] as const;
  assert.match(pathOf({ name: '', tone: 1, mark: 'line', points }), /^M[\d. ]+h\.1M[\d. ]+L[\d. ]+$/);
  assert.match(pathOf({ name: '', tone: 1, mark: 'step', points }), /^M[\d. ]+H[\d.]+M[\d. ]+H[\d.]+V[\d.]+$/);
});

test('bars stand on the axis and leave out what is zero', () => {
  const path = pathOf({
    name: '',
    tone: 1,
    mark: 'bars',
    points: [
      [0, 2],
      [1, 0],
      [2, 3],
      [3, 3],
    ],
  });
  assert.equal(path.split('M').length - 1, 2);
});

test('a chart without values says so', () => {
  assert.match(drawChart(chart([]), SIZE).toString(), /no values/);
  assert.match(
    drawChart(chart([{ name: '', tone: 1, mark: 'line', points: [[0, null]] }]), SIZE).toString(),
    /no values/,
  );
});

test('hints are drawn for wide screens only', () => {
  const hinted = {
    ...chart([
      {
        name: '',
        tone: 1,
        mark: 'line',
        points: [
          [0, 1],
          [1, 2],
        ],
      },
    ]),
    hints: [{ from: 0, to: 1, text: '<b>' }],
  };
  assert.match(drawChart(hinted, SIZE).toString(), /<title>&lt;b&gt;<\/title>/);
  assert.doesNotMatch(drawChart(hinted, { width: 350, height: 200 }).toString(), /<title>/);
});
