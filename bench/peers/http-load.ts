/** A load over HTTP, by the load generator's own client; every server gets the same prompts as token ids. */
import { HttpClient } from '../../loadtest/client/http-client.js';
import { readOpenAiEvent } from '../../loadtest/client/events.js';
import { systemClock } from '../../src/core/clock.js';
import { promptsOf, type Load, type LoadTimes, type StreamTimes } from './load.js';
import { adapterName, type Product } from './systems.js';

const LIMITS = {
  connectMs: 10_000,
  firstTokenMs: 240_000,
  idleMs: 240_000,
  totalMs: 300_000,
  drainMs: 0,
  maxInFlight: 64,
};

/** The body of one request; llama-server names adapters by number, and without a scale of 0 uses all that are loaded. */
export function bodyOf(product: Product, load: Load, prompt: readonly number[], adapter: number | undefined): object {
  const asked = {
    prompt,
    max_tokens: load.outputTokens,
    temperature: 0,
    ignore_eos: true,
    stream: true,
    stream_options: { include_usage: true },
  };
  if (product !== 'llama.cpp') return { model: adapter === undefined ? 'base' : adapterName(adapter), ...asked };
  const lora = [{ id: adapter ?? 0, scale: adapter === undefined ? 0 : 1 }];
  return { model: 'base', ...asked, cache_prompt: false, lora };
}

export function adapterOf({ adapters }: Load, stream: number): number | undefined {
  return { none: undefined, one: 0, distinct: stream }[adapters];
}

export async function runOverHttp(url: string, product: Product, load: Load, seed: number): Promise<LoadTimes> {
  const bodies = promptsOf(load, seed).map((prompt, i) =>
    JSON.stringify(bodyOf(product, load, prompt, adapterOf(load, i))),
  );
  const dialect = {
    name: product,
    path: '/v1/completions',
    readEvent: readOpenAiEvent,
    body: (): string => {
      throw new Error('bodies are made above');
    },
  };
  const client = new HttpClient({ url, dialect, limits: LIMITS, apiKey: undefined, clock: systemClock });
  try {
    const startMs = systemClock.nowMs();
    const results = await Promise.all(bodies.map((body) => client.send(body)));
    const endMs = systemClock.nowMs();
    const streams = results.map((result): StreamTimes => {
      const { outcome, pieceAt, promptTokens, outputTokens, errorText } = result;
      const [firstMs, lastMs] = [pieceAt[0], pieceAt.at(-1)];
      if (outcome !== 'ok' || firstMs === undefined || lastMs === undefined) {
        throw new Error(`a request ended as ${outcome}: ${errorText ?? 'without text'}`);
      }
      return { promptTokens: promptTokens ?? 0, tokens: outputTokens ?? 0, firstMs, lastMs };
    });
    return { startMs, endMs, streams };
  } finally {
    await client.close();
  }
}

/** Greedy text of the first prompt without an adapter and with the first: they must differ, or it was not applied. */
export async function answersOf(url: string, product: Product, load: Load): Promise<[string, string]> {
  const [prompt = []] = promptsOf({ ...load, streams: 1, promptTokens: 16 }, 1);
  const short = { ...load, outputTokens: 16 };
  const ask = async (adapter: number | undefined): Promise<string> => {
    const body = { ...bodyOf(product, short, prompt, adapter), stream: false, stream_options: undefined };
    const response = await fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    const answer = (await response.json()) as { choices?: { text?: string }[] };
    const text = answer.choices?.[0]?.text;
    if (text === undefined) throw new Error(`no answer: ${JSON.stringify(answer).slice(0, 300)}`);
    return text;
  };
  return [await ask(undefined), await ask(0)];
}
