/** What every route of the app shares: dependencies, options, and the variables that middleware leaves on a request. */
import type { Context } from 'hono';
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import type { Service } from '../service/service.js';
import type { RequestRecord, Telemetry } from '../telemetry/request-record.js';
import type { ErrorAnswer } from './errors.js';

export interface AppDeps {
  readonly service: Service;
  readonly telemetry: Telemetry;
  /** Of Manyfold, for /version. */
  readonly version: string;
  /** Any of these opens the server; none means that no key is needed. */
  readonly apiKeys?: readonly string[];
}

export interface AppOptions {
  /** Whether the two routes that load and unload adapters exist. */
  readonly runtimeLora?: boolean;
  /** Whether /metrics needs a key like everything else. Default: it is open, because endpoint pickers send none. */
  readonly metricsNeedKey?: boolean;
  /**
   * Names that a Host header may carry (without port). Given when the server listens on loopback without a key, so that
   * a web page cannot reach it through a name of its own (DNS rebinding). Absent: every host.
   */
  readonly allowedHosts?: readonly string[];
  /** A comment is sent on a stream that has been silent so long. Default 15 s. */
  readonly keepAliveMs?: number;
}

export interface AppEnv {
  Variables: {
    record: RequestRecord;
    /** The answer is a stream: its end, not the handler's, finishes the record. */
    streaming: boolean;
  };
}

export type AppContext = Context<AppEnv>;

export interface RouteDeps extends AppDeps {
  readonly options: AppOptions;
}

/** Sends a made answer; headers that middleware has set stay. */
export function send(c: AppContext, answer: ErrorAnswer): Response {
  return c.body(answer.body, answer.status as ContentfulStatusCode, { ...answer.headers });
}
