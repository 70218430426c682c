/** Figures → Markdown. Pure. */
import type { MachineBound } from '../machine.js';
import { loadKey, type Measure, type Row } from './rows.js';
import type { SessionResult, TakenSample } from './session.js';
import { nameOf, type SystemId } from './systems.js';
import type { Load } from './load.js';
import { startText, type DefaultStart } from './default-start.js';
import { median } from './median.js';

/** What was run on what; stands in the page and beside the raw figures. */
export interface RunFacts {
  readonly model: string;
  readonly cpu: string;
  readonly commit: string;
  readonly threads: number;
  readonly passes: number;
  readonly repeats: number;
  readonly machine: MachineBound;
  /** Product → version; those that are not installed have none. */
  readonly versions: Readonly<Record<string, string>>;
}

/** `median [min..max]`, without decimals from 100 on. */
export function spread(values: readonly number[]): string {
  const digits = median(values) < 100 ? 1 : 0;
  const text = (value: number): string => value.toFixed(digits);
  return `${text(median(values))} [${text(Math.min(...values))}..${text(Math.max(...values))}]`;
}

/** Values of one system under one load, all passes; empty when there are none. */
export function valuesOf(results: readonly SessionResult[], id: SystemId, load: Load, measure: Measure): number[] {
  const [name, key] = [nameOf(id), loadKey(load)];
  const samples = results.filter(({ system }) => system === name).flatMap((result) => result.samples);
  return samples
    .filter((sample: TakenSample) => sample.load === key)
    .map((sample) => (measure === 'rate' ? sample.tokensPerSecond : sample.ttftP99Ms))
    .filter((value) => value !== null);
}

export interface Verdict {
  readonly ratio: number;
  readonly met: boolean | undefined;
}

/** Ours ÷ theirs of medians. A rate's goal is a lower limit, a waiting time's an upper one. */
export function judge({ measure, goal }: Row, ours: readonly number[], theirs: readonly number[]): Verdict {
  const ratio = median(ours) / median(theirs);
  if (goal === undefined || Number.isNaN(ratio)) return { ratio, met: undefined };
  return { ratio, met: measure === 'rate' ? ratio >= goal.ratio : ratio <= goal.ratio };
}

function rowText(row: Row, results: readonly SessionResult[]): string {
  const { ours, theirs, load, theirLoad, measure, goal, work } = row;
  const [own, other] = [valuesOf(results, ours, load, measure), valuesOf(results, theirs, theirLoad, measure)];
  const cell = (values: readonly number[], id: SystemId): string =>
    values.length > 0 ? spread(values) : reasonOf(results, id);
  const { ratio, met } = judge(row, own, other);
  const sign = measure === 'rate' ? '≥' : '≤';
  const stretch = goal?.stretch === undefined ? '' : ` (stretch ${goal.stretch})`;
  const asked = goal === undefined ? '–' : `${sign} ${goal.ratio}${stretch}`;
  const verdict = met === undefined ? '–' : met ? 'yes' : 'no';
  const factor = Number.isNaN(ratio) ? '–' : ratio.toFixed(2);
  return `| ${work} | ${nameOf(ours)} | ${cell(own, ours)} | ${nameOf(theirs)} | ${cell(other, theirs)} | ${factor} | ${asked} | ${verdict} |`;
}

/** Why a system has no figure for a row; its own words are cut to one short line of a table. */
function reasonOf(results: readonly SessionResult[], id: SystemId): string {
  const found = results.find(({ system, failure }) => system === nameOf(id) && failure !== null);
  const text = (found?.failure ?? 'not run').replaceAll(/[|\s]+/g, ' ');
  return text.length > 100 ? `${text.slice(0, 100)}…` : text;
}

/** Start-up and memory of each system, the highest share of others in any of its runs. */
function systemText(name: string, results: readonly SessionResult[]): string {
  const own = results.filter(({ system, samples }) => system === name && samples.length > 0);
  const starts = own.map(({ startSeconds }) => startSeconds).filter((value) => value !== null);
  const memory = own.map(({ rssMiB }) => rssMiB).filter((value) => value !== null);
  const foreign = own.flatMap(({ samples }) => samples.map(({ foreignCores }) => foreignCores));
  const show = (values: readonly number[]): string => (values.length > 0 ? spread(values) : '–');
  return `| ${name} | ${show(starts)} | ${show(memory)} | ${starts.length > 0 ? Math.max(...foreign).toFixed(2) : '–'} |`;
}

export function markdown(
  rows: readonly Row[],
  results: readonly SessionResult[],
  starts: readonly DefaultStart[],
  facts: RunFacts,
): string {
  const { machine } = facts;
  const names = [...new Set(results.filter(({ samples }) => samples.length > 0).map(({ system }) => system))];
  const versions = Object.entries(facts.versions).map(([product, version]) => `${product} ${version}`);
  return [
    `${facts.cpu}; ${facts.threads} threads; commit ${facts.commit}; ${versions.join(', ')}. ${facts.model}.`,
    `Measured in the same run, before: bf16 peak ${machine.gflops.toFixed(0)} GFLOP/s, int8 ${machine.int8Gops.toFixed(0)} GOP/s, read ${machine.gbPerSecond.toFixed(1)} GB/s.`,
    `Medians [min..max] of ${facts.passes} passes with ${facts.repeats} runs each; tokens/s unless a row says otherwise.`,
    '',
    '| work | ours | | theirs | | ours ÷ theirs | goal | met |',
    '|---|---|---|---|---|---|---|---|',
    ...rows.map((row) => rowText(row, results)),
    '',
    '| system | start-up, s | RSS after the loads, MiB | cores taken by others, highest |',
    '|---|---|---|---|',
    ...names.map((name) => systemText(name, results)),
    ...startText(starts),
  ].join('\n');
}

/** Replaces what stands between `<!-- NAME: … -->` and `<!-- /NAME -->`; throws when the page has no such place. */
export function insertBlock(page: string, name: string, block: string): string {
  const [open, close] = [page.indexOf(`<!-- ${name}:`), page.indexOf(`<!-- /${name} -->`)];
  if (open < 0 || close < open) throw new Error(`expected <!-- ${name}: … --> and <!-- /${name} --> in the page`);
  const begin = page.indexOf('-->', open) + '-->'.length;
  return `${page.slice(0, begin)}\n\n${block}\n\n${page.slice(close)}`;
}
