/** Distinct tokens of a sequence with their occurrences in the output, for the penalties. Kept only where one is set. */
import type { SamplingParams } from '../core/sampling.js';

export class TokenHistory {
  readonly #index = new Map<number, number>();
  #ids = new Int32Array(64);
  #counts = new Int32Array(64);

  /** Undefined when no penalty needs a history. */
  static for(sampling: SamplingParams, prompt: readonly number[]): TokenHistory | undefined {
    const { repetitionPenalty, frequencyPenalty, presencePenalty } = sampling;
    if (repetitionPenalty === 1 && frequencyPenalty === 0 && presencePenalty === 0) return undefined;
    const history = new TokenHistory();
    // Only the repetition penalty looks at the prompt.
    if (repetitionPenalty !== 1) for (const id of prompt) history.#slot(id);
    return history;
  }

  addOutput(id: number): void {
    const slot = this.#slot(id);
    this.#counts[slot] = (this.#counts[slot] as number) + 1;
  }

  get size(): number {
    return this.#index.size;
  }

  /** Writes ids and counts at an offset of the plan's arrays. */
  copyTo(ids: Int32Array, counts: Int32Array, offset: number): void {
    ids.set(this.#ids.subarray(0, this.size), offset);
    counts.set(this.#counts.subarray(0, this.size), offset);
  }

  #slot(id: number): number {
    const known = this.#index.get(id);
    if (known !== undefined) return known;
    const slot = this.#index.size;
    if (slot === this.#ids.length) {
      this.#ids = doubled(this.#ids);
      this.#counts = doubled(this.#counts);
    }
    this.#ids[slot] = id;
    this.#index.set(id, slot);
    return slot;
  }
}

/** The same values in an array of twice the length. */
export function doubled(values: Int32Array): Int32Array<ArrayBuffer> {
  const wider = new Int32Array(values.length * 2);
  wider.set(values);
  return wider;
}
