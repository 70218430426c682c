/** A finished run as a table for the terminal, the verdict first. `manyfold bench` prints it when a run is over. */
import { adapterName, LATENCY_NAMES, OUTCOME_MEANINGS, PERCENTILES, sloTexts, verdictText } from './labels.js';
import { countText, durationText, NOTHING, numberText, percentText } from './number-text.js';
import type { AdapterAggregate, Aggregate, LatencyKey, Outcome, RunReport, ServerSample } from './run-report.js';
import type { TableStyle } from './run-comparison.js';
import type { TextColumn } from './text-table.js';
import { plainText, textTable, wrap } from './text-table.js';

/** Adapters with a line of their own; the rest share one. */
const TOP_ADAPTERS = 10;
/** Wider lines are hard to read and break when they are pasted. */
const MAX_COLUMNS = 100;
/** Columns of the labels of lines that are no table. */
const LABEL = 10;

const left = (title: string, maxWidth?: number): TextColumn => ({
  title,
  align: 'left',
  ...(maxWidth === undefined ? {} : { maxWidth }),
});
const right = (title: string, dispensable?: number): TextColumn => ({
  title,
  align: 'right',
  ...(dispensable === undefined ? {} : { dispensable }),
});
/** Percentiles in the order in which narrow terminals lose them. */
const DISPENSABLE: Readonly<Record<string, number>> = { p95: 2, p90: 4, 'p99.9': 6 };

/** Lines end in `\n`. Never wider than 100 columns, nor than the terminal where that has at least 60. */
export function renderTable(report: RunReport, style: TableStyle): string {
  const width = Math.min(MAX_COLUMNS, Math.max(60, style.columns));
  const paint = painter(style.colour);
  const blocks = [
    verdictBlock(report, width, paint),
    [paint.bold('Load'), ...indent(loadLines(report, width))],
    [paint.bold('Latency'), ...indent(latencyLines(report, width))],
    [paint.bold('Adapters'), ...indent(adapterLines(report.adapters, width))],
    errorBlock(report, width, paint),
    [paint.bold('Client'), ...indent(clientLines(report))],
    [paint.bold('Server, by its own word'), ...indent(serverLines(report, width))],
  ];
  return `${blocks
    .filter((block) => block.length > 0)
    .map((block) => block.join('\n'))
    .join('\n\n')}\n`;
}

interface Paint {
  readonly bold: (text: string) => string;
  readonly good: (text: string) => string;
  readonly bad: (text: string) => string;
  readonly warn: (text: string) => string;
}

/** Select Graphic Rendition of ECMA-48; our own words only, text from outside has no escapes left. */
export function painter(colour: boolean): Paint {
  const code = (number: number) => (text: string) => (colour ? `\u001b[${number}m${text}\u001b[0m` : text);
  return { bold: code(1), good: code(32), bad: code(31), warn: code(33) };
}

function indent(lines: readonly string[]): string[] {
  return lines.map((line) => `  ${line}`);
}

function verdictBlock(report: RunReport, width: number, paint: Paint): string[] {
  const { run, workload, verdict } = report;
  const isInvalid = !verdict.valid;
  const order = [...verdict.findings].sort(
    (one, other) => Number(other.severity === 'invalid') - Number(one.severity === 'invalid'),
  );
  const findings = order.flatMap(({ severity, kind, message }) => {
    const head = severity === 'invalid' ? 'invalid' : 'warning';
    const [first = '', ...rest] = wrap(`${head} ${kind}: ${message}`, width - 4, '  ');
    const tone = severity === 'invalid' ? paint.bad : paint.warn;
    return [`  ${tone(first)}`, ...rest.map((line) => `  ${line}`)];
  });
  return [
    `${paint.bold('Run')} ${isInvalid ? paint.bad(verdictText(report)) : paint.good(verdictText(report))}`,
    ...findings,
    ...indent(
      wrap(`${run.name} (${run.id}), ${run.startedAt}, seed ${run.seed}, ${durationText(run.durationMs)}`, width - 2),
    ),
    ...indent(wrap(`${run.targetUrl}, ${run.dialect}: ${workload.description}`, width - 2, '  ')),
  ];
}

