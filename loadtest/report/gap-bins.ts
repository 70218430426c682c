/**
 * The gaps of one answer in few numbers: how many lie in each bucket of equal ratio. Kept a request, so that percentiles of
 * all gaps can be compared with intervals over requests; a report's own percentiles come from the finer histogram.
 */

/** A bucket's upper end over its lower one. */
const RATIO = 1.04;
/** Bucket b holds (RATIO^(b−1), RATIO^b] ms; all below 0.08 µs stand in the lowest. */
const LOWEST = -240;

/** Bucket, count, bucket, count …, buckets ascending. */
export type GapBins = readonly number[];

/** `sortedMs`: ascending. */
export function gapBinsOf(sortedMs: Float64Array): GapBins {
  const bins: number[] = [];
  for (const gap of sortedMs) {
    // + 0: a negative zero would come back from JSON as another number.
    const bucket = gap > 0 ? Math.max(LOWEST, Math.ceil(Math.log(gap) / Math.log(RATIO)) + 0) : LOWEST;
    if (bins.at(-2) === bucket) bins[bins.length - 1] = (bins.at(-1) ?? 0) + 1;
    else bins.push(bucket, 1);
  }
  return bins;
}

/** Milliseconds at a share (0..1) of a bucket's width, in ratio. */
export function withinBucket(bucket: number, share: number): number {
  return bucket <= LOWEST ? 0 : RATIO ** (bucket - 1 + share);
}
