/**
 * One choice of a request: engine events in, text out. Joins tokens to text, finds stop strings across token borders,
 * keeps the text of stop ids back, and counts what the client gets. Used by generate.ts only.
 */
import type { EngineEvent } from '../engine/port.js';
import type { SequenceId } from '../core/ids.js';
import type { FinishReason, TokenLogprobs } from '../core/sampling.js';
import type { TokenView } from './events.js';
import type { Detokenizer, StopMatcher, TextModel } from './ports.js';
import { codePoints, promptViews, tokenView } from './token-views.js';

export interface ChoiceOptions {
  readonly id: SequenceId;
  readonly text: TextModel;
  readonly promptIds: readonly number[];
  /** The prompt's text when it shall stand before the generated text. */
  readonly echo: string | undefined;
  /** Only the prompt is wanted (`echo` with no tokens); what is generated is dropped. */
  readonly promptOnly: boolean;
  readonly stops: readonly string[];
  readonly includeStop: boolean;
  readonly skipSpecialTokens: boolean;
  /** Stop strings are not looked for before so many tokens. */
  readonly minTokens: number;
  /** Ids whose text is shown only when another token follows. */
  readonly stopIds: ReadonlySet<number>;
  /** The ids among them that the client asked for: only these are told as `stopReason`. */
  readonly askedStopIds: ReadonlySet<number>;
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
  readonly returnIds: boolean;
}

export interface ChoiceFinish {
  readonly reason: FinishReason;
  readonly stopReason: string | number | null;
}

/** What an engine event gave; every part may be empty. */
export interface ChoiceOutput {
  readonly text: string;
  readonly ids: readonly number[];
  readonly tokens: readonly TokenView[];
  readonly promptLogprobs?: readonly TokenView[];
  readonly finish?: ChoiceFinish;
}

interface Pending {
  readonly tokenId: number;
  readonly logprobs?: TokenLogprobs;
}

const NONE: readonly never[] = [];

export class Choice {
  readonly id: SequenceId;
  readonly #options: ChoiceOptions;
  readonly #detokenizer: Detokenizer;
  readonly #matcher: StopMatcher | undefined;
  /** Ready to be shown with the next text. */
  #text = '';
  #ids: number[] = [];
  #tokens: TokenView[] = [];
  /** A token that may turn out to be the stop id; it waits for the next event. */
  #held: Pending | undefined;
  #offset = 0;
  #counted = 0;
  #finish: ChoiceFinish | undefined;

  constructor(options: ChoiceOptions) {
    this.id = options.id;
    this.#options = options;
    const { skipSpecialTokens, promptIds } = options;
    this.#detokenizer = options.text.newDetokenizer({ skipSpecialTokens, promptIds });
    this.#matcher =
      options.stops.length === 0
        ? undefined
        : options.text.newStopMatcher(options.stops, { includeStop: options.includeStop });
    if (options.echo !== undefined) {
      this.#text = options.echo;
      this.#offset = codePoints(options.echo);
    }
  }

  /** Tokens that the client gets, those of a stop included; never those past it. */
  get counted(): number {
    return this.#counted;
  }

  /** Set once; later events change nothing. */
  get finish(): ChoiceFinish | undefined {
    return this.#finish;
  }

  /** Takes one event; undefined when there is nothing to show yet. */
  accept(event: EngineEvent): ChoiceOutput | undefined {
    if (this.#finish !== undefined) return undefined;
    switch (event.type) {
      case 'token':
        return this.#onToken(event);
      case 'prompt_logprobs':
        return this.#onPromptLogprobs(event.positions);
      case 'done':
        return this.#onDone(event.reason, event.stopId);
      case 'cancelled':
      case 'failed':
        return undefined;
    }
  }

  #onPromptLogprobs(positions: readonly TokenLogprobs[]): ChoiceOutput | undefined {
    const { text, promptIds, echo, logprobs, promptLogprobs } = this.#options;
    if (echo !== undefined && logprobs !== undefined) {
      this.#tokens.push(...promptViews(text, promptIds, positions, logprobs));
    }
    if (promptLogprobs === undefined) return undefined;
    const views = promptViews(text, promptIds, positions, promptLogprobs);
    return { text: '', ids: NONE, tokens: NONE, promptLogprobs: views };
  }

  #onToken(token: Pending): ChoiceOutput | undefined {
    if (this.#options.promptOnly) return undefined;
    if (this.#held !== undefined) this.#show(this.#held);
    this.#held = undefined;
    if (this.#finish === undefined) {
      if (this.#mayStop(token.tokenId)) this.#held = token;
      else this.#show(token);
    }
    return this.#take();
  }

  #mayStop(id: number): boolean {
    return this.#options.stopIds.has(id) || this.#options.text.tokenizer.isSpecial(id);
  }

  #onDone(reason: FinishReason, stopId: number | undefined): ChoiceOutput | undefined {
    if (this.#options.promptOnly) {
      this.#finish = { reason: 'length', stopReason: null };
      return this.#take();
    }
    const held = this.#held;
    this.#held = undefined;
    if (held !== undefined) {
      if (held.tokenId === stopId && !this.#options.includeStop) this.#count(held);
      else this.#show(held);
    }
    if (this.#finish === undefined) this.#append(this.#detokenizer.flush());
    if (this.#finish === undefined) {
      this.#text += this.#matcher?.flush() ?? '';
      const asked = stopId !== undefined && this.#options.askedStopIds.has(stopId);
      this.#finish = { reason, stopReason: asked ? stopId : null };
    }
    return this.#take();
  }

  /** Counts a token and adds its text. */
  #show(token: Pending): void {
    this.#count(token);
    this.#append(this.#detokenizer.push(token.tokenId));
  }

  #count(token: Pending): void {
    this.#counted += 1;
    if (this.#options.returnIds) this.#ids.push(token.tokenId);
    if (token.logprobs === undefined || this.#options.logprobs === undefined) return;
    this.#tokens.push(
      tokenView(this.#options.text, token.tokenId, token.logprobs, this.#offset, this.#options.logprobs),
    );
  }

  #append(text: string): void {
    if (text === '') return;
    this.#offset += codePoints(text);
    if (this.#matcher === undefined || this.#counted <= this.#options.minTokens) {
      this.#text += text;
      return;
    }
    const { emit, stopped } = this.#matcher.push(text);
    this.#text += emit;
    if (stopped !== undefined) this.#finish = { reason: 'stop', stopReason: stopped };
  }

  /** Hands out what is ready when there is text to carry it, or the choice has ended. */
  #take(): ChoiceOutput | undefined {
    if (this.#text === '' && this.#finish === undefined) return undefined;
    const output: ChoiceOutput = {
      text: this.#text,
      ids: this.#ids,
      tokens: this.#tokens,
      ...(this.#finish === undefined ? {} : { finish: this.#finish }),
    };
    this.#text = '';
    if (this.#ids.length > 0) this.#ids = [];
    if (this.#tokens.length > 0) this.#tokens = [];
    return output;
  }
}
