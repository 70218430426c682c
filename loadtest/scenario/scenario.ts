/** A scenario that has been checked: plain data, times in milliseconds, files it names read in. Made by read-scenario.ts. */
import type { Slo } from '../report/run-report.js';
import type { AdapterPopularity } from '../workload/adapter-choice.js';
import type { End, OpenArrivals } from '../workload/arrivals.js';
import type { Distribution } from '../workload/lengths.js';
import type { TraceLine } from '../workload/trace-file.js';
import type { DialectName, Route } from './schema.js';

export interface Scenario {
  readonly name: string;
  readonly description: string | undefined;
  readonly seed: number;
  readonly target: Target;
  readonly arrivals: Arrivals;
  readonly warmup: { readonly requests: number; readonly concurrency: number };
  readonly adapters: { readonly popularity: AdapterPopularity; readonly pool: AdapterPool; readonly baseShare: number };
  readonly prompt: PromptSource;
  readonly output: { readonly tokens: Distribution; readonly ignoreEos: boolean; readonly temperature: number };
  readonly slo: Slo;
  readonly limits: Limits;
  readonly report: {
    readonly bucketMs: number;
    readonly metricsIntervalMs: number;
    readonly recordPieces: boolean;
  };
  /** The file as it was read. */
  readonly text: string;
  readonly path: string;
}

export interface Target {
  /** Without a slash at the end, credentials or query. */
  readonly url: string;
  readonly dialect: DialectName;
  readonly route: Route;
  readonly model: string | undefined;
  readonly metricsUrl: string | undefined;
  readonly loraIds: Readonly<Record<string, number>> | undefined;
  readonly adapterSource: string | undefined;
}

export type Arrivals =
  | OpenArrivals
  | { readonly kind: 'trace'; readonly lines: readonly TraceLine[]; readonly speed: number; readonly end: End }
  | { readonly kind: 'closed'; readonly concurrency: number; readonly thinkSeconds: Distribution; readonly end: End };

export type AdapterPool =
  | { readonly kind: 'names'; readonly names: readonly string[] }
  /** The first `count` (or all) that the server lists. */
  | { readonly kind: 'from-server'; readonly count: number | undefined };

export interface PromptSource {
  readonly tokens: Distribution;
  readonly prefix: { readonly tokens: number; readonly groups: number | undefined } | undefined;
  /** Texts of a file, used in turn; `undefined`: made from the seed. */
  readonly texts: readonly string[] | undefined;
}

export interface Limits {
  readonly connectMs: number;
  readonly firstTokenMs: number;
  readonly idleMs: number;
  readonly totalMs: number;
  readonly drainMs: number;
  readonly maxInFlight: number;
}
