/** `manyfold bench …`: runs a load-test scenario against a server, compares two runs. Called by program.ts; loadtest/ does the work. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { InvalidArgumentError, Option } from 'commander';
import type { Command } from 'commander';
import type { ReportFormats, TableStyle } from '../../loadtest/report/run-comparison.js';
import type { RunReport } from '../../loadtest/report/run-report.js';
import type { ScenarioOverrides } from '../../loadtest/scenario/read-scenario.js';
import type { DialectName } from '../../loadtest/scenario/schema.js';
import { Secret } from '../config/secret.js';
import { ManyfoldError } from '../core/errors.js';
import { EXIT } from './context.js';
import type { CliContext } from './context.js';
import { packageVersion } from './version.js';

interface FormatFlags {
  readonly out?: string;
  readonly json?: true;
  readonly csv?: true;
  readonly html?: true;
}

interface CompareFlags extends FormatFlags {
  readonly adapters?: readonly [string | null, string | null];
}

interface BenchFlags extends FormatFlags {
  readonly url?: string;
  readonly dialect?: DialectName;
  readonly seed?: number;
  readonly rate?: number;
  readonly concurrency?: number;
  readonly apiKey?: string;
  readonly allowRemote?: true;
  readonly quiet?: true;
}

/** Those of scenario/schema.ts, which is loaded only when a run begins. */
const DIALECTS: readonly DialectName[] = ['manyfold', 'vllm', 'lorax', 'llama-server', 'openai'];

const EXAMPLES = `
Examples:
  manyfold bench loadtest/scenarios/quick.yaml                      a table in the terminal
  manyfold bench loadtest/scenarios/zipf.yaml --out runs/before     and report.json, CSV and report.html
  manyfold bench compare runs/before runs/after                     what changed, with confidence intervals
  manyfold bench compare runs/canary --adapters stable,canary       two adapters of one run
  manyfold bench sweep runs/rate-* --out runs/curve                 throughput against latency

The exit code is 0 for a valid run and 1 for one whose figures must not be used; the report says why.
The target must be on this machine unless --allow-remote is given. See docs/loadtest.md.
`;

export function addBenchCommand(program: Command, context: CliContext, finish: (exitCode: number) => void): void {
  const bench = program
    .command('bench')
    .description('Load-tests any OpenAI-compatible server, ours, vLLM, LoRAX or llama-server, as a scenario says.')
    .argument('<SCENARIO>', 'YAML file, such as loadtest/scenarios/quick.yaml')
    .option('--url <URL>', 'the server; default: target.url of the scenario')
    .addOption(
      new Option('--dialect <NAME>', 'another kind of server than target.dialect of the scenario').choices(DIALECTS),
    )
    .option('--seed <N>', 'another seed than the scenario’s', wholeNumber)
    .option('--rate <N>', 'another rate than the scenario’s, in requests a second', aboveZero)
    .option('--concurrency <N>', 'another number of users than the scenario’s', atLeastOne)
    .option('--api-key <KEY>', 'key of the server (Env: MANYFOLD_API_KEY)')
    .option('--allow-remote', 'the target may be another machine than this one')
    .option('--quiet', 'no progress line')
    .addHelpText('after', EXAMPLES)
    .action(async (path: string, flags: BenchFlags) => {
      finish(await benchRun(path, flags, context));
    });
  addFormats(bench);
  addFormats(
    bench
      .command('compare')
      .description(
        'Compares two runs of `manyfold bench --out`, total and for each adapter, or two adapters of one run.',
      )
      .argument('<BEFORE>', 'report.json, or the folder it lies in')
      .argument('[AFTER]', 'the other one; left out with --adapters')
      .option('--adapters <NAME,NAME>', 'two adapters of one run; an empty name is the base model', twoNames),
  ).action(async (before: string, after: string | undefined, _flags: CompareFlags, command: Command) => {
    await compare(before, after, command.optsWithGlobals<CompareFlags>(), context);
    finish(EXIT.ok);
  });
  bench
    .command('sweep')
    .description('Draws throughput against latency over runs that differ in load.')
    .argument('<RUNS...>', 'report.json files, or the folders they lie in')
    .requiredOption('--out <DIR>', 'folder for sweep.html')
    .action(async (paths: string[], _flags: unknown, command: Command) => {
      const { readReport } = await import('../../loadtest/report/read-report.js');
      const { writeSweep } = await import('../../loadtest/report/write-report.js');
      const { out } = command.optsWithGlobals<{ out: string }>();
      tellPaths(await writeSweep(await Promise.all(paths.map(readReport)), out), context);
      finish(EXIT.ok);
    });
}

function addFormats(command: Command): Command {
  return command
    .option('--out <DIR>', 'folder for the files; all kinds unless some are named')
    .option('--json', 'write JSON (into --out, default the working directory)')
    .option('--csv', 'write CSV')
    .option('--html', 'write one self-contained HTML page');
}

/** An empty name is the base model; adapter names hold no comma. */
function twoNames(text: string): readonly [string | null, string | null] {
  const [before, after, ...rest] = text.split(',').map((name) => name.trim() || null);
  if (before !== undefined && after !== undefined && rest.length === 0) return [before, after];
  throw new InvalidArgumentError('Give two names with a comma between them, such as stable,canary.');
}

function wholeNumber(text: string): number {
  const value = text.trim() === '' ? NaN : Number(text);
  if (Number.isSafeInteger(value) && value >= 0) return value;
  throw new InvalidArgumentError('Give a whole number of 0 or more.');
}

