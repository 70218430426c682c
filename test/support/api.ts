/**
 * Plain HTTP calls of the API with the fields that the openai client's types do not know (token ids, vLLM's routes).
 * Used by the e2e tests.
 */
import assert from 'node:assert/strict';

export interface CompletionLogprobs {
  readonly text_offset: readonly number[];
  readonly token_logprobs: readonly (number | null)[];
  readonly tokens: readonly string[];
  readonly top_logprobs: readonly (Readonly<Record<string, number>> | null)[];
}

export interface CompletionChoice {
  readonly index: number;
  readonly text: string;
  readonly logprobs: CompletionLogprobs | null;
  readonly finish_reason: string | null;
  readonly stop_reason?: string | number | null;
  readonly token_ids?: readonly number[];
  readonly prompt_token_ids?: readonly number[];
}

export interface CompletionAnswer {
  readonly id: string;
  readonly model: string;
  readonly system_fingerprint: string;
  readonly choices: readonly CompletionChoice[];
  readonly usage?: {
    readonly prompt_tokens: number;
    readonly completion_tokens: number;
    readonly total_tokens: number;
  };
}

export interface Failure {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: number;
  };
}

const HEADERS = { 'content-type': 'application/json', connection: 'close' };

export function post(url: string, path: string, body: object, signal?: AbortSignal): Promise<Response> {
  const init = { method: 'POST', headers: HEADERS, body: JSON.stringify(body) };
  return fetch(url + path, signal === undefined ? init : { ...init, signal });
}

/** The answer of a request that must succeed. */
export async function postJson<T>(url: string, path: string, body: object): Promise<T> {
  const response = await post(url, path, body);
  const text = await response.text();
  assert.equal(response.status, 200, text);
  return JSON.parse(text) as T;
}

/** The error of a request that must fail with this status. */
export async function postFailure(url: string, path: string, body: object, status: number): Promise<Failure['error']> {
  const response = await post(url, path, body);
  const text = await response.text();
  assert.equal(response.status, status, text);
  return (JSON.parse(text) as Failure).error;
}

/** Non-streamed, with token ids. */
export function complete(url: string, body: object): Promise<CompletionAnswer> {
  return postJson<CompletionAnswer>(url, '/v1/completions', { return_token_ids: true, ...body });
}

/** The only choice of an answer. */
export function only({ choices }: CompletionAnswer): CompletionChoice {
  const [choice] = choices;
  assert.ok(choice !== undefined && choices.length === 1, 'the answer has one choice');
  return choice;
}

/** A chunk of a stream, or the error that ended it. */
export type Chunk = CompletionAnswer | Failure;

/** The chunks of a stream, up to [DONE]; fails when the stream ends without it, except after an error chunk. */
export async function* chunksOf(response: Response): AsyncGenerator<Chunk> {
  assert.ok(response.body !== null, 'a stream has a body');
  let text = '';
  let failed = false;
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
    text += piece;
    const events = text.split('\n\n');
    text = events.pop() ?? '';
    for (const event of events) {
      if (event === 'data: [DONE]') return;
      if (!event.startsWith('data: ')) continue;
      const chunk = JSON.parse(event.slice('data: '.length)) as Chunk;
      failed = 'error' in chunk;
      yield chunk;
    }
  }
  assert.ok(failed, 'a stream ends with [DONE] or with an error');
}
