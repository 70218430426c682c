/** Which targets a run of CI fuzzes: some each day, where the day before left off, so that every target has its turn. */
export interface Turn<T> {
  readonly target: T;
  readonly seconds: number;
}

/** Shorter turns find nothing but what the seeds themselves show. */
const LEAST_SECONDS = 10;

export function inRotation<T>(targets: readonly T[], options: { seconds: number; day: number }): Turn<T>[] {
  const { seconds, day } = options;
  const count = Math.min(targets.length, Math.max(1, Math.floor(seconds / LEAST_SECONDS)));
  const start = (day * count) % targets.length;
  return Array.from({ length: count }, (_, i) => ({
    target: targets[(start + i) % targets.length] as T,
    seconds: seconds / count,
  }));
}
