/** The HTTP side of `manyfold chat`: two calls of the OpenAI API, as any client makes them. Called by chat.ts. */
import { z } from 'zod';
import type { Secret } from '../config/secret.js';
import { ManyfoldError } from '../core/errors.js';

export interface ChatMessage {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

export interface ChatRequest {
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly maxTokens: number | undefined;
  readonly temperature: number | undefined;
  readonly signal: AbortSignal;
}

export interface ChatServer {
  /** Without a slash at the end. */
  readonly url: string;
  readonly apiKey: Secret | undefined;
}

/** Pieces of the answer, then one end that says why it ended. */
export type ChatEvent =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'end'; readonly reason: string; readonly tokens: number | undefined };

const ModelList = z.object({ data: z.array(z.object({ id: z.string(), parent: z.string().nullish() })) });
const ErrorBody = z.object({ error: z.object({ message: z.string() }) });
const Chunk = z.object({
  choices: z.array(
    z.object({
      delta: z.object({ content: z.string().nullish() }).optional(),
      finish_reason: z.string().nullish(),
    }),
  ),
  usage: z.object({ completion_tokens: z.number() }).nullish(),
});

/** Names that `model` may be set to, the base first. */
export async function listModels(server: ChatServer, signal?: AbortSignal): Promise<readonly string[]> {
  const response = await call(server, '/v1/models', signal === undefined ? {} : { signal });
  const list = ModelList.safeParse(await response.json());
  if (!list.success) throw unexpected(server, 'a list of models');
  return list.data.data.map(({ id }) => id);
}

/** Streams one answer. Throws when the server refuses, breaks off, or reports an error in the stream. */
export async function* streamChat(server: ChatServer, request: ChatRequest): AsyncGenerator<ChatEvent> {
  const response = await call(server, '/v1/chat/completions', {
    method: 'POST',
    signal: request.signal,
    body: JSON.stringify({
      model: request.model,
      messages: request.messages,
      stream: true,
      stream_options: { include_usage: true },
      ...(request.maxTokens === undefined ? {} : { max_completion_tokens: request.maxTokens }),
      ...(request.temperature === undefined ? {} : { temperature: request.temperature }),
    }),
  });
  let reason: string | undefined;
  let tokens: number | undefined;
  for await (const data of readEvents(response)) {
    if (data === '[DONE]') break;
    const json = parseJson(data);
    const failure = ErrorBody.safeParse(json);
    if (failure.success) throw new ManyfoldError('engine_failure', failure.data.error.message);
    const chunk = Chunk.safeParse(json);
    if (!chunk.success) throw unexpected(server, 'a chunk of a chat completion');
    tokens = chunk.data.usage?.completion_tokens ?? tokens;
    for (const { delta, finish_reason: finish } of chunk.data.choices) {
      reason = finish ?? reason;
      const text = delta?.content ?? '';
      if (text !== '') yield { type: 'text', text };
    }
  }
  // A stream that just stops is a failure, however politely the socket was closed.
  if (reason === undefined) {
    throw new ManyfoldError('engine_failure', "The answer broke off. Look at the server's log, then ask again.");
  }
  yield { type: 'end', reason, tokens };
}

async function call(server: ChatServer, path: string, init: RequestInit): Promise<Response> {
  const headers: Record<string, string> = { 'content-type': 'application/json' };
  if (server.apiKey !== undefined) headers['authorization'] = `Bearer ${server.apiKey.reveal()}`;
  let response: Response;
  try {
    response = await fetch(server.url + path, { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted === true) throw error;
    throw new ManyfoldError(
      'not_found',
      `No server answers at ${server.url}. Start one with 'manyfold serve', or name another with --url URL.`,
      { cause: error },
    );
  }
  if (response.ok) return response;
  const body = ErrorBody.safeParse(parseJson(await response.text()));
  const mend = response.status === 401 ? ' Give the key with --api-key KEY or MANYFOLD_API_KEY.' : '';
  const message = body.success ? body.data.error.message : `${server.url}${path} answered ${response.status}.`;
  throw new ManyfoldError('invalid_request', message + mend);
}

/** The data of each server-sent event. Comments (keep-alive) are left out. */
async function* readEvents(response: Response): AsyncGenerator<string> {
  if (response.body === null) return;
  const decoder = new TextDecoder();
  let rest = '';
  const body: AsyncIterable<Uint8Array> = response.body;
  for await (const bytes of body) {
    rest += decoder.decode(bytes, { stream: true });
    const lines = rest.split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line.startsWith('data:')) yield line.slice('data:'.length).trim();
    }
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // The schemas behind refuse it.
  }
}

function unexpected(server: ChatServer, what: string): ManyfoldError {
  return new ManyfoldError(
    'invalid_request',
    `${server.url} did not answer with ${what}. Check that --url names a server of the OpenAI API.`,
  );
}
