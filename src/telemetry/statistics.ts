/** The statistics line: once per interval while there is work. Started by the composition root (cli). */
import type { Clock } from '../core/clock.js';
import type { Logger } from './log.js';
import type { EngineSnapshot } from './metrics.js';

export interface StatisticsOptions {
  readonly engine: () => EngineSnapshot;
  readonly logger: Logger;
  readonly clock: Clock;
  readonly everyMs?: number;
}

/** Starts the line; the returned function stops it. The timer does not keep the process alive. */
export function startStatistics(options: StatisticsOptions): () => void {
  let before = options.engine();
  let beforeMs = options.clock.nowMs();
  const timer = setInterval(() => {
    const now = options.engine();
    const nowMs = options.clock.nowMs();
    const seconds = Math.max((nowMs - beforeMs) / 1000, 1e-3);
    const prompt = now.promptTokens - before.promptTokens;
    const generated = now.generationTokens - before.generationTokens;
    if (prompt + generated + now.running + now.waiting > 0) {
      const fields = {
        promptTokensPerSecond: round(prompt / seconds),
        generationTokensPerSecond: round(generated / seconds),
        running: now.running,
        waiting: now.waiting,
        kvUsage: round(now.kvUsage),
        preemptions: now.preemptions - before.preemptions,
      };
      options.logger.info(fields, 'statistics');
    }
    before = now;
    beforeMs = nowMs;
  }, options.everyMs ?? 10_000);
  timer.unref();
  return () => clearInterval(timer);
}

/** Three decimals are enough for a person and keep the line short. */
function round(value: number): number {
  return Math.round(value * 1000) / 1000;
}
