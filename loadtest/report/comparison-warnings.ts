/** What makes a comparison of two runs unfair, in sentences. */
import { numberText } from './number-text.js';
import type { RunReport } from './run-report.js';

export function comparisonWarnings(before: RunReport, after: RunReport): readonly string[] {
  const [one, other] = [before.workload, after.workload];
  const checks: readonly (readonly [boolean, string])[] = [
    [before.run.id === after.run.id, 'Both reports are of the same run. Compare two runs.'],
    [
      before.trace.sha256 !== after.trace.sha256,
      'The runs sent different requests (their traces differ), so differences may come from the load. Repeat one with the trace of the other.',
    ],
    [
      one.loop !== other.loop,
      `One loop was ${one.loop}, the other ${other.loop}: their latencies mean different things. Run both with one kind.`,
    ],
    [
      isFar(one.askedPerSecond, other.askedPerSecond),
      `The asked rates differ: ${numberText(one.askedPerSecond ?? undefined)}/s and ${numberText(other.askedPerSecond ?? undefined)}/s. Ask for one rate.`,
    ],
    [
      one.concurrency !== other.concurrency,
      `The concurrency differs: ${one.concurrency ?? 'none'} and ${other.concurrency ?? 'none'}. Ask for one number.`,
    ],
    [
      JSON.stringify(one.slo) !== JSON.stringify(other.slo),
      'The limits of the SLO differ, so goodput means different things. Use one SLO.',
    ],
    [
      before.run.machine.cpuModel !== after.run.machine.cpuModel ||
        before.run.machine.cpuCount !== after.run.machine.cpuCount,
      'The load generators ran on different machines. Run both from one machine.',
    ],
    [
      hasUnknownTokens(before) !== hasUnknownTokens(after),
      'One server reports its tokens and of the other only pieces of the stream were counted, so figures by token are not comparable.',
    ],
  ];
  return [
    ...[before, after].flatMap(invalidity),
    ...checks.flatMap(([isUnfair, sentence]) => (isUnfair ? [sentence] : [])),
  ];
}

/** Why the figures of a run that is not valid prove nothing; empty for a valid one. */
export function invalidity({ run, verdict }: RunReport): readonly string[] {
  if (verdict.valid) return [];
  const reasons = verdict.findings.filter(({ severity }) => severity === 'invalid').map(({ kind }) => kind);
  return [`Run ${run.name} (${run.id}) is not valid (${reasons.join(', ')}): its figures prove nothing. Repeat it.`];
}

function isFar(one: number | null, other: number | null): boolean {
  if (one === null || other === null) return one !== other;
  return Math.abs(one - other) > 0.01 * Math.max(one, other);
}

function hasUnknownTokens({ verdict }: RunReport): boolean {
  return verdict.findings.some(({ kind }) => kind === 'unknown_tokens');
}
