/** Bounds on what one request may ask. Each has a flag; the server checks bytes, the service the rest. */
export interface RequestLimits {
  readonly bodyBytes: number;
  readonly messages: number;
  /** Of all prompt or message text together, before tokenizing. */
  readonly promptBytes: number;
  readonly prompts: number;
  readonly stops: number;
  readonly stopChars: number;
  readonly choices: number;
  readonly logitBias: number;
  readonly topLogprobs: number;
  readonly stopTokenIds: number;
  readonly tools: number;
  readonly cacheSaltChars: number;
}

/** The flag that sets each limit, for the mend at the end of a refusal. */
export const LIMIT_FLAGS: Readonly<Record<keyof RequestLimits, string>> = {
  bodyBytes: '--max-body-bytes',
  messages: '--max-messages',
  promptBytes: '--max-prompt-bytes',
  prompts: '--max-prompts',
  stops: '--max-stop-strings',
  stopChars: '--max-stop-chars',
  choices: '--max-n',
  logitBias: '--max-logit-bias',
  topLogprobs: '--max-logprobs',
  stopTokenIds: '--max-stop-token-ids',
  tools: '--max-tools',
  cacheSaltChars: '--max-cache-salt-chars',
};

export const DEFAULT_LIMITS: RequestLimits = {
  bodyBytes: 4 * 1024 * 1024,
  messages: 2000,
  promptBytes: 1024 * 1024,
  prompts: 1024,
  stops: 16,
  stopChars: 256,
  choices: 8,
  logitBias: 1024,
  topLogprobs: 20,
  stopTokenIds: 256,
  tools: 128,
  cacheSaltChars: 256,
};
