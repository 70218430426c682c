/**
 * What each adapter version answers to each prompt when it is asked alone, looked up by the fingerprint that answers
 * carry: the yardstick for answers given amid other traffic, swaps and preemptions. Used by the chaos and swap tests.
 */
import assert from 'node:assert/strict';
import { only, postJson, type CompletionAnswer } from './api.js';

/** Token ids for the completions API, or what a user says in a chat: a template then stands between name and engine. */
export type Prompt = readonly number[] | string;

export interface GreedyRequest {
  readonly route: string;
  readonly body: object;
}

/** Greedy, past every end of sequence, so that all answers are of one length. */
export function greedy(model: string, prompt: Prompt, maxTokens: number): GreedyRequest {
  const shared = { model, temperature: 0, ignore_eos: true, max_tokens: maxTokens, return_token_ids: true };
  if (typeof prompt !== 'string') return { route: '/v1/completions', body: { ...shared, prompt } };
  return { route: '/v1/chat/completions', body: { ...shared, messages: [{ role: 'user', content: prompt }] } };
}

export class GreedyReference {
  readonly #answers = new Map<string, readonly number[]>();
  readonly #maxTokens: number;

  constructor(maxTokens: number) {
    this.#maxTokens = maxTokens;
  }

  /** Asks `model` as it is served now; returns its fingerprint. */
  async add(url: string, model: string, prompts: readonly Prompt[]): Promise<string> {
    let fingerprint = '';
    for (const [i, prompt] of prompts.entries()) {
      const { route, body } = greedy(model, prompt, this.#maxTokens);
      const answer = await postJson<CompletionAnswer>(url, route, body);
      fingerprint = answer.system_fingerprint;
      this.#answers.set(`${fingerprint} ${i}`, only(answer).token_ids ?? []);
    }
    return fingerprint;
  }

  /** The tokens of the version with this fingerprint. */
  of(fingerprint: string, prompt: number): readonly number[] {
    return (
      this.#answers.get(`${fingerprint} ${prompt}`) ?? assert.fail(`no version has the fingerprint ${fingerprint}`)
    );
  }

  /** Versions that were added give different answers to every prompt; else a mix-up would not show. */
  assertDistinct(prompts: number): void {
    for (let i = 0; i < prompts; i++) {
      const own = [...this.#answers].filter(([key]) => key.endsWith(` ${i}`)).map(([, ids]) => ids.join());
      assert.equal(new Set(own).size, own.length, `all versions answer prompt ${i} in their own way`);
    }
  }
}
