/**
 * How many neighbouring requests depend on each other. Requests share a queue: after a stall many are slow together. An
 * interval that takes them for independent is too narrow, so runs are resampled in blocks of this length.
 *
 * Politis and White, "Automatic block-length selection for the dependent bootstrap" (Econometric Reviews 23, 2004), with the
 * correction of Patton, Politis and White (Econometric Reviews 28, 2009), for the circular block bootstrap.
 */

/** Number of neighbours (1 ≤ b ≤ n) for a series in order of time. 1 says that no dependence was found. */
export function blockLength(series: Float64Array): number {
  const n = series.length;
  if (n < 10) return 1;
  const window = Math.max(5, Math.ceil(Math.sqrt(Math.log10(n))));
  const reach = Math.min(n - 1, Math.ceil(Math.sqrt(n)) + window);
  const covariances = autocovariances(series, reach);
  const variance = covariances[0] as number;
  if (!(variance > 0)) return 1;
  const lastLag = lastCorrelatedLag(covariances, window, 2 * Math.sqrt(Math.log10(n) / n));
  const bandwidth = Math.min(reach, 2 * lastLag);
  let spectrum = variance;
  let slope = 0;
  for (let lag = 1; lag <= bandwidth; lag += 1) {
    const weighted = 2 * flatTop(lag / bandwidth) * (covariances[lag] as number);
    spectrum += weighted;
    slope += lag * weighted;
  }
  if (!(spectrum > 0)) return 1;
  const best = ((2 * slope ** 2) / ((4 / 3) * spectrum ** 2)) ** (1 / 3) * n ** (1 / 3);
  return Math.max(1, Math.min(Math.ceil(best), Math.ceil(Math.min(3 * Math.sqrt(n), n / 3))));
}

/**
 * Factor by which dependence raises the variance of the mean over that of independent values (survey statistics' "design
 * effect"), at least 1: the long-run variance, taken from means of blocks, over the plain one.
 */
export function designEffect(series: Float64Array, block: number): number {
  const n = series.length;
  const mean = series.reduce((sum, value) => sum + value, 0) / n;
  const variance = series.reduce((sum, value) => sum + (value - mean) ** 2, 0) / n;
  if (block <= 1 || !(variance > 0)) return 1;
  // All n overlapping blocks of the circle, each sum from the one before.
  let sum = 0;
  for (let index = 0; index < block; index += 1) sum += series[index % n] as number;
  let squares = 0;
  for (let start = 0; start < n; start += 1) {
    squares += (sum - block * mean) ** 2;
    sum += (series[(start + block) % n] as number) - (series[start] as number);
  }
  return Math.max(1, squares / n / block / variance);
}

function autocovariances(series: Float64Array, reach: number): Float64Array {
  const n = series.length;
  const mean = series.reduce((sum, value) => sum + value, 0) / n;
  return Float64Array.from({ length: reach + 1 }, (_, lag) => {
    let sum = 0;
    for (let index = lag; index < n; index += 1) {
      sum += ((series[index] as number) - mean) * ((series[index - lag] as number) - mean);
    }
    return sum / n;
  });
}

/** The smallest lag after which `window` correlations in a row are within the noise. */
function lastCorrelatedLag(covariances: Float64Array, window: number, noise: number): number {
  const limit = noise * (covariances[0] as number);
  const isNoise = (lag: number): boolean => Math.abs(covariances[lag] ?? 0) < limit;
  const last = covariances.length - 1 - window;
  for (let lag = 0; lag <= last; lag += 1) {
    const isQuiet = Array.from({ length: window }, (_, ahead) => isNoise(lag + 1 + ahead)).every(Boolean);
    if (isQuiet) return Math.max(1, lag);
  }
  return covariances.length - 1;
}

/** The trapezoid of Politis and Romano: 1 up to a half, then falling to 0 at 1. */
function flatTop(share: number): number {
  return share <= 0.5 ? 1 : Math.max(0, 2 * (1 - share));
}
