/**
 * What a client asks, parsed: the server's schemas make these from JSON, the use cases take them. Absent fields mean
 * the default. Ranges are checked by the use cases, so that every door gives the same answers.
 */
import type { ChatMessage } from './ports.js';

/** Sampling as asked; field by field optional. Names in error messages are those of the wire. */
export interface SamplingRequest {
  readonly temperature?: number | undefined;
  readonly topP?: number | undefined;
  readonly topK?: number | undefined;
  readonly minP?: number | undefined;
  readonly repetitionPenalty?: number | undefined;
  readonly frequencyPenalty?: number | undefined;
  readonly presencePenalty?: number | undefined;
  readonly logitBias?: readonly (readonly [number, number])[] | undefined;
  readonly seed?: number | undefined;
  readonly maxTokens?: number | undefined;
  /** The wire name under which maxTokens came. */
  readonly maxTokensParam?: string | undefined;
  readonly minTokens?: number | undefined;
  readonly ignoreEos?: boolean | undefined;
  readonly stopTokenIds?: readonly number[] | undefined;
}

/** What the answer shall hold. */
export interface OutputRequest {
  readonly choices: number;
  readonly stops: readonly string[];
  readonly includeStop: boolean;
  readonly skipSpecialTokens: boolean;
  /** Candidates beside the chosen token; undefined: no log-probabilities. */
  readonly logprobs?: number | undefined;
  /** The wire name of `logprobs`: 'logprobs' or 'top_logprobs'. */
  readonly logprobsParam: string;
  readonly promptLogprobs?: number | undefined;
  readonly returnTokenIds: boolean;
}

interface CommandBase {
  readonly model?: string | undefined;
  readonly sampling: SamplingRequest;
  readonly output: OutputRequest;
  readonly cacheSalt?: string | undefined;
  /** Only for telemetry. */
  readonly stream: boolean;
}

export interface ChatPrompt {
  readonly messages: readonly ChatMessage[];
  readonly tools?: readonly unknown[] | undefined;
  readonly addGenerationPrompt: boolean;
  readonly continueFinalMessage: boolean;
  readonly addSpecialTokens: boolean;
  /** `chat_template_kwargs`; the text model checks them. */
  readonly templateArgs: Readonly<Record<string, unknown>>;
}

export interface ChatCommand extends CommandBase {
  readonly kind: 'chat';
  readonly chat: ChatPrompt;
}

export interface CompletionCommand extends CommandBase {
  readonly kind: 'completion';
  /** Text or token ids, one entry a prompt. */
  readonly prompts: readonly (string | readonly number[])[];
  readonly addSpecialTokens: boolean;
  readonly echo: boolean;
}

export type GenerateCommand = ChatCommand | CompletionCommand;

export interface TokenizeCommand {
  readonly model?: string | undefined;
  readonly input:
    | { readonly kind: 'text'; readonly text: string; readonly addSpecialTokens: boolean }
    | { readonly kind: 'chat'; readonly chat: ChatPrompt };
  readonly returnTokenStrings: boolean;
}

export interface DetokenizeCommand {
  readonly model?: string | undefined;
  readonly tokens: readonly number[];
}
