/** One run from a checked scenario to its report: the only place that puts the parts together. Called by `manyfold bench`. */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { arch, cpus, platform, totalmem } from 'node:os';
import type { Secret } from '../../src/config/secret.js';
import type { Clock } from '../../src/core/clock.js';
import { checkAdapters, createDialect } from '../client/dialect.js';
import { HttpClient } from '../client/http-client.js';
import { findDisagreements } from '../metrics/disagreements.js';
import { Scraper } from '../metrics/scraper.js';
import type { ScrapedRun } from '../metrics/scraper.js';
import { aggregateAdapters, aggregateTotal, measuredOf } from '../record/aggregate.js';
import { Recorder } from '../record/recorder.js';
import { buildTimeline } from '../record/timeline.js';
import { REPORT_FORMAT, REPORT_VERSION } from '../report/run-report.js';
import type { RunIdentity, RunReport, ServerReport, WorkloadReport } from '../report/run-report.js';
import type { Scenario } from '../scenario/scenario.js';
import { planWorkload, toReportTrace } from '../workload/plan.js';
import type { Workload } from '../workload/plan.js';
import { ClientMonitor } from './client-monitor.js';
import type { ClientFigures } from './client-monitor.js';
import { LiveCounts } from './live-counts.js';
import type { LiveState } from './live-counts.js';
import { probeServer } from './probe.js';
import type { ServerFacts } from './probe.js';
import { achievedOf } from './rates.js';
import { ScheduleRunner } from './schedule-runner.js';
import type { RunWindow } from './schedule-runner.js';
import { checkTarget } from './target-guard.js';
import { PreciseTimer } from './timer.js';
import { judge } from './verdict.js';

export interface RunOptions {
  readonly scenario: Scenario;
  readonly clock: Clock;
  readonly apiKey: Secret | undefined;
  readonly allowRemote: boolean;
  /** Ends the run early; the report is made all the same. */
  readonly signal: AbortSignal;
  /** Of this build. */
  readonly version: string;
  /** For the report; without secrets. */
  readonly command: string;
  readonly onState?: (state: LiveState) => void;
}

const STATE_MS = 500;
const MAX_SCRAPE_MS = 5000;

/**
 * Throws 'invalid_config' for a target that is not allowed and 'not_found' when adapters are to come from a server that
 * does not tell them. Whatever the server does after that is counted, never thrown.
 */
export async function runScenario(options: RunOptions): Promise<RunReport> {
  const { scenario, clock, apiKey } = options;
  const { target } = scenario;
  checkTarget([target.url, ...(target.metricsUrl === undefined ? [] : [target.metricsUrl])], options.allowRemote);
  const startedUnix = clock.unixSeconds();
  const facts = await probeServer(scenario, apiKey);
  const workload = planWorkload(scenario, facts.adapterNames);
  checkAdapters(adaptersOf(workload, facts), scenario, facts.dialect);
  const dialect = createDialect(scenario, facts.dialect);
  const scraper = await startScraper(options);
  const startedAt = clock.nowMs();
  const live = new LiveCounts(startedAt);
  const onPiece = live.piece.bind(live);
  const client = new HttpClient({ url: target.url, dialect, limits: scenario.limits, apiKey, clock, onPiece });
  const { slo } = scenario;
  const recorder = new Recorder({ startedAt, slo, ...scenario.report });
  const timer = new PreciseTimer(clock, options.signal);
  const monitor = new ClientMonitor(clock, { inFlight: () => client.inFlight, idleMs: () => timer.idleMs });
  const runner = new ScheduleRunner({
    client,
    dialect,
    recorder,
    timer,
    clock,
    limits: scenario.limits,
    signal: options.signal,
    onEnd: (result) => live.ended(result),
    onSent: () => live.sent(),
  });
  let phase: LiveState['phase'] = 'warmup';
  const total = workload.measured.loop === 'open' ? workload.warmup.length + workload.measured.requests.length : null;
  const tell = (): void => {
    const now = clock.nowMs();
    const counts = live.take(now);
    const isSent = total !== null && counts.sent === total;
    options.onState?.({
      ...counts,
      phase: isSent ? 'drain' : phase,
      elapsedMs: now - startedAt,
      totalRequests: total,
      inFlight: client.inFlight,
    });
  };
  const teller = setInterval(tell, STATE_MS);
  monitor.start();
  try {
    await runner.warmUp(workload, scenario.warmup.concurrency);
    phase = 'measured';
    const window = await runner.measure(workload, () => monitor.beginMeasured());
    const figures = monitor.stop(startedAt);
    const scraped = await scraper?.stop(startedAt);
    tell();
    const parts = { options, facts, workload, dialectName: dialect.name, recorder, runner, window, figures, scraped };
    return makeReport({ ...parts, startedUnix });
  } finally {
    clearInterval(teller);
    monitor.close();
    scraper?.close();
    await client.close();
  }
}

/** All that the run may ask for. */
function adaptersOf({ measured }: Workload, { adapterNames }: ServerFacts): Set<string | null> {
  const traced = measured.loop === 'open' ? measured.requests.map(({ adapter }) => adapter) : [];
  return new Set([...adapterNames, ...traced]);
}

