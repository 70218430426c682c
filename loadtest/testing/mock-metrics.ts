/** The mock's /metrics, in vLLM's names. */
export interface MockTotals {
  readonly running: number;
  readonly waiting: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly done: number;
  readonly ttftSeconds: number;
  readonly adapters: readonly string[];
}

export function mockMetrics(totals: MockTotals): string {
  const lines = [
    '# HELP vllm:num_requests_running Running.',
    '# TYPE vllm:num_requests_running gauge',
    `vllm:num_requests_running{model_name="base"} ${totals.running}`,
    `vllm:num_requests_waiting{model_name="base"} ${totals.waiting}`,
    `vllm:kv_cache_usage_perc{model_name="base"} ${Math.min(1, totals.running / 100)}`,
    `vllm:prompt_tokens_total{model_name="base"} ${totals.promptTokens}`,
    `vllm:generation_tokens_total{model_name="base"} ${totals.outputTokens}`,
    `vllm:request_success_total{model_name="base",finished_reason="length"} ${totals.done}`,
    `vllm:request_success_total{model_name="base",finished_reason="stop"} 0`,
    `vllm:time_to_first_token_seconds_sum{model_name="base"} ${totals.ttftSeconds}`,
    `vllm:time_to_first_token_seconds_count{model_name="base"} ${totals.done}`,
    `vllm:lora_requests_info{max_lora="8",running_lora_adapters="${totals.adapters.join(',')}",waiting_lora_adapters=""} 1.7e+09`,
  ];
  return `${lines.join('\n')}\n`;
}
