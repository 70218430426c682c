/** Health, version and metrics: answered from memory, logged at debug level. */
import { ManyfoldError } from '../../core/errors.js';
import type { HealthAnswer } from '../../service/health.js';
import { send } from '../context.js';
import type { AppContext, RouteDeps } from '../context.js';
import { errorEnvelope } from '../errors.js';

const UNAVAILABLE = 503;

export function getLiveness(c: AppContext, deps: RouteDeps): Response {
  return answerHealth(c, deps.service.liveness());
}

export function getReadiness(c: AppContext, deps: RouteDeps): Response {
  return answerHealth(c, deps.service.readiness());
}

export function getVersion(c: AppContext, deps: RouteDeps): Response {
  c.get('record').quiet();
  return c.json({ version: deps.version });
}

export async function getMetrics(c: AppContext, deps: RouteDeps): Promise<Response> {
  c.get('record').quiet();
  const { contentType, body } = await deps.telemetry.metrics.render();
  return c.body(body, 200, { 'content-type': contentType });
}

function answerHealth(c: AppContext, health: HealthAnswer): Response {
  c.get('record').quiet();
  if (health.ok) return c.json({ status: 'ok' });
  const { error } = errorEnvelope(new ManyfoldError('engine_failure', health.reason));
  const body = JSON.stringify({ status: 'failing', error: { ...error, code: UNAVAILABLE } });
  return send(c, { status: UNAVAILABLE, headers: { 'content-type': 'application/json' }, body });
}