async function startScraper({ scenario, apiKey, clock }: RunOptions): Promise<Scraper | undefined> {
  const { url, metricsUrl } = scenario.target;
  if (metricsUrl === undefined) return undefined;
  const scraper = new Scraper({
    url: metricsUrl,
    intervalMs: scenario.report.metricsIntervalMs,
    timeoutMs: Math.min(MAX_SCRAPE_MS, scenario.limits.firstTokenMs),
    // The key is the target's; a collector of metrics elsewhere has no business with it.
    apiKey: new URL(metricsUrl).origin === new URL(url).origin ? apiKey : undefined,
    clock,
  });
  return (await scraper.start()) ? scraper : undefined;
}

interface Finished {
  readonly options: RunOptions;
  readonly facts: ServerFacts;
  readonly workload: Workload;
  readonly dialectName: string;
  readonly recorder: Recorder;
  readonly runner: ScheduleRunner;
  readonly window: RunWindow;
  readonly figures: ClientFigures;
  readonly scraped: ScrapedRun | undefined;
  readonly startedUnix: number;
}

function makeReport(run: Finished): RunReport {
  const { options, recorder, window, figures, workload } = run;
  const { records, startedAt } = recorder;
  const measured = measuredOf(records, round(window.from - startedAt));
  const total = aggregateTotal(recorder, measured);
  const lastEndMs = records.reduce((last, { endAtMs }) => Math.max(last, endAtMs ?? 0), 0);
  const endMs = Math.max(lastEndMs, window.to - startedAt);
  const asked = workload.measured.loop === 'open' ? workload.measured.askedPerSecond : null;
  const achieved = asked === null ? undefined : achievedOf(measured.records, window.to - startedAt);
  const server = toServerReport(run);
  const interrupted = options.signal.aborted;
  const disagreements = server?.disagreements ?? [];
  const verdict = judge({
    total,
    records: measured.records,
    achieved,
    askedPerSecond: asked,
    client: figures,
    interrupted,
    disagreements,
  });
  const sent = measured.records.filter(({ sentAtMs }) => sentAtMs !== null).length;
  const spanSeconds = Math.max(1e-9, total.spanMs / 1000);
  return {
    format: REPORT_FORMAT,
    formatVersion: REPORT_VERSION,
    run: identify(run, { durationMs: round(endMs), interrupted }),
    workload: {
      ...describeWorkload(run),
      scheduledRequests: measured.records.length,
      askedPerSecond: asked,
      sentPerSecond: asked === null || achieved === undefined ? sent / spanSeconds : asked * achieved.sentShare,
      completedPerSecond:
        asked === null || achieved === undefined ? total.requestsPerSecond : asked * achieved.completedShare,
      achievedShare: achieved === undefined ? null : Math.min(achieved.sentShare, achieved.completedShare),
    },
    verdict,
    total,
    adapters: aggregateAdapters(recorder, measured),
    timeline: buildTimeline(records, recorder.pieceBuckets, options.scenario.report.bucketMs, endMs),
    server,
    client: { ...figures, wasLimit: verdict.findings.some(({ kind }) => kind === 'client_limit') },
    requests: records,
    trace: toReportTrace(run.runner.scheduled),
  };
}

type WorkloadRates = 'scheduledRequests' | 'askedPerSecond' | 'sentPerSecond' | 'completedPerSecond' | 'achievedShare';

function describeWorkload({ options, workload, recorder, window }: Finished): Omit<WorkloadReport, WorkloadRates> {
  const { measured } = workload;
  return {
    loop: measured.loop,
    arrivals: options.scenario.arrivals.kind,
    description: workload.description,
    measuredFromMs: round(window.from - recorder.startedAt),
    measuredToMs: round(window.to - recorder.startedAt),
    warmupRequests: workload.warmup.length,
    concurrency: measured.loop === 'closed' ? measured.concurrency : null,
    slo: recorder.slo,
  };
}

function toServerReport({ scraped, recorder }: Finished): ServerReport | null {
  if (scraped === undefined) return null;
  return {
    metricsUrl: scraped.url,
    flavour: scraped.flavour,
    samples: scraped.samples,
    failedScrapes: scraped.failedScrapes,
    disagreements: findDisagreements(recorder.records, scraped),
  };
}

function identify(
  { options, facts, dialectName, startedUnix }: Finished,
  { durationMs, interrupted }: { durationMs: number; interrupted: boolean },
): RunIdentity {
  const { scenario } = options;
  return {
    id: randomBytes(6).toString('hex'),
    name: scenario.name,
    startedAt: new Date(startedUnix * 1000).toISOString(),
    durationMs,
    seed: scenario.seed,
    command: options.command,
    targetUrl: scenario.target.url,
    dialect: dialectName,
    scenarioText: scenario.text,
    scenarioPath: scenario.path,
    versions: {
      manyfold: options.version,
      node: process.version,
      undici: undiciVersion(),
      server: facts.version,
    },
    machine: {
      platform: platform(),
      arch: arch(),
      cpuModel: cpus()[0]?.model ?? 'unknown',
      cpuCount: cpus().length,
      memoryBytes: totalmem(),
    },
    interrupted,
  };
}

function undiciVersion(): string {
  const path = createRequire(import.meta.url).resolve('undici/package.json');
  const parsed: unknown = JSON.parse(readFileSync(path, 'utf8'));
  const version = typeof parsed === 'object' && parsed !== null && 'version' in parsed ? parsed.version : undefined;
  return typeof version === 'string' ? version : 'unknown';
}

function round(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}
