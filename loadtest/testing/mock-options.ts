/** What a mock server is told on its command line, as JSON, and what it tells of itself afterwards. */
export interface MockOptions {
  /** Time to the first token, milliseconds; request n takes the value at the n-th point of a fixed sequence. */
  readonly ttftMs: MockDistribution;
  /** Between two tokens. */
  readonly itlMs: MockDistribution;
  /** The whole process freezes once, counted from its first generation request. */
  readonly stall?: { readonly afterMs: number; readonly forMs: number };
  /** Names that /v1/models lists as adapters. */
  readonly adapters?: readonly string[];
  /** /metrics tells this many times the tokens that were sent. */
  readonly tokenLie?: number;
  /** At most so many requests are worked on at once; the others wait. */
  readonly slots?: number;
}

export type MockDistribution =
  | { readonly kind: 'fixed'; readonly value: number }
  | { readonly kind: 'uniform'; readonly min: number; readonly max: number }
  /** `floor` + an exponential of mean `mean`. */
  | { readonly kind: 'exponential'; readonly floor: number; readonly mean: number };

/** Value below which the share lies: the inverse of the distribution function. */
export function quantileOf(distribution: MockDistribution, share: number): number {
  switch (distribution.kind) {
    case 'fixed':
      return distribution.value;
    case 'uniform':
      return distribution.min + share * (distribution.max - distribution.min);
    case 'exponential':
      return distribution.floor - distribution.mean * Math.log(1 - share);
  }
}

/**
 * Point `index` of van der Corput's sequence in base 2, moved to the middle of its cell of 2^16: any first 2^k points lie
 * evenly in (0, 1), so that the percentiles of 2^k values are known without a random number.
 */
export function evenPoint(index: number): number {
  let reversed = 0;
  for (let bit = 0, rest = index & 0xffff; bit < 16; bit++, rest >>>= 1) reversed = (reversed << 1) | (rest & 1);
  return (reversed + 0.5) / 65536;
}

/** One generation request as the mock saw it. Times are milliseconds of the machine's monotonic clock (process.hrtime). */
export interface MockEntry {
  /** `model`, `adapter_id` or the id in `lora`, as it came. */
  readonly adapter: string;
  readonly prompt: string;
  readonly maxTokens: number;
  readonly path: string;
  readonly receivedAt: number;
  /** Just before each token was written. */
  readonly pieceAt: readonly number[];
  readonly endAt: number | null;
}

/** Adapter names that make the mock misbehave; all others are answered as asked. */
export const FAULTS = [
  'fault-cut', // the socket is destroyed after three tokens
  'fault-clean-end', // the response ends politely after three tokens, without an end mark
  'fault-429',
  'fault-429-date',
  'fault-400',
  'fault-500',
  'fault-error-event',
  'fault-garbage', // 200 with bytes that are no HTTP body of the protocol
  'fault-not-http',
  'fault-html',
  'fault-bad-json',
  'fault-empty', // ends well without a token
  'fault-hang', // takes the request and never answers
  'fault-hang-middle',
  'fault-endless-line',
  'fault-reset', // the socket is reset before the answer
  'fault-split', // a good answer in chunks of three bytes
  'fault-no-usage', // a good answer without usage
] as const;
export type Fault = (typeof FAULTS)[number];
