/** Waiting between attempts, the same for listings and files. Used by fetch-file and hub. */
import { setTimeout as sleepMs } from 'node:timers/promises';

import type { RetryableFailure } from './http-get.js';
import type { ProgressReporter } from './progress.js';

export interface RetryContext {
  readonly progress: ProgressReporter;
  readonly signal?: AbortSignal;
  /** Tests put something faster here. */
  readonly sleep?: (ms: number) => Promise<void>;
}

const FIRST_MS = 500;
const MAX_MS = 30_000;
/** As long as a server may ask us to wait. */
const MAX_ASKED_MS = 300_000;

/** Tells what failed, then waits: twice as long after each failure, or as long as the server asks. */
export async function pauseAfter(failure: RetryableFailure, failures: number, context: RetryContext): Promise<void> {
  const backoff = Math.min(FIRST_MS * 2 ** (failures - 1), MAX_MS);
  const ms = failure.afterSeconds === undefined ? backoff : Math.min(1000 * failure.afterSeconds, MAX_ASKED_MS);
  context.progress.note(`${failure.message}; trying again in ${(ms / 1000).toFixed(1)} s`);
  await (context.sleep === undefined ? sleepMs(ms, undefined, { signal: context.signal }) : context.sleep(ms));
}
