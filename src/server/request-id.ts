/** Request ids: the caller's when it has the right form, ours otherwise. */
import { randomUUID } from 'node:crypto';

const ACCEPTED = /^[A-Za-z0-9._-]{1,128}$/;

export class RequestIds {
  of(given: string | undefined): string {
    return given !== undefined && ACCEPTED.test(given) ? given : randomUUID();
  }
}
