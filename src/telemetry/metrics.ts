/**
 * What the server counts, behind a small port; only this file knows prom-client. Names are vLLM's, because dashboards,
 * load generators and the endpoint picker of the Gateway API Inference Extension look them up letter by letter.
 * Gauges and totals of the engine are read from its snapshot when /metrics is asked; nothing here runs per step.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { Clock } from '../core/clock.js';
import type { ErrorCode } from '../core/errors.js';
import type { FinishReason } from '../core/sampling.js';

/** The part of the engine's statistics that is exported. Totals count from the engine's start. */
export interface EngineSnapshot {
  readonly running: number;
  readonly waiting: number;
  readonly kvUsage: number;
  readonly promptTokens: number;
  readonly generationTokens: number;
  readonly preemptions: number;
  readonly prefixQueries: number;
  readonly prefixHits: number;
}

/** Adapter names for the endpoint picker; the names are those that clients send as `model`. */
export interface AdapterSnapshot {
  /** How many adapters can be resident at once. */
  readonly maxLora: number;
  /** Resident and ready, idle ones included. */
  readonly running: readonly string[];
  /** Asked for by a request but not resident; disjoint from `running`. */
  readonly waiting: readonly string[];
}

export interface MetricsSource {
  /** The base's first served name: the `model_name` label. */
  readonly modelName: string;
  readonly pageTokens: number;
  readonly kvPages: number;
  engine(): EngineSnapshot;
  adapters(): AdapterSnapshot;
}

export interface Metrics {
  firstToken(seconds: number): void;
  interToken(seconds: number): void;
  /** One finished choice. */
  choiceFinished(reason: FinishReason): void;
  /** One request that ran to its end. */
  requestDone(seconds: number): void;
  /** One request that the client left, or that the server stopped. */
  requestCancelled(): void;
  /** One error that was answered, in whatever form. */
  errorAnswered(code: ErrorCode): void;
  render(): Promise<{ readonly contentType: string; readonly body: string }>;
}

const TTFT_BUCKETS = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
];
const ITL_BUCKETS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
];
const E2E_BUCKETS = [
  0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
];
/** More names than this in one label would make every scrape slow; the first ones are kept. */
const MAX_LISTED_ADAPTERS = 512;

export function createMetrics(source: MetricsSource, clock: Clock): Metrics {
  const registry = new Registry();
  const labels = { model_name: source.modelName };
  // Taken once a scrape, so that all figures are of one moment.
  let snapshot = source.engine();
  addEngineGauges(registry, () => snapshot, labels);
  addEngineTotals(registry, () => snapshot, labels);
  addInfoGauges(registry, source, clock);
  const histogram = (name: string, help: string, buckets: number[]): Histogram.Internal<'model_name'> =>
    new Histogram({ name, help, buckets, labelNames: ['model_name'], registers: [registry] }).labels(labels);
  const ttft = histogram('vllm:time_to_first_token_seconds', 'From arrival to the first token.', TTFT_BUCKETS);
  const itl = histogram('vllm:inter_token_latency_seconds', 'Between two tokens of one choice.', ITL_BUCKETS);
  const e2e = histogram('vllm:e2e_request_latency_seconds', 'From arrival to the last token.', E2E_BUCKETS);
  const success = new Counter({
    name: 'vllm:request_success_total',
    help: 'Finished choices by reason; abort counts requests whose client went away.',
    labelNames: ['model_name', 'finished_reason'],
    registers: [registry],
  });
  for (const reason of ['stop', 'length', 'abort']) success.inc({ ...labels, finished_reason: reason }, 0);
  const errors = new Counter({
    name: 'manyfold:request_errors_total',
    help: 'Errors answered, by code of the error registry.',
    labelNames: ['code'],
    registers: [registry],
  });
  return {
    firstToken: (seconds) => ttft.observe(seconds),
    interToken: (seconds) => itl.observe(seconds),
    choiceFinished: (reason) => success.inc({ ...labels, finished_reason: reason }),
    requestDone: (seconds) => e2e.observe(seconds),
    requestCancelled: () => success.inc({ ...labels, finished_reason: 'abort' }),
    errorAnswered: (code) => errors.inc({ code }),
    render: async () => {
      snapshot = source.engine();
      return { contentType: registry.contentType, body: await registry.metrics() };
    },
  };
}

type Labels = Readonly<{ model_name: string }>;

function addEngineGauges(registry: Registry, engine: () => EngineSnapshot, labels: Labels): void {
  const gauge = (name: string, help: string, read: (snapshot: EngineSnapshot) => number): void => {
    new Gauge<'model_name'>({
      name,
      help,
      labelNames: ['model_name'],
      registers: [registry],
      collect() {
        this.set(labels, read(engine()));
      },
    });
  };
  gauge('vllm:num_requests_running', 'Sequences in the batch.', (now) => now.running);
  gauge('vllm:num_requests_waiting', 'Sequences in the queue.', (now) => now.waiting);
  gauge('vllm:kv_cache_usage_perc', 'Share of the KV pages in use, 0 to 1.', (now) => now.kvUsage);
}

function addEngineTotals(registry: Registry, engine: () => EngineSnapshot, labels: Labels): void {
  const total = (name: string, help: string, read: (snapshot: EngineSnapshot) => number): void => {
    new Counter<'model_name'>({
      name,
      help,
      labelNames: ['model_name'],
      registers: [registry],
      collect() {
        this.reset();
        this.inc(labels, read(engine()));
      },
    });
  };
  total('vllm:prompt_tokens_total', 'Prompt tokens computed.', (now) => now.promptTokens);
  total('vllm:generation_tokens_total', 'Tokens generated.', (now) => now.generationTokens);
  total('vllm:num_preemptions_total', 'Sequences put back to be computed again.', (now) => now.preemptions);
  total('vllm:prefix_cache_queries_total', 'Prompt tokens looked up for reuse.', (now) => now.prefixQueries);
  total('vllm:prefix_cache_hits_total', 'Prompt tokens reused.', (now) => now.prefixHits);
}

function addInfoGauges(registry: Registry, source: MetricsSource, clock: Clock): void {
  new Gauge({
    name: 'vllm:cache_config_info',
    help: 'Tokens of a KV block and number of blocks, as labels.',
    labelNames: ['block_size', 'num_gpu_blocks'],
    registers: [registry],
  }).set({ block_size: String(source.pageTokens), num_gpu_blocks: String(source.kvPages) }, 1);
  new Gauge<'max_lora' | 'running_lora_adapters' | 'waiting_lora_adapters'>({
    name: 'vllm:lora_requests_info',
    help: 'Resident and awaited adapters as labels; the value is the time of this statement in unix seconds.',
    labelNames: ['max_lora', 'running_lora_adapters', 'waiting_lora_adapters'],
    registers: [registry],
    collect() {
      const adapters = source.adapters();
      // One series only: each new label set would otherwise stay for ever.
      this.reset();
      const series = {
        max_lora: String(adapters.maxLora),
        running_lora_adapters: adapters.running.slice(0, MAX_LISTED_ADAPTERS).join(','),
        waiting_lora_adapters: adapters.waiting.slice(0, MAX_LISTED_ADAPTERS).join(','),
      };
      this.set(series, clock.unixSeconds());
    },
  });
}
