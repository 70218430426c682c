/** The data of one server-sent event → what it means for a request. Pure, one function a protocol. */

export interface EventMeaning {
  /** New text arrived; a token as the stream shows it. */
  readonly hasText: boolean;
  readonly finishReason?: string;
  readonly promptTokens?: number;
  readonly outputTokens?: number;
  /** The server reports a failure inside of the stream. */
  readonly error?: string;
  /** Nothing more will come. */
  readonly isEnd?: boolean;
}

/** `undefined`: not of the protocol. */
export type ReadEvent = (data: string, type: string) => EventMeaning | undefined;

type Json = Readonly<Record<string, unknown>>;

const END: EventMeaning = { hasText: false, isEnd: true };

/** OpenAI's chunks of chat and text completions. */
export const readOpenAiEvent: ReadEvent = (data, type) => {
  if (data === '[DONE]') return END;
  const json = parseObject(data);
  if (json === undefined) return undefined;
  const failure = failureOf(json, type, data);
  if (failure !== undefined) return failure;
  const { choices } = json;
  if (!Array.isArray(choices)) return undefined;
  const [choice] = choices as unknown[];
  const meaning: { -readonly [K in keyof EventMeaning]: EventMeaning[K] } = { hasText: false };
  if (isObject(choice)) {
    const delta = isObject(choice['delta']) ? choice['delta'] : choice;
    // Reasoning is text that the user waits for as well; vLLM and SGLang name it in two ways.
    meaning.hasText = [delta['content'], delta['text'], delta['reasoning_content'], delta['reasoning']].some(isText);
    if (typeof choice['finish_reason'] === 'string') meaning.finishReason = choice['finish_reason'];
  }
  return { ...meaning, ...usageOf(json['usage']) };
};

/** LoRAX's and text-generation-inference's /generate_stream. */
export const readGenerateEvent: ReadEvent = (data, type) => {
  const json = parseObject(data);
  if (json === undefined) return undefined;
  const failure = failureOf(json, type, data);
  if (failure !== undefined) return failure;
  const token = json['token'];
  if (!isObject(token)) return undefined;
  const hasText = isText(token['text']) && token['special'] !== true;
  const { details } = json;
  if (typeof json['generated_text'] !== 'string') return { hasText };
  const facts = isObject(details) ? details : {};
  return {
    hasText,
    finishReason: typeof facts['finish_reason'] === 'string' ? facts['finish_reason'] : 'unknown',
    ...countOf('outputTokens', facts['generated_tokens']),
    ...countOf('promptTokens', facts['prompt_tokens']),
    isEnd: true,
  };
};

function failureOf(json: Json, type: string, data: string): EventMeaning | undefined {
  const { error } = json;
  if (error == null && type !== 'error') return undefined;
  const message = isObject(error) && isText(error['message']) ? error['message'] : isText(error) ? error : data;
  return { hasText: false, error: message };
}

function usageOf(usage: unknown): Pick<EventMeaning, 'promptTokens' | 'outputTokens'> {
  if (!isObject(usage)) return {};
  return {
    ...countOf('promptTokens', usage['prompt_tokens']),
    ...countOf('outputTokens', usage['completion_tokens']),
  };
}

/** A server that claims more tokens than this is not believed. */
const MAX_COUNT = 1e9;

function countOf<K extends string>(name: K, value: unknown): Partial<Record<K, number>> {
  const isCount = typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= MAX_COUNT;
  return isCount ? ({ [name]: value } as Record<K, number>) : {};
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function parseObject(text: string): Json | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined; // The caller counts it as not of the protocol.
  }
}
