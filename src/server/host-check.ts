/** The guard against DNS rebinding: a loopback server without a key answers only under the names of loopback. */
import { ManyfoldError } from '../core/errors.js';

/** Names under which a loopback server may be called, for {@link AppOptions.allowedHosts}. */
export const LOOPBACK_HOSTS: readonly string[] = ['localhost', '127.0.0.1', '[::1]'];

/** Throws 'forbidden' when the host (with or without a port) is not one of the allowed names. */
export function checkHost(host: string | undefined, allowed: readonly string[]): void {
  const name = (host ?? '').replace(/:\d+$/, '').toLowerCase();
  if (allowed.includes(name)) return;
  throw new ManyfoldError(
    'forbidden',
    `This server has no API key and answers only under ${[...new Set(allowed)].join(', ')}; the request was for '${name.slice(0, 64)}'. ` +
      'Call it by one of these names, or start it with --api-key.',
    { param: 'host' },
  );
}
