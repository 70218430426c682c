/**
 * The part of a report that lets somebody else send the same requests: prompts are made from a seed by a generator of a
 * fixed version, so seeds and lengths are enough; what came from files is stored as text.
 */
export interface ReportTrace {
  /** Version of the generators of arrivals, choices and prompt text; equal seed and version give equal bytes. */
  readonly generatorVersion: number;
  /** SHA-256 (hex) over every request's time, adapter, lengths and prompt; equal for equal load. */
  readonly sha256: string;
  /** The measured ones, in the order of the schedule; warm-up is made again from the scenario. */
  readonly requests: readonly TracedRequest[];
}

/** One line of a trace file is one of these as JSON: `arrivals: { kind: trace, file: … }` plays it back. */
export interface TracedRequest {
  /** Milliseconds after the begin of the measured window. Closed loop: `null`, the answers decide. */
  readonly atMs: number | null;
  /** `null`: the base model. */
  readonly adapter: string | null;
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** Seed of the prompt's text, or the text itself where it came from a file. Exactly one of the two is there. */
  readonly promptSeed?: number;
  /** The first `prefixTokens` of the prompt are made from this seed and shared with other requests. Both or neither. */
  readonly prefixTokens?: number;
  readonly prefixSeed?: number;
  readonly prompt?: string;
}
