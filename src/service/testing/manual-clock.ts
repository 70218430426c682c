/** A clock that stands until it is moved. */
import type { Clock } from '../../core/clock.js';

export class ManualClock implements Clock {
  ms = 0;

  nowMs(): number {
    return this.ms;
  }

  unixSeconds(): number {
    return 1_700_000_000 + Math.floor(this.ms / 1000);
  }
}
