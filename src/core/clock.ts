/** The only file that reads time. Everything else gets a {@link Clock}, so tests need no real sleep. */
export interface Clock {
  /** Milliseconds of a clock that never goes back; only differences mean anything. */
  nowMs(): number;
  /** Whole seconds since 1970, for `created` fields and log lines. */
  unixSeconds(): number;
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  unixSeconds: () => Math.floor(Date.now() / 1000),
};
