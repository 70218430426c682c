import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CHAT, makeApp } from './testing/client.js';
import type { AppFixture } from './testing/client.js';

async function scrape({ get }: AppFixture): Promise<string[]> {
  return (await (await get('/metrics')).text()).split('\n').filter((line) => line !== '' && !line.startsWith('#'));
}

test('metrics under the names that dashboards and pickers look up', async () => {
  const fixture = makeApp({ answer: 'Hello' });
  await fixture.service.manageAdapters.load({ name: 'tenant-a', path: 'a', inPlace: false });
  await fixture.service.manageAdapters.load({ name: 'tenant-b', path: 'b', inPlace: false });
  await (await fixture.post('/v1/chat/completions', CHAT)).text();
  await fixture.get('/nothing');
  const lines = await scrape(fixture);
  for (const line of [
    'vllm:num_requests_running{model_name="toy"} 0',
    'vllm:num_requests_waiting{model_name="toy"} 0',
    'vllm:kv_cache_usage_perc{model_name="toy"} 0.25',
    'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1',
    'vllm:prompt_tokens_total{model_name="toy"} 20',
    'vllm:generation_tokens_total{model_name="toy"} 6',
    'vllm:num_preemptions_total{model_name="toy"} 0',
    'vllm:request_success_total{model_name="toy",finished_reason="stop"} 1',
    'vllm:time_to_first_token_seconds_count{model_name="toy"} 1',
    'vllm:inter_token_latency_seconds_count{model_name="toy"} 5',
    'vllm:e2e_request_latency_seconds_count{model_name="toy"} 1',
    'manyfold:request_errors_total{code="not_found"} 1',
  ]) {
    assert.ok(lines.includes(line), `${line}\n${lines.join('\n')}`);
  }
  await fixture.service.manageAdapters.unload('tenant-a');
  const lora = (await scrape(fixture)).filter((line) => line.startsWith('vllm:lora_requests_info'));
  const labels = 'max_lora="4",running_lora_adapters="tenant-b",waiting_lora_adapters=""';
  assert.deepEqual(lora, [`vllm:lora_requests_info{${labels}} 1700000000`]);
});

test('one line a request: names and counts, never text or keys', async () => {
  const { post, get, log } = makeApp({ answer: 'Secret answer', apiKeys: ['top-secret'] });
  const body = { ...CHAT, messages: [{ role: 'user', content: 'private words' }] };
  const trace = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
  const headers = { authorization: 'Bearer top-secret', traceparent: trace, 'x-request-id': 'r1' };
  await post('/v1/chat/completions', body, headers);
  await get('/health');
  const lines = log.filter((line) => line['msg'] === 'request');
  assert.equal(lines.length, 2);
  const { time, pid, ...line } = lines[0] ?? {};
  assert.ok(time !== undefined && pid === undefined);
  assert.deepEqual(line, {
    ...{ level: 30, msg: 'request', requestId: 'r1', method: 'POST', route: '/v1/chat/completions', status: 200 },
    ...{ durationMs: 0, ttftMs: 0, traceId: '0af7651916cd43dd8448eb211c80319c', model: 'toy', outcome: 'done' },
    ...{ responseId: `chatcmpl-${'1'.padStart(32, '0')}`, promptTokens: 31, completionTokens: 14, cachedTokens: 3 },
    finishReason: 'stop',
  });
  assert.equal(lines[1]?.['level'], 20);
  assert.doesNotMatch(JSON.stringify(log), /private|Secret|top-secret/);
});
