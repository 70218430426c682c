/** What servers call the figures that a report shows. vLLM's names are ours and, with another prefix, SGLang's. Pure. */
import type { Sample } from './prometheus.js';

/** One scrape; totals as the server counts them, since its own start. `null`: it does not tell. */
export interface ServerState {
  readonly running: number | null;
  readonly waiting: number | null;
  readonly kvUsageShare: number | null;
  readonly adaptersResident: number | null;
  readonly adaptersWaiting: number | null;
  readonly promptTokens: number | null;
  readonly outputTokens: number | null;
  readonly requestsDone: number | null;
  readonly preemptions: number | null;
  readonly prefixHitTokens: number | null;
  /** Sum and number of the server's own TTFT. */
  readonly ttftSeconds: number | null;
  readonly ttftCount: number | null;
}

type Figure = Exclude<keyof ServerState, 'adaptersResident' | 'adaptersWaiting'>;

/** Each figure with the names that mean it; the first that is there counts, all its series added up. */
const FLAVOURS: Readonly<Record<string, Readonly<Partial<Record<Figure, readonly string[]>>>>> = {
  vllm: {
    running: ['vllm:num_requests_running'],
    waiting: ['vllm:num_requests_waiting'],
    kvUsageShare: ['vllm:kv_cache_usage_perc', 'vllm:gpu_cache_usage_perc'],
    promptTokens: ['vllm:prompt_tokens_total'],
    outputTokens: ['vllm:generation_tokens_total'],
    requestsDone: ['vllm:request_success_total'],
    preemptions: ['vllm:num_preemptions_total'],
    prefixHitTokens: ['vllm:prefix_cache_hits_total', 'vllm:gpu_prefix_cache_hits_total'],
    ttftSeconds: ['vllm:time_to_first_token_seconds_sum'],
    ttftCount: ['vllm:time_to_first_token_seconds_count'],
  },
  sglang: {
    running: ['sglang:num_running_reqs'],
    waiting: ['sglang:num_queue_reqs'],
    kvUsageShare: ['sglang:token_usage'],
    promptTokens: ['sglang:prompt_tokens_total'],
    outputTokens: ['sglang:generation_tokens_total'],
    requestsDone: ['sglang:num_requests_total'],
    ttftSeconds: ['sglang:time_to_first_token_seconds_sum'],
    ttftCount: ['sglang:time_to_first_token_seconds_count'],
  },
  lorax: {
    running: ['lorax_batch_current_size'],
    outputTokens: ['lorax_request_generated_tokens_sum'],
    promptTokens: ['lorax_request_input_length_sum'],
    requestsDone: ['lorax_request_success'],
  },
  'text-generation-inference': {
    running: ['tgi_batch_current_size'],
    waiting: ['tgi_queue_size'],
    outputTokens: ['tgi_request_generated_tokens_sum'],
    promptTokens: ['tgi_request_input_length_sum'],
    requestsDone: ['tgi_request_success'],
  },
  'llama-server': {
    running: ['llamacpp:requests_processing'],
    waiting: ['llamacpp:requests_deferred'],
    kvUsageShare: ['llamacpp:kv_cache_usage_ratio'],
    promptTokens: ['llamacpp:prompt_tokens_total'],
    outputTokens: ['llamacpp:tokens_predicted_total'],
  },
};

const LORA_INFO = 'vllm:lora_requests_info';

/** Shares must not be added up over series: several engines of one server are told by their mean. */
const MEANS: ReadonlySet<Figure> = new Set(['kvUsageShare']);

export function readServerState(samples: readonly Sample[]): { flavour: string; state: ServerState } {
  const series = new Map<string, Sample[]>();
  for (const sample of samples) {
    const list = series.get(sample.name);
    if (list === undefined) series.set(sample.name, [sample]);
    else list.push(sample);
  }
  const known = Object.entries(FLAVOURS).find(([, figures]) =>
    Object.values(figures).some((names) => names.some((name) => series.has(name))),
  );
  const [flavour, figures] = known ?? ['unknown', {}];
  const read = (figure: Figure): number | null => {
    const found = figures[figure]?.map((name) => series.get(name)).find((list) => list !== undefined);
    if (found === undefined) return null;
    const sum = found.reduce((total, { value }) => total + value, 0);
    const value = MEANS.has(figure) ? sum / found.length : sum;
    return Number.isFinite(value) ? value : null;
  };
  const adapters = readAdapters(series.get(LORA_INFO));
  return {
    flavour,
    state: {
      running: read('running'),
      waiting: read('waiting'),
      kvUsageShare: read('kvUsageShare'),
      ...adapters,
      promptTokens: read('promptTokens'),
      outputTokens: read('outputTokens'),
      requestsDone: read('requestsDone'),
      preemptions: read('preemptions'),
      prefixHitTokens: read('prefixHitTokens'),
      ttftSeconds: read('ttftSeconds'),
      ttftCount: read('ttftCount'),
    },
  };
}

/** The value is the time of the statement: the newest of several label sets is the one in force. */
function readAdapters(list: readonly Sample[] | undefined): Pick<ServerState, 'adaptersResident' | 'adaptersWaiting'> {
  if (list === undefined) return { adaptersResident: null, adaptersWaiting: null };
  const newest = list.reduce((best, sample) => (sample.value > best.value ? sample : best));
  const count = (label: string): number =>
    (newest.labels[label] ?? '').split(',').filter((name) => name.trim() !== '').length;
  return { adaptersResident: count('running_lora_adapters'), adaptersWaiting: count('waiting_lora_adapters') };
}
