/** The rule about whom a run may hit: this machine alone, unless the one who types the command says otherwise. */
import { isLoopback } from '../../src/config/checks.js';
import { ManyfoldError } from '../../src/core/errors.js';

/**
 * Throws 'invalid_config' for an address beyond this machine's loopback. A scenario cannot allow it: files are passed on,
 * and a load test that starts by mistake is an attack on whoever it reaches.
 */
export function checkTarget(urls: readonly string[], allowRemote: boolean): void {
  if (allowRemote) return;
  for (const url of urls) {
    const { hostname, host } = new URL(url);
    if (isLoopback(hostname)) continue;
    throw new ManyfoldError(
      'invalid_config',
      `${host} is not this machine, and a load test can take a server down. If it is yours, or its owner agreed, ` +
        'give --allow-remote on the command line.',
    );
  }
}
