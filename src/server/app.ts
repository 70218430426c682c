/**
 * The HTTP interface as a Hono app: middleware (record, host check, key), routes, errors. It takes no decision of its
 * own; the use cases are in service. Made by the composition root, served by listen.ts.
 */
import { Hono } from 'hono';
import { ManyfoldError } from '../core/errors.js';
import { RequestRecord } from '../telemetry/request-record.js';
import { ApiKeys } from './auth.js';
import { send } from './context.js';
import type { AppContext, AppDeps, AppEnv, AppOptions, RouteDeps } from './context.js';
import { asManyfoldError, errorAnswer } from './errors.js';
import { checkHost } from './host-check.js';
import { RequestIds } from './request-id.js';
import { postLoadAdapter, postUnloadAdapter } from './routes/adapters.js';
import { postChatCompletion, postCompletion } from './routes/completions.js';
import { getModel, getModels } from './routes/models.js';
import { getLiveness, getMetrics, getReadiness, getVersion } from './routes/probes.js';
import { postDetokenize, postTokenize } from './routes/tokenize.js';

type Handler = (c: AppContext, deps: RouteDeps) => Response | Promise<Response>;

interface Route {
  readonly path: string;
  readonly methods: readonly ('GET' | 'POST')[];
  readonly handler: Handler;
}

const ROUTES: readonly Route[] = [
  { path: '/v1/chat/completions', methods: ['POST'], handler: postChatCompletion },
  { path: '/v1/completions', methods: ['POST'], handler: postCompletion },
  { path: '/v1/models', methods: ['GET'], handler: getModels },
  { path: '/v1/models/:id{.+}', methods: ['GET'], handler: getModel },
  { path: '/tokenize', methods: ['POST'], handler: postTokenize },
  { path: '/detokenize', methods: ['POST'], handler: postDetokenize },
  { path: '/livez', methods: ['GET'], handler: getLiveness },
  { path: '/readyz', methods: ['GET'], handler: getReadiness },
  { path: '/health', methods: ['GET'], handler: getLiveness },
  { path: '/ping', methods: ['GET', 'POST'], handler: getLiveness },
  { path: '/version', methods: ['GET'], handler: getVersion },
  { path: '/metrics', methods: ['GET'], handler: getMetrics },
];

const RUNTIME_LORA_ROUTES: readonly Route[] = [
  { path: '/v1/load_lora_adapter', methods: ['POST'], handler: postLoadAdapter },
  { path: '/v1/unload_lora_adapter', methods: ['POST'], handler: postUnloadAdapter },
];

/** Everything else needs a key when there is one. */
const OPEN_PATHS: readonly string[] = ['/livez', '/readyz', '/health', '/ping', '/version'];

export type App = Hono<AppEnv>;

export function createApp(deps: AppDeps, options: AppOptions = {}): App {
  const app: App = new Hono<AppEnv>();
  const routeDeps: RouteDeps = { ...deps, options };
  useRecord(app, deps);
  useGuards(app, deps, options);
  for (const route of options.runtimeLora === true ? [...ROUTES, ...RUNTIME_LORA_ROUTES] : ROUTES) {
    app.on([...route.methods], route.path, (c) => route.handler(c, routeDeps));
    app.all(route.path, (c) => {
      c.header('allow', route.methods.join(', '));
      throw new ManyfoldError(
        'method_not_allowed',
        `${c.req.method} is not a method of this path. Use ${route.methods.join(' or ')}.`,
      );
    });
  }
  app.notFound((c) => {
    return answerError(c, deps, nothingAt(c.req.path));
  });
  app.onError((error, c) => answerError(c, deps, error));
  return app;
}

function nothingAt(path: string): ManyfoldError {
  const mend = RUNTIME_LORA_ROUTES.some((route) => route.path === path)
    ? 'Adapters are loaded at run time only by a server that was started with --enable-runtime-lora and --adapter-dir.'
    : 'Check the path; GET /v1/models and POST /v1/chat/completions are here.';
  return new ManyfoldError('not_found', `There is nothing at ${path.slice(0, 96)}. ${mend}`);
}

/** Gives the request its id and record, and finishes the record when the handler's answer is the whole answer. */
function useRecord(app: App, deps: AppDeps): void {
  const ids = new RequestIds();
  const { telemetry } = deps;
  app.use(async (c, next) => {
    const id = ids.of(c.req.header('x-request-id'));
    const { method, path } = c.req;
    const trace = { traceparent: c.req.header('traceparent'), tracestate: c.req.header('tracestate') };
    const record = new RequestRecord(telemetry, { id, method, path, ...trace });
    c.set('record', record);
    c.set('streaming', false);
    c.header('x-request-id', id);
    await next();
    c.header('openai-processing-ms', String(Math.round(telemetry.clock.nowMs() - record.startMs)));
    if (!c.get('streaming')) record.finish(c.res.status);
  });
}

function useGuards(app: App, deps: AppDeps, options: AppOptions): void {
  const keys = new ApiKeys(deps.apiKeys ?? []);
  const open = new Set(options.metricsNeedKey === true ? OPEN_PATHS : [...OPEN_PATHS, '/metrics']);
  app.use(async (c, next) => {
    if (options.allowedHosts !== undefined) {
      checkHost(c.req.header('host') ?? new URL(c.req.url).host, options.allowedHosts);
    }
    if (!open.has(c.req.path)) keys.check(c.req.header('authorization'));
    await next();
  });
}

function answerError(c: AppContext, deps: AppDeps, thrown: unknown): Response {
  const error = asManyfoldError(thrown);
  const record = c.get('record');
  record.error(error.code);
  if (error.code === 'bug') {
    const stack = thrown instanceof Error ? thrown.stack : undefined;
    deps.telemetry.logger.error({ requestId: record.id, stack }, 'a request met a bug');
  }
  return send(c, errorAnswer(error));
}