function loadLines(report: RunReport, width: number): string[] {
  const { workload, total } = report;
  const asked =
    workload.askedPerSecond === null
      ? `closed loop, ${countText(workload.concurrency ?? undefined)} at once`
      : `asked ${numberText(workload.askedPerSecond)}/s`;
  const achieved =
    workload.achievedShare === null ? '' : `, achieved ${percentText(workload.achievedShare)} of the asked rate`;
  const slo = sloTexts(report);
  const goodput =
    slo.length === 0
      ? 'no SLO was set'
      : `${numberText(total.goodputPerSecond)}/s, ${percentText(total.goodShare)} of requests with ${slo.join(', ')}`;
  const lines: readonly (readonly [label: string, text: string])[] = [
    [
      'requests',
      `${countText(total.requests)} measured, ${countText(total.ok)} ok, ${countText(total.requests - total.ok)} failed; warm-up ${countText(workload.warmupRequests)}`,
    ],
    [
      'rate',
      `${asked}, sent ${numberText(workload.sentPerSecond)}/s, completed ${numberText(workload.completedPerSecond)}/s${achieved}`,
    ],
    [
      'tokens',
      `${numberText(total.outputTokensPerSecond)}/s out, ${numberText(total.totalTokensPerSecond)}/s with prompts; ${countText(total.outputTokens)} out, ${countText(total.promptTokens)} in prompts`,
    ],
    ['goodput', goodput],
  ];
  return lines.flatMap(([label, text]) =>
    wrap(text, width - 2 - LABEL).map((line, index) => (index === 0 ? label : '').padEnd(LABEL) + line),
  );
}

const LATENCY_ROWS: readonly LatencyKey[] = ['ttft', 'tpot', 'itl', 'e2e', 'sendDelay'];

function latencyLines({ total, workload }: RunReport, width: number): string[] {
  const columns = [
    left(''),
    right('mean', 3),
    ...PERCENTILES.map(({ title }) => right(title, DISPENSABLE[title])),
    right('max', 5),
    right('count', 1),
  ];
  const rows = LATENCY_ROWS.map((key) => {
    const values = total.latency[key];
    const figures = [values.meanMs, ...PERCENTILES.map((percentile) => values[percentile.key]), values.maxMs];
    return [LATENCY_NAMES[key], ...figures.map((figure) => durationText(figure ?? undefined)), countText(values.count)];
  });
  const note =
    workload.loop === 'open'
      ? 'Of ok requests. TTFT and E2E count from the scheduled time, so a stalled server shows in them.'
      : 'Of ok requests. A closed loop waits for answers: a stalled server lowers its load, not its figures.';
  return [...textTable(columns, rows, width - 2), ...wrap(note, width - 2)];
}

function adapterLines(adapters: readonly AdapterAggregate[], width: number): string[] {
  if (adapters.length === 0) return ['none'];
  const columns = [
    left('name', Math.max(16, width - 70)),
    right('requests'),
    right('failed', 3),
    right('good', 1),
    right('TTFT p50'),
    right('p99'),
    right('TPOT p50', 2),
    right('p99', 2),
  ];
  const rows = adapters.slice(0, TOP_ADAPTERS).map((adapter) => adapterRow(adapterName(adapter.adapter), adapter));
  const rest = adapters.slice(TOP_ADAPTERS);
  const lines = textTable(columns, rows, width - 2);
  return rest.length === 0 ? lines : [...lines, ...wrap(restLine(rest), width - 2, '  ')];
}

function adapterRow(name: string, { requests, ok, goodShare, latency }: Aggregate): string[] {
  const { ttft, tpot } = latency;
  const times = [ttft.p50Ms, ttft.p99Ms, tpot.p50Ms, tpot.p99Ms].map((time) => durationText(time ?? undefined));
  return [name, countText(requests), countText(requests - ok), percentText(goodShare), ...times];
}