function aboveZero(text: string): number {
  const value = text.trim() === '' ? NaN : Number(text);
  if (value > 0 && value <= 1e6) return value;
  throw new InvalidArgumentError('Give a number above 0.');
}

function atLeastOne(text: string): number {
  const value = wholeNumber(text);
  if (value >= 1 && value <= 100_000) return value;
  throw new InvalidArgumentError('Give a whole number of 1 to 100000.');
}

/** Undefined when no file is wanted. */
function filesOf({ out, json, csv, html }: FormatFlags): { folder: string; formats: ReportFormats } | undefined {
  const isAny = json === true || csv === true || html === true;
  if (out === undefined && !isAny) return undefined;
  const formats = { json: json ?? !isAny, csv: csv ?? !isAny, html: html ?? !isAny };
  return { folder: out ?? '.', formats };
}

async function benchRun(path: string, flags: BenchFlags, context: CliContext): Promise<number> {
  // Loaded when they are needed: the other commands start faster without.
  const { readScenario } = await import('../../loadtest/scenario/read-scenario.js');
  const { runScenario } = await import('../../loadtest/run/run-scenario.js');
  const { ProgressLine } = await import('../../loadtest/run/progress.js');
  const { renderTable } = await import('../../loadtest/report/table.js');
  const { url, dialect, seed, rate, concurrency } = flags;
  const overrides: ScenarioOverrides = {
    ...(url === undefined ? {} : { url }),
    ...(dialect === undefined ? {} : { dialect }),
    ...(seed === undefined ? {} : { seed }),
    ...(rate === undefined ? {} : { rate }),
    ...(concurrency === undefined ? {} : { concurrency }),
  };
  const scenario = readScenario(path, context.readFile, overrides);
  const key = flags.apiKey ?? context.env['MANYFOLD_API_KEY']?.split(',')[0]?.trim();
  const progress = new ProgressLine(context.stderr);
  const report = await untilInterrupted((signal) =>
    runScenario({
      scenario,
      clock: context.clock,
      apiKey: key === undefined || key === '' ? undefined : new Secret(key),
      allowRemote: flags.allowRemote === true,
      signal,
      version: packageVersion(),
      command: `manyfold ${hideKeys(context.argv).map(quote).join(' ')}`,
      ...(flags.quiet === true ? {} : { onState: (state) => progress.show(state) }),
    }),
  );
  progress.end();
  context.stdout.write(`${renderTable(report, styleOf(context))}\n`);
  await writeFiles(report, flags, context);
  return report.verdict.valid ? EXIT.ok : EXIT.failed;
}

async function writeFiles(report: RunReport, flags: FormatFlags, context: CliContext): Promise<void> {
  const files = filesOf(flags);
  if (files === undefined) return;
  const { writeReport } = await import('../../loadtest/report/write-report.js');
  const { traceText } = await import('../../loadtest/workload/trace-file.js');
  const paths = await writeReport(report, files.folder, files.formats);
  const trace = join(files.folder, 'trace.jsonl');
  if (files.formats.json && report.workload.loop === 'open') {
    await mkdir(files.folder, { recursive: true });
    await writeFile(trace, traceText(report.trace.requests));
    return tellPaths([...paths, trace], context);
  }
  tellPaths(paths, context);
}

async function compare(
  before: string,
  after: string | undefined,
  flags: CompareFlags,
  context: CliContext,
): Promise<void> {
  const { readReport } = await import('../../loadtest/report/read-report.js');
  const { compareAdapters, compareRuns } = await import('../../loadtest/report/compare-runs.js');
  const { renderComparison } = await import('../../loadtest/report/comparison-table.js');
  if ((after === undefined) === (flags.adapters === undefined)) {
    throw new ManyfoldError(
      'invalid_config',
      'compare expects two runs, or one run and --adapters NAME,NAME. Give one of the two.',
    );
  }
  const report = await readReport(before);
  const comparison =
    after === undefined
      ? compareAdapters(report, ...(flags.adapters ?? [null, null]))
      : compareRuns(report, await readReport(after));
  context.stdout.write(`${renderComparison(comparison, styleOf(context))}\n`);
  const files = filesOf(flags);
  if (files === undefined) return;
  const { writeComparison } = await import('../../loadtest/report/write-report.js');
  tellPaths(await writeComparison(comparison, files.folder, files.formats), context);
}

function styleOf({ stdout, env }: CliContext): TableStyle {
  const isTerminal = stdout.isTTY === true;
  return { columns: Math.max(40, stdout.columns ?? 100), colour: isTerminal && (env['NO_COLOR'] ?? '') === '' };
}

function tellPaths(paths: readonly string[], { stderr }: CliContext): void {
  for (const path of paths) stderr.write(`wrote ${path}\n`);
}

/** The first Ctrl-C ends the run, whose report is still made; the second ends the process as usual. */
async function untilInterrupted<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const stop = (): void => controller.abort();
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  try {
    return await work(controller.signal);
  } finally {
    process.removeListener('SIGINT', stop);
    process.removeListener('SIGTERM', stop);
  }
}

/** Reports are handed on; a key is not. */
function hideKeys(argv: readonly string[]): readonly string[] {
  return argv.map((word, index) => {
    if (argv[index - 1] === '--api-key') return 'KEY';
    return word.startsWith('--api-key=') ? '--api-key=KEY' : word;
  });
}

function quote(word: string): string {
  return /^[\w./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
