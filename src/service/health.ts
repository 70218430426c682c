/** Whether the process lives and whether it takes work. Answered from memory; means forward progress, not a flag. */
import type { EnginePort } from '../engine/port.js';
import type { Lifecycle } from './lifecycle.js';

export interface HealthDeps {
  readonly engine: EnginePort;
  readonly lifecycle: Lifecycle;
  /** Work may wait so long without a step ending. */
  readonly stallLimitMs: number;
}

export interface HealthAnswer {
  readonly ok: boolean;
  /** A sentence that says what is wrong and what to do; empty when all is well. */
  readonly reason: string;
}

const WELL: HealthAnswer = { ok: true, reason: '' };

/** Fails when work waits or runs and no step has ended for the limit: only a restart helps then. */
export function liveness(deps: HealthDeps): HealthAnswer {
  const { stalledMs, running, waiting } = deps.engine.stats();
  if (stalledMs < deps.stallLimitMs) return WELL;
  const reason =
    `No step has ended for ${Math.round(stalledMs / 1000)} s (at most ${deps.stallLimitMs / 1000} s is expected) while ` +
    `${running} sequences run and ${waiting} wait. Restart the server.`;
  return { ok: false, reason };
}

/** Fails also while draining, so that no new work is sent here. */
export function readiness(deps: HealthDeps): HealthAnswer {
  if (deps.lifecycle.draining) {
    return { ok: false, reason: 'The server is shutting down. Send work to another instance.' };
  }
  return liveness(deps);
}
