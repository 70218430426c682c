/** The relative change of every figure of a comparison with its interval, on one axis around zero. */
import { htmlTable } from '../html-table.js';
import type { Markup } from '../markup.js';
import { element, fragment } from '../markup.js';
import { changeText, metricName } from '../metric-text.js';
import { signedPercentText } from '../number-text.js';
import type { ComparedMetric } from '../run-comparison.js';
import type { Tone } from './chart.js';
import { round } from './chart.js';
import type { Panel } from './figure.js';
import { figure } from './figure.js';
import type { Scale } from './scale.js';
import { linearScale } from './scale.js';

const ROW_HEIGHT = 24;
/** Changes beyond are held at the edge, or one wild figure would flatten all others. */
const EDGE = 0.5;

const TONES: Readonly<Record<ComparedMetric['judgement'], Tone>> = {
  better: 3,
  worse: 'bad',
  'no clear difference': 'muted',
  'too few samples': 'muted',
};

export function changeFigure(metrics: readonly ComparedMetric[]): Markup {
  const shown = metrics.filter(({ interval, before }) => interval !== null && before !== 0);
  return figure({
    id: 'plot-change',
    title: 'Change from before to after',
    caption:
      'Dot: what was found. Bar: where the true change lies. A bar that crosses the line at 0 shows no clear difference. Changes beyond ±50 % end at the edge; the table has them in full.',
    panels: [panel(shown)],
    full: true,
    table: htmlTable(
      '',
      ['figure', 'change', 'judgement'].map((title) => ({ title })),
      shown.map((metric) => [metricName(metric), changeText(metric), metric.judgement]),
    ),
  });
}

function panel(metrics: readonly ComparedMetric[]): Panel {
  const clear = metrics.filter(({ judgement }) => judgement === 'better' || judgement === 'worse');
  return {
    heading: '',
    description:
      clear.length === 0
        ? 'No figure differs clearly.'
        : `${clear.map((metric) => `${metricName(metric)} ${changeText(metric)}, ${metric.judgement}`).join('; ')}.`,
    keys: [
      { name: 'better', tone: 3, mark: 'range' },
      { name: 'worse', tone: 'bad', mark: 'range' },
      { name: 'no clear difference', tone: 'muted', mark: 'range' },
    ],
    draw: (width) => {
      const height = 34 + ROW_HEIGHT * Math.max(1, metrics.length);
      return { height, contents: draw(metrics, width, height) };
    },
  };
}

function draw(metrics: readonly ComparedMetric[], width: number, height: number): Markup {
  const ends = metrics.flatMap((metric) => ends3(metric));
  const left = width < 500 ? 118 : 170;
  const x = linearScale({
    domain: [Math.min(-0.05, ...ends), Math.max(0.05, ...ends)],
    range: [left, width - 20],
    label: signedPercentText,
    count: width < 500 ? 3 : 7,
  });
  const bottom = height - 24;
  return fragment(
    element(
      'g',
      { class: 'axis' },
      x.ticks.map(({ value, label }) => {
        const at = round(x.at(value));
        return fragment(
          element('path', { class: value === 0 ? 'base' : 'grid', d: `M${at} 4V${bottom}` }),
          element('text', { x: at, y: height - 8, 'text-anchor': 'middle' }, label),
        );
      }),
    ),
    metrics.map((metric, row) => drawMetric(metric, 18 + row * ROW_HEIGHT, x)),
  );
}

/** Low end, figure and high end as shares of the value before, held at the edge. */
function ends3({ interval, before, difference }: ComparedMetric): readonly [number, number, number] {
  const shares = [interval?.low ?? difference, difference, interval?.high ?? difference].map((value) => value / before);
  return shares.map((share) => Math.min(EDGE, Math.max(-EDGE, share))) as [number, number, number];
}

function drawMetric(metric: ComparedMetric, y: number, x: Scale): Markup {
  const [low, middle, high] = ends3(metric).map((value) => round(x.at(value))) as [number, number, number];
  return element(
    'g',
    { class: `tone-${TONES[metric.judgement]}` },
    element('title', {}, `${metricName(metric)}: ${changeText(metric)}, ${metric.judgement}`),
    element('text', { class: 'ink', x: 4, y: y + 4 }, metricName(metric)),
    element('path', { class: 'range', d: `M${low} ${y}H${Math.max(high, low + 0.1)}` }),
    element('g', { class: 'dots' }, element('circle', { cx: middle, cy: y, r: 4 })),
  );
}
