/** API keys: several, compared in constant time over keyed digests of equal length. Called by the app's middleware. */
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { ManyfoldError } from '../core/errors.js';

export class ApiKeys {
  /** Of this process only; digests mean nothing outside it. */
  readonly #secret = randomBytes(32);
  readonly #digests: readonly Buffer[];

  constructor(keys: readonly string[]) {
    this.#digests = keys.map((key) => this.#digest(key));
  }

  get needed(): boolean {
    return this.#digests.length > 0;
  }

  /** Throws 'invalid_api_key' unless the Authorization header holds one of the keys, or none is needed. */
  check(authorization: string | undefined): void {
    if (!this.needed) return;
    const presented = /^Bearer +(\S+)\s*$/i.exec(authorization ?? '')?.[1];
    if (presented === undefined) {
      throw new ManyfoldError(
        'invalid_api_key',
        'This server needs an API key and none came. Send the header "Authorization: Bearer <key>".',
      );
    }
    const digest = this.#digest(presented);
    let found = false;
    // Every key is compared, so that the time does not say which one was near.
    for (const known of this.#digests) found = timingSafeEqual(known, digest) || found;
    if (!found) {
      throw new ManyfoldError(
        'invalid_api_key',
        'The API key is not one of this server. Ask its operator for a key and send it as "Authorization: Bearer <key>".',
      );
    }
  }

  #digest(key: string): Buffer {
    return createHmac('sha256', this.#secret).update(key).digest();
  }
}
