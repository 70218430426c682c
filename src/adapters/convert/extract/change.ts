/** What a difference between two checkpoints is made of, for extract and the writers of its kinds. */
import type { RowReader } from '../../../checkpoint/read-rows.js';
import type { WeightPlace } from '../model-pair.js';
import type { Scan } from './scan.js';

export interface ExtractOptions {
  readonly base: string;
  readonly finetuned: string;
  readonly out: string;
  /** Most of a LoRA. */
  readonly rank: number;
  /** Told before each tensor of a long pass. */
  readonly progress?: (what: string, done: number, all: number) => void;
}

/** A tensor that differs. */
export interface Change extends WeightPlace {
  /** With `.weight` or `.bias`. */
  readonly name: string;
  readonly module: string;
  readonly scan: Scan;
  readonly base: RowReader;
  readonly tuned: RowReader;
}

/** How one tensor is held by the adapter. */
export interface HeldChange {
  readonly name: string;
  /** For the table, e.g. `12 columns`. */
  readonly as: string;
  /** ‖Δ - held‖ / ‖Δ‖ (Frobenius), and max|Δ - held|. */
  readonly relativeError: number;
  readonly largestError: number;
}

/** What a writer made of the changes. */
export interface Written {
  readonly held: readonly HeldChange[];
  readonly inexact: number;
  readonly bytes: number;
}

/** A linear's weight, the embedding or the head; norms and biases are vectors. */
export function isMatrix({ ref, part }: WeightPlace): boolean {
  return part === 'weight' && !ref.site.endsWith('Norm');
}
