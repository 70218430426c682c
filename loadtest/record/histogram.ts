/**
 * A histogram with buckets of equal ratio: any percentile of it is within 0.5 % of the true value, whatever the values
 * are, in memory that does not grow with their number (Masson, Rim, Lee, "DDSketch", VLDB 2019). Minimum, maximum, mean
 * and standard deviation are exact. Values are milliseconds.
 */
import type { Distribution, HistogramBin } from '../report/run-report.js';

const RELATIVE_ERROR = 0.005;
const RATIO = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR);
const LOG_RATIO = Math.log(RATIO);
/** Below a tenth of a microsecond all is zero: pieces that came in one read of the socket. */
const SMALLEST_MS = 1e-4;

export class LatencyHistogram {
  /** Counts of buckets `#first` … `#first + #counts.length − 1`; bucket i holds (RATIO^(i−1), RATIO^i]. */
  #counts = new Uint32Array(0);
  #first = 0;
  #zeros = 0;
  #count = 0;
  #min = Infinity;
  #max = -Infinity;
  // Welford's running mean and sum of squared differences (1962).
  #mean = 0;
  #squares = 0;

  get count(): number {
    return this.#count;
  }

  /** `null` without a value. */
  get mean(): number | null {
    return this.#count === 0 ? null : this.#mean;
  }

  /** Negative values (clocks never give them) count as zero. */
  add(valueMs: number): void {
    const value = Math.max(0, valueMs);
    this.#count++;
    this.#min = Math.min(this.#min, value);
    this.#max = Math.max(this.#max, value);
    const difference = value - this.#mean;
    this.#mean += difference / this.#count;
    this.#squares += difference * (value - this.#mean);
    if (value < SMALLEST_MS) this.#zeros++;
    else this.#increment(Math.ceil(Math.log(value) / LOG_RATIO));
  }

  /** Nearest rank: the smallest value that at least `share` of all values do not exceed. `null` without a value. */
  percentile(share: number): number | null {
    if (this.#count === 0) return null;
    const rank = Math.max(1, Math.ceil(share * this.#count));
    if (rank === this.#count) return this.#max;
    let seen = this.#zeros;
    if (rank <= seen) return this.#min;
    for (let index = 0; index < this.#counts.length; index++) {
      seen += this.#counts[index] ?? 0;
      // The point of the bucket from which both of its ends are equally far in ratio.
      if (rank <= seen) return this.#clamp((2 * RATIO ** (this.#first + index)) / (1 + RATIO));
    }
    return this.#max;
  }

  /** `maxBins`: neighbours are joined until no more bins than this remain; 0 leaves bins out. */
  summary(maxBins: number): Distribution {
    const empty = this.#count === 0;
    return {
      count: this.#count,
      meanMs: this.mean,
      standardDeviationMs: empty ? null : Math.sqrt(this.#squares / this.#count),
      minMs: empty ? null : this.#min,
      maxMs: empty ? null : this.#max,
      p50Ms: this.percentile(0.5),
      p90Ms: this.percentile(0.9),
      p95Ms: this.percentile(0.95),
      p99Ms: this.percentile(0.99),
      p999Ms: this.percentile(0.999),
      bins: this.#bins(maxBins),
    };
  }

  #bins(maxBins: number): HistogramBin[] {
    if (maxBins === 0 || this.#count === 0) return [];
    const bins: HistogramBin[] = [];
    if (this.#zeros > 0) bins.push({ fromMs: 0, toMs: SMALLEST_MS, count: this.#zeros });
    const occupied = this.#occupied();
    const width = Math.max(1, Math.ceil((occupied.to - occupied.from) / maxBins));
    for (let start = occupied.from; start < occupied.to; start += width) {
      let count = 0;
      for (let index = start; index < Math.min(start + width, occupied.to); index++) count += this.#counts[index] ?? 0;
      if (count === 0) continue;
      const bucket = this.#first + start;
      bins.push({ fromMs: RATIO ** (bucket - 1), toMs: RATIO ** (bucket + width - 1), count });
    }
    return bins;
  }

  /** Range of indices of #counts outside of which all are 0. */
  #occupied(): { from: number; to: number } {
    const from = this.#counts.findIndex((count) => count > 0);
    if (from < 0) return { from: 0, to: 0 };
    return { from, to: this.#counts.findLastIndex((count) => count > 0) + 1 };
  }

  #clamp(value: number): number {
    return Math.min(this.#max, Math.max(this.#min, value));
  }

  #increment(bucket: number): void {
    if (this.#counts.length === 0) {
      this.#counts = new Uint32Array(64);
      this.#first = bucket - 32;
    } else if (bucket < this.#first || bucket >= this.#first + this.#counts.length) {
      this.#grow(bucket);
    }
    const index = bucket - this.#first;
    this.#counts[index] = (this.#counts[index] ?? 0) + 1;
  }

  #grow(bucket: number): void {
    const first = Math.min(this.#first, bucket - 32);
    const end = Math.max(this.#first + this.#counts.length, bucket + 33);
    const grown = new Uint32Array(end - first);
    grown.set(this.#counts, this.#first - first);
    this.#counts = grown;
    this.#first = first;
  }
}
