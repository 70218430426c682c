/**
 * Finds stop strings in text that comes in pieces, wherever the pieces are cut. Text is held back only while it may be
 * the beginning of a stop string. Made once per sequence; the service pushes what the detokenizer gives.
 *
 * The match that is complete first wins, and of those complete at the same character the longest: the outcome does not
 * depend on how the text was cut into pieces.
 */
import { bug, ManyfoldError } from '../core/errors.js';
import { TEXT_LIMITS } from './limits.js';

export interface StopOptions {
  /** The stop string itself is part of the text (vLLM's `include_stop_str_in_output`). */
  readonly includeStop?: boolean;
}

export interface StopResult {
  /** Text to send now. */
  readonly emit: string;
  /** The stop string that ended the text; nothing may be pushed after it. */
  readonly stopped?: string;
}

export class StopMatcher {
  readonly #stops: readonly string[];
  readonly #includeStop: boolean;
  #held = '';
  #ended = false;

  constructor(stops: readonly string[], options: StopOptions = {}) {
    checkStops(stops);
    // Longest first, so that the longest of the matches at one character is found first.
    this.#stops = [...new Set(stops)].sort((a, b) => b.length - a.length);
    this.#includeStop = options.includeStop === true;
  }

  push(delta: string): StopResult {
    if (this.#ended) bug('Text was pushed after a stop string');
    if (this.#stops.length === 0) return { emit: delta };
    const text = this.#held + delta;
    // What is held has no whole stop string in it, so a match ends inside the new text.
    for (let end = this.#held.length + 1; end <= text.length; end += 1) {
      const stop = this.#stops.find((candidate) => text.endsWith(candidate, end));
      if (stop === undefined) continue;
      this.#ended = true;
      this.#held = '';
      return { emit: text.slice(0, this.#includeStop ? end : end - stop.length), stopped: stop };
    }
    const keep = this.#openLength(text);
    this.#held = text.slice(text.length - keep);
    return { emit: text.slice(0, text.length - keep) };
  }

  /** What was held back, when the text ends without a stop string. */
  flush(): string {
    const held = this.#held;
    this.#held = '';
    return held;
  }

  /** Length of the longest end of the text that a stop string may begin with. */
  #openLength(text: string): number {
    let longest = 0;
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length -= 1) {
        if (text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}

function checkStops(stops: readonly string[]): void {
  const { stopStrings, stopChars } = TEXT_LIMITS;
  if (stops.length > stopStrings) {
    throw refuse(`'stop' has ${stops.length} strings; at most ${stopStrings} are allowed. Send fewer.`);
  }
  for (const stop of stops) {
    if (stop === '') throw refuse("'stop' has an empty string, which would end every text at once. Leave it out.");
    if (stop.length <= stopChars) continue;
    throw refuse(
      `'stop' has a string of ${stop.length} characters; at most ${stopChars} are allowed. Send a shorter one.`,
    );
  }
}

function refuse(message: string): ManyfoldError {
  return new ManyfoldError('invalid_request', message, { param: 'stop' });
}
