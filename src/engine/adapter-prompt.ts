/**
 * What an adapter does to a prompt: rows that it puts before the tokens (soft prompts), and the token from which on it acts
 * (activated LoRA, Greenewald et al. 2025). Called when a sequence begins.
 */
import type { ResidentAdapter } from '../adapters/residency.js';

export interface AdapterPrompt {
  /** Rows before the first token. Row i stands in the sequence as the token -1 - i. */
  readonly softTokens: number;
  /**
   * Index, soft rows counted, of the first token whose row has the adapter's terms. Infinity: none has, because the
   * invocation does not occur.
   */
  readonly activeFrom: number;
}

const PLAIN: AdapterPrompt = { softTokens: 0, activeFrom: 0 };

export function adapterPrompt(adapter: ResidentAdapter | undefined, promptIds: readonly number[]): AdapterPrompt {
  if (adapter === undefined) return PLAIN;
  const { softPromptTokens: softTokens, invocation } = adapter.facts;
  if (invocation === undefined) return { softTokens, activeFrom: 0 };
  const at = lastOccurrence(promptIds, invocation);
  return { softTokens, activeFrom: at < 0 ? Infinity : softTokens + at };
}

/** Where `part` begins for the last time in `ids`; -1 when it does not. */
function lastOccurrence(ids: readonly number[], part: readonly number[]): number {
  for (let at = ids.length - part.length; at >= 0; at -= 1) {
    if (part.every((id, i) => ids[at + i] === id)) return at;
  }
  return -1;
}
