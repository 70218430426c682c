/**
 * How servers want to be asked, and what their events mean. All dialects carry the same trace; they differ in how an
 * adapter is named: `model` (vLLM, SGLang, ours), LoRAX's `adapter_id`, llama-server's `lora: [{ id, scale }]`.
 */
import { ManyfoldError } from '../../src/core/errors.js';
import type { TracedRequest } from '../report/report-trace.js';
import type { Scenario, Target } from '../scenario/scenario.js';
import { promptOf } from '../workload/plan.js';
import { readGenerateEvent, readOpenAiEvent } from './events.js';
import type { ReadEvent } from './events.js';

export interface Dialect {
  /** Such as `vllm, chat`; stands in the report. */
  readonly name: string;
  /** Behind the target's URL. */
  readonly path: string;
  /** The JSON body of a request. */
  body(request: TracedRequest): string;
  readonly readEvent: ReadEvent;
}

export interface DialectFacts {
  /** Name of the base model. */
  readonly model: string;
  /** llama-server: adapter name → id. */
  readonly loraIds: Readonly<Record<string, number>>;
}

export function createDialect({ target, output }: Scenario, facts: DialectFacts): Dialect {
  const name = `${target.dialect}, ${target.route}`;
  if (target.route === 'generate') {
    const body = (request: TracedRequest): string => JSON.stringify(generateBody(request, target, output));
    return { name, path: '/generate_stream', body, readEvent: readGenerateEvent };
  }
  const isChat = target.route === 'chat';
  const body = (request: TracedRequest): string => {
    const prompt = promptOf(request);
    return JSON.stringify({
      ...modelFields(request.adapter, target, facts),
      ...(isChat ? { messages: [{ role: 'user', content: prompt }] } : { prompt }),
      max_tokens: request.outputTokens,
      temperature: output.temperature,
      ...lengthFields(request, target, output),
      stream: true,
      stream_options: { include_usage: true },
    });
  };
  return { name, path: isChat ? '/v1/chat/completions' : '/v1/completions', body, readEvent: readOpenAiEvent };
}

/** Throws 'invalid_config' for the first adapter that the server cannot be asked for, before a run begins. */
export function checkAdapters(names: Iterable<string | null>, { target }: Scenario, facts: DialectFacts): void {
  if (target.dialect !== 'llama-server') return;
  for (const name of names) if (name !== null) loraId(name, facts);
}

function modelFields(adapter: string | null, { dialect, adapterSource }: Target, facts: DialectFacts): object {
  if (dialect === 'llama-server') {
    return { model: facts.model, lora: adapter === null ? noLora(facts) : [{ id: loraId(adapter, facts), scale: 1 }] };
  }
  const source = dialect === 'lorax' && adapter !== null && adapterSource !== undefined;
  return { model: adapter ?? facts.model, ...(source ? { adapter_source: adapterSource } : {}) };
}

/**
 * llama-server switches every adapter off that a list does not name; for an empty list, as without one, its own settings
 * hold, which are all adapters at full scale. So one is named, at no scale.
 */
function noLora({ loraIds }: DialectFacts): object[] {
  const [id] = Object.values(loraIds);
  return id === undefined ? [] : [{ id, scale: 0 }];
}

function loraId(adapter: string, { loraIds }: DialectFacts): number {
  const id = loraIds[adapter];
  if (id !== undefined) return id;
  throw new ManyfoldError(
    'invalid_config',
    `llama-server has no adapter '${adapter}'. Known are ${Object.keys(loraIds).join(', ') || 'none'}. ` +
      'Start it with --lora FILE, or give target.lora-ids.',
  );
}

/** Fields that make the answer as long as asked, in the server's own words. */
function lengthFields(request: TracedRequest, { dialect }: Target, { ignoreEos }: Scenario['output']): object {
  if (!ignoreEos) return {};
  switch (dialect) {
    case 'manyfold':
    case 'vllm':
      return { ignore_eos: true, min_tokens: request.outputTokens };
    case 'llama-server':
      return { ignore_eos: true };
    case 'lorax':
      return { ignore_eos_token: true };
    case 'openai':
      return {};
  }
}

function generateBody(request: TracedRequest, { adapterSource }: Target, output: Scenario['output']): object {
  const source = adapterSource === undefined ? {} : { adapter_source: adapterSource };
  return {
    inputs: promptOf(request),
    parameters: {
      max_new_tokens: request.outputTokens,
      details: true,
      ...(request.adapter === null ? {} : { adapter_id: request.adapter, ...source }),
      // LoRAX refuses a temperature of 0; without sampling it takes the most likely token.
      ...(output.temperature > 0 ? { do_sample: true, temperature: output.temperature } : {}),
      ...(output.ignoreEos ? { ignore_eos_token: true } : {}),
    },
  };
}
