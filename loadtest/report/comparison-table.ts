/** Two runs side by side for the terminal. `manyfold bench --compare` prints it. */
import { adapterName } from './labels.js';
import { changeText, chanceNote, intervalText, metricName, valueText } from './metric-text.js';
import type { ComparedMetric, RunComparison, TableStyle } from './run-comparison.js';
import { painter } from './table.js';
import type { TextColumn } from './text-table.js';
import { clip, plainText, textTable, wrap } from './text-table.js';

/** Adapters with lines of their own; the page shows all that were compared. */
const TOP_ADAPTERS = 5;

/** Lines end in `\n`; at most 100 columns. */
export function renderComparison(comparison: RunComparison, style: TableStyle): string {
  const width = Math.min(100, Math.max(60, style.columns));
  const paint = painter(style.colour);
  const { before, after, warnings, total, adapters } = comparison;
  const describe = (title: string, { run, verdict }: RunComparison['before']): string =>
    clip(
      plainText(
        `${title} ${run.name} (${run.id}), ${run.startedAt}, ${run.targetUrl}, ${verdict.valid ? 'valid' : 'NOT VALID'}`,
      ),
      width,
    );
  const tables = adapters
    .slice(0, TOP_ADAPTERS)
    .map(({ adapter, metrics }) => [
      paint.bold(clip(plainText(`Adapter ${adapterName(adapter)}`), width)),
      ...metricLines(metrics, width, paint),
    ]);
  const rest = adapters.length - tables.length;
  const blocks = [
    [describe('before:', before), describe('after: ', after)],
    warnings.flatMap((warning) => wrap(`warning: ${warning}`, width, '  ').map(paint.warn)),
    [paint.bold('Whole run'), ...metricLines(total, width, paint)],
    ...tables,
    rest === 0 ? [] : [`${rest} more adapters were compared; comparison.html and comparison.json have them.`],
    wrap(chanceNote(comparison), width),
  ];
  return `${blocks
    .filter((block) => block.length > 0)
    .map((block) => block.join('\n'))
    .join('\n\n')}\n`;
}

const COLUMNS: readonly TextColumn[] = [
  { title: '', align: 'left' },
  { title: 'before', align: 'right', dispensable: 1 },
  { title: 'after', align: 'right' },
  { title: 'change', align: 'right', dispensable: 2 },
  { title: 'difference is within', align: 'right' },
  { title: '', align: 'left' },
];

function metricLines(metrics: readonly ComparedMetric[], width: number, paint: ReturnType<typeof painter>): string[] {
  const rows = metrics.map((metric) => [
    metricName(metric),
    valueText(metric.before, metric.unit),
    valueText(metric.after, metric.unit),
    changeText(metric),
    intervalText(metric),
    metric.judgement,
  ]);
  const tones = { better: paint.good, worse: paint.bad };
  return textTable(COLUMNS, rows, width - 2).map((line, index) => {
    const judgement = metrics[index - 1]?.judgement;
    return judgement === 'better' || judgement === 'worse' ? `  ${tones[judgement](line)}` : `  ${line}`;
  });
}
