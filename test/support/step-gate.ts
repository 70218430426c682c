/**
 * A gate before the native engine's steps: a test closes it to decide which requests meet in a batch, lets single steps
 * pass, or slows them down. Everything else runs as it is. Made by stack.ts, open at first.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { NativeEngine, NativePlan, NativeResult } from '../../src/native/binding-types.js';

export class StepGate {
  #allowed = Infinity;
  #delayMs = 0;
  #wake: () => void = () => undefined;

  constructor(native: NativeEngine) {
    const step = native.step.bind(native);
    native.step = async (plan: NativePlan): Promise<NativeResult> => {
      while (this.#allowed < 1) await new Promise<void>((resolve) => (this.#wake = resolve));
      this.#allowed -= 1;
      if (this.#delayMs > 0) await sleep(this.#delayMs);
      return step(plan);
    };
  }

  /** The step that has begun ends; no other begins. */
  close(): void {
    this.#allowed = 0;
  }

  /** Lets so many steps more pass. */
  pass(steps: number): void {
    this.#allowed += steps;
    this.#wake();
  }

  open(): void {
    this.pass(Infinity);
  }

  /** Every step takes so much longer; 0 is as fast as it goes. */
  slow(delayMs: number): void {
    this.#delayMs = delayMs;
  }
}
