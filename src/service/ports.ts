/**
 * What the use cases need of text and adapters, as narrow ports. `src/text` and `src/adapters` fill them; the
 * composition root (cli) joins them; tests use `testing/`.
 */
import type { PlainError } from '../core/errors.js';
import type { AdapterName, AdapterVersion } from '../core/ids.js';

/** A message as templates see it. Which keys are there is up to the client and the template. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string | null;
  readonly [key: string]: unknown;
}

export interface RenderChatOptions {
  readonly tools?: readonly unknown[] | null;
  readonly addGenerationPrompt?: boolean;
  readonly continueFinalMessage?: boolean;
  /** `chat_template_kwargs`, checked by the text model. */
  readonly kwargs?: unknown;
}

export interface Tokenizer {
  encode(text: string, options: { readonly addSpecialTokens: boolean }): Promise<number[]>;
  /** 'completion' adds BOS and EOS where the model's tokenizer does, 'chat' adds nothing; BOS is never doubled. */
  encodePrompt(text: string, kind: 'chat' | 'completion'): Promise<number[]>;
  decode(ids: readonly number[], options: { readonly skipSpecialTokens: boolean }): string;
  /** The token alone as text; bytes that are no whole character become U+FFFD. */
  tokenText(id: number): string;
  tokenBytes(id: number): Uint8Array;
  isSpecial(id: number): boolean;
}

/** Turns a stream of ids into text that never ends inside a character. */
export interface Detokenizer {
  push(id: number): string;
  flush(): string;
}

/** Finds stop strings in a stream of text, also across the borders of its pieces. */
export interface StopMatcher {
  /** `emit` is text that can no longer be part of a stop string; `stopped` is the stop string that was met. */
  push(text: string): { readonly emit: string; readonly stopped?: string | undefined };
  /** What was held back, at the end of the stream. */
  flush(): string;
}

/** Tokenizer and template of the base, or of an adapter version with its own. */
export interface TextModel {
  readonly tokenizer: Tokenizer;
  /** Ids that end a turn by the template; added to the model's own end-of-sequence ids. */
  readonly endOfTurnIds: readonly number[];
  renderChat(
    messages: readonly ChatMessage[],
    options: RenderChatOptions,
  ): Promise<{ readonly text: string; readonly ids: readonly number[] }>;
  /** With `promptIds` the text goes on after a prompt; without, it stands alone. */
  newDetokenizer(options: { readonly skipSpecialTokens: boolean; readonly promptIds?: readonly number[] }): Detokenizer;
  newStopMatcher(stops: readonly string[], options: { readonly includeStop: boolean }): StopMatcher;
}

/** An adapter under the name that clients use. */
export interface ServedAdapter {
  readonly name: AdapterName;
  readonly version: AdapterVersion;
  /** Absolute folder that the engine reads. */
  readonly directory: string;
  /** Unix seconds since when this version has this name. */
  readonly createdSeconds: number;
}

export interface TextModels {
  /** The text model that serves a version; undefined means the base. */
  lookup(version: AdapterVersion | undefined): Promise<TextModel>;
  /** Makes a version known, with the template of its folder; throws 'invalid_adapter'. Once per version is enough. */
  add(adapter: ServedAdapter): Promise<void>;
  /** Forgets a version that no name points at; requests that run keep their text model. */
  remove(version: AdapterVersion): void;
}

/** Which names point at which versions. It knows files and names, not the engine. */
export interface AdapterDirectory {
  resolve(name: string): ServedAdapter | undefined;
  /** In the order in which they were published. */
  list(): readonly ServedAdapter[];
  /** What was found at the start but cannot be served, with the reason. */
  refused(): readonly { readonly name: string; readonly error: PlainError }[];
  /**
   * Reads and hashes a folder without publishing it. Throws 'not_found' when there is none, 'forbidden' when it lies
   * outside the allowed roots, 'invalid_adapter' when it cannot be served.
   */
  inspect(name: AdapterName, path: string): Promise<ServedAdapter>;
  /** Makes the name point at the version, at once. */
  publish(adapter: ServedAdapter): void;
  /** Takes the name away, at once; returns what it pointed at. */
  remove(name: string): ServedAdapter | undefined;
}

/** Randomness as a port, so that tests are repeatable. */
export interface Entropy {
  /** 32 hexadecimal digits, never the same twice. */
  id(): string;
  /** An integer of 0 .. 2^53 - 1. */
  seed(): number;
  /** Uniform in [0, 1); spreads retries. */
  jitter(): number;
}
