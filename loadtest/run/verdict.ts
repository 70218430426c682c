/** Whether a run's figures may be believed, with reasons. Pure. */
import type { Aggregate, Disagreement, Finding, RequestRecord, Verdict } from '../report/run-report.js';
import type { ClientFigures } from './client-monitor.js';
import type { Achieved } from './rates.js';

export interface Evidence {
  readonly total: Aggregate;
  readonly records: readonly RequestRecord[];
  /** `undefined` for a closed loop. */
  readonly achieved: Achieved | undefined;
  readonly askedPerSecond: number | null;
  readonly client: ClientFigures;
  readonly interrupted: boolean;
  readonly disagreements: readonly Disagreement[];
}

/** Below this share of the asked rate a run is about another load than the one in its title. */
export const MIN_ACHIEVED = 0.95;
/**
 * Above these the client's own work is part of the figures; above the hard ones they are mostly its own. Lag is no news
 * while it is a small share of what was measured.
 */
export const CLIENT_LIMITS = {
  lagP99Ms: 10,
  lagShare: 0.05,
  hardLagP99Ms: 50,
  hardLagShare: 0.25,
  cpuShare: 0.85,
  hardCpuShare: 0.97,
} as const;
const WARN_ERRORS = 0.01;

export function judge(evidence: Evidence): Verdict {
  const findings = [
    ...judgeSamples(evidence),
    ...judgeRate(evidence),
    ...judgeClient(evidence.client, evidence.total),
    ...judgeErrors(evidence.total),
    ...judgeTokens(evidence.records),
    ...evidence.disagreements.map(toFinding),
  ];
  return { valid: findings.every(({ severity }) => severity !== 'invalid'), findings };
}

function judgeSamples({ total, interrupted }: Evidence): Finding[] {
  const findings: Finding[] = [];
  if (interrupted) {
    const message = 'The run was ended before its schedule was over; figures are of the part that ran. Run it again.';
    findings.push({ kind: 'interrupted', severity: 'invalid', message });
  }
  if (total.ok === 0) {
    const message =
      total.requests === 0
        ? 'No measured request was sent. Check duration, requests and rate of the scenario.'
        : `None of ${total.requests} requests succeeded (${describeErrors(total)}). Check the server and target.url.`;
    findings.push({ kind: 'no_requests', severity: 'invalid', message });
  } else if (total.ok < 1000) {
    const highest = total.ok < 20 ? 'p95 and above are' : total.ok < 100 ? 'p99 and above are' : 'p99.9 is';
    const message = `With ${total.ok} successful requests ${highest} decided by single requests. Run longer to trust them.`;
    findings.push({ kind: 'too_few', severity: 'warning', message });
  }
  return findings;
}

function judgeRate({ achieved, askedPerSecond, total }: Evidence): Finding[] {
  if (achieved === undefined || total.requests === 0) return [];
  const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
  const asked = `${askedPerSecond?.toFixed(2) ?? '?'} requests/s`;
  if (achieved.sentShare < MIN_ACHIEVED) {
    const message =
      `Only ${percent(achieved.sentShare)} of the asked ${asked} were sent in time; at least 95 % are needed. The client or ` +
      'its limit on requests in flight held them back: lower the rate, raise limits.max-in-flight, or free a core.';
    return [{ kind: 'achieved_rate', severity: 'invalid', message }];
  }
  if (achieved.completedShare < MIN_ACHIEVED) {
    const message =
      `The server kept up with ${percent(achieved.completedShare)} of the asked ${asked}; at least 95 % are needed. ` +
      'Latencies then tell how long the run was, not how fast the server is: lower the rate, or run much longer than an answer takes.';
    return [{ kind: 'achieved_rate', severity: 'invalid', message }];
  }
  return [];
}

function judgeClient({ eventLoopLagMs, cpuShareMean }: ClientFigures, total: Aggregate): Finding[] {
  const { ttftFromSent, itl } = total.latency;
  const measured = Math.min(ttftFromSent.p50Ms ?? 0, itl.p50Ms ?? Infinity);
  const isLate = (floorMs: number, share: number): boolean => eventLoopLagMs.p99 > Math.max(floorMs, share * measured);
  const hard =
    isLate(CLIENT_LIMITS.hardLagP99Ms, CLIENT_LIMITS.hardLagShare) || cpuShareMean > CLIENT_LIMITS.hardCpuShare;
  const soft = isLate(CLIENT_LIMITS.lagP99Ms, CLIENT_LIMITS.lagShare) || cpuShareMean > CLIENT_LIMITS.cpuShare;
  if (!hard && !soft) return [];
  const delay = total.latency.sendDelay.p99Ms;
  const message =
    `The load generator was itself a limit: event-loop lag p99 ${eventLoopLagMs.p99.toFixed(1)} ms, ` +
    `${(cpuShareMean * 100).toFixed(0)} % of a core${delay === null ? '' : `, send delay p99 ${delay.toFixed(1)} ms`}. ` +
    `${hard ? 'Latencies are mostly its own' : 'Latencies may be too high by as much'}: give it a free core or ask for less.`;
  return [{ kind: 'client_limit', severity: hard ? 'invalid' : 'warning', message }];
}

function judgeErrors(total: Aggregate): Finding[] {
  const failed = total.requests - total.ok;
  if (total.ok === 0 || failed / total.requests <= WARN_ERRORS) return [];
  const message =
    `${failed} of ${total.requests} requests failed (${describeErrors(total)}). ` +
    'Latencies are of the others alone, which are often the quick ones: look at the errors first.';
  return [{ kind: 'errors', severity: 'warning', message }];
}

function describeErrors({ errors }: Aggregate): string {
  return Object.entries(errors)
    .sort(([, left], [, right]) => right - left)
    .map(([outcome, count]) => `${outcome} ${count}`)
    .join(', ');
}

function judgeTokens(records: readonly RequestRecord[]): Finding[] {
  const ok = records.filter(({ outcome }) => outcome === 'ok');
  const short = ok.filter(({ outputTokens, outputTokensAsked }) => outputTokens < 0.9 * outputTokensAsked).length;
  const findings: Finding[] = [];
  if (ok.length > 0 && ok.every(({ promptTokens }) => promptTokens === null)) {
    const message =
      'The server sends no usage, so pieces of the stream were counted as tokens; one piece may hold several. ' +
      'Read throughput and TPOT with care.';
    findings.push({ kind: 'unknown_tokens', severity: 'warning', message });
  } else if (short > 0.05 * ok.length) {
    const message =
      `${short} of ${ok.length} answers are more than 10 % shorter than asked, so the load was lighter than the scenario's. ` +
      'Set output.ignore-eos: true with a dialect that has it.';
    findings.push({ kind: 'unknown_tokens', severity: 'warning', message });
  }
  return findings;
}

function toFinding({ what, unit, client, server, message }: Disagreement): Finding {
  const digits = unit === 'ms' ? 1 : 0;
  const figures = `${what}: client ${client.toFixed(digits)} ${unit}, server ${server.toFixed(digits)} ${unit}.`;
  return { kind: 'disagreement', severity: 'warning', message: `${figures} ${message}` };
}