/** Percentiles of several adapters cannot be added up; the range of their medians and the worst tail can be told. */
function restLine(rest: readonly AdapterAggregate[]): string {
  const requests = rest.reduce((sum, adapter) => sum + adapter.requests, 0);
  const failed = rest.reduce((sum, adapter) => sum + adapter.requests - adapter.ok, 0);
  const medians = rest.flatMap(({ latency }) => latency.ttft.p50Ms ?? []);
  const worst = rest.flatMap(({ latency }) => latency.ttft.p99Ms ?? []);
  const range = medians.length === 0 ? NOTHING : `${durationText(least(medians))} to ${durationText(most(medians))}`;
  return `and ${countText(rest.length)} more: ${countText(requests)} requests, ${countText(failed)} failed, TTFT p50 ${range}, highest p99 ${durationText(worst.length === 0 ? undefined : most(worst))}`;
}

function least(values: readonly number[]): number {
  return values.reduce((one, other) => Math.min(one, other), Infinity);
}

function most(values: readonly number[]): number {
  return values.reduce((one, other) => Math.max(one, other), -Infinity);
}

function errorBlock({ total, requests }: RunReport, width: number, paint: Paint): string[] {
  const kinds = errorKinds(total);
  if (kinds.length === 0) return [];
  const rows = kinds.map(([outcome, count]) => {
    const example = requests.find((request) => request.phase === 'measured' && request.outcome === outcome)?.errorText;
    return [outcome, countText(count), percentText(count / total.requests), example ?? OUTCOME_MEANINGS[outcome]];
  });
  const columns = [left('kind'), right('requests'), right('share'), left('first of them', width - 46)];
  return [paint.bold('Errors'), ...indent(textTable(columns, rows, width - 2))];
}

/** Kinds of failure, the most frequent first; equal counts by name. */
export function errorKinds({ errors }: Aggregate): readonly (readonly [Outcome, number])[] {
  return (Object.entries(errors) as [Outcome, number][])
    .filter(([, count]) => count > 0)
    .sort(([one, few], [other, many]) => many - few || one.localeCompare(other));
}

function clientLines({ client }: RunReport): string[] {
  const { eventLoopLagMs: lag } = client;
  return [
    client.wasLimit
      ? 'The client was a limit of this run; its figures are partly its own.'
      : 'The client was not the limit.',
    `event-loop lag p50 ${durationText(lag.p50)}, p99 ${durationText(lag.p99)}, max ${durationText(lag.max)}`,
    `CPU ${percentText(client.cpuShareMean)} of one core, at most ${percentText(client.cpuShareMax)}; memory ${numberText(client.memoryMaxBytes / 2 ** 20)} MiB`,
  ];
}

function serverLines({ server }: RunReport, width: number): string[] {
  if (server === null) return ['no readable /metrics'];
  const highest = (pick: (sample: ServerSample) => number | null): number | undefined => {
    const values = server.samples.flatMap((sample) => pick(sample) ?? []);
    return values.length === 0 ? undefined : most(values);
  };
  const lines = [
    `${plainText(server.metricsUrl)} (${server.flavour}), ${countText(server.samples.length)} scrapes, ${countText(server.failedScrapes)} failed`,
    `most at once: running ${countText(highest(({ running }) => running))}, waiting ${countText(highest(({ waiting }) => waiting))}, adapters resident ${countText(highest(({ adaptersResident }) => adaptersResident))}, KV use ${percentText(highest(({ kvUsageShare }) => kvUsageShare))}`,
    ...server.disagreements.map(
      ({ what, unit, client, server: theirs, message }) =>
        `disagreement on ${what}: client ${numberText(client)} ${unit}, server ${numberText(theirs)} ${unit}. ${message}`,
    ),
  ];
  return lines.flatMap((line) => wrap(line, width - 2, '  '));
}
