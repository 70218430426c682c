import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { RequestRecord } from '../report/run-report.js';
import { findDisagreements } from './disagreements.js';
import { parsePrometheus } from './prometheus.js';
import type { ScrapedRun } from './scraper.js';
import { readServerState } from './server-metrics.js';
import type { ServerState } from './server-metrics.js';

test('the text format: comments, labels, escapes, numbers, time stamps, exemplars', () => {
  const text = `# HELP a b{c="d"} 1
a 1
b:c_total{x="1",y="a\\"b\\\\c\\nd, e}"} 2.5e3 1700000000
 c{} +Inf
d{q="0.99",} -Inf
e NaN
f_bucket{le="1.0"} 17 # {trace="x"} 0.5
not a sample
{broken="1"} 3
g{x="1" 4
h
`;
  assert.deepEqual(
    parsePrometheus(text).map(({ name, labels, value }) => [name, labels, value]),
    [
      ['a', {}, 1],
      ['b:c_total', { x: '1', y: 'a"b\\c\nd, e}' }, 2500],
      ['c', {}, Infinity],
      ['d', { q: '0.99' }, -Infinity],
      ['e', {}, NaN],
      ['f_bucket', { le: '1.0' }, 17],
    ],
  );
});

test('no text makes the parser throw', () => {
  const piece = fc.oneof(fc.string(), fc.constantFrom('a{', '="', '"}', ' 1', '\\', ',', '\n', '{x="y"} 2'));
  fc.assert(fc.property(fc.array(piece), (pieces) => Array.isArray(parsePrometheus(pieces.join('')))));
});

const state = (text: string): { flavour: string; state: ServerState } => readServerState(parsePrometheus(text));

test('vLLM’s names, series added up, shares averaged, the newest statement about adapters', () => {
  const { flavour, state: found } = state(`
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_running{engine="1"} 4
vllm:kv_cache_usage_perc{engine="0"} 0.2
vllm:kv_cache_usage_perc{engine="1"} 0.4
vllm:request_success_total{finished_reason="stop"} 5
vllm:request_success_total{finished_reason="length"} 6
vllm:lora_requests_info{running_lora_adapters="old",waiting_lora_adapters="x,y"} 100
vllm:lora_requests_info{running_lora_adapters="a, b,c",waiting_lora_adapters=""} 200
`);
  assert.equal(flavour, 'vllm');
  assert.equal(found.running, 7);
  assert.ok(Math.abs((found.kvUsageShare ?? 0) - 0.3) < 1e-12);
  assert.equal(found.requestsDone, 11);
  assert.deepEqual([found.adaptersResident, found.adaptersWaiting], [3, 0]);
  assert.equal(found.waiting, null, 'what is not told is not zero');
});

test('other servers’ names, and none', () => {
  assert.equal(state('lorax_batch_current_size 4\n').state.running, 4);
  assert.equal(state('lorax_batch_current_size 4\n').state.waiting, null);
  assert.equal(state('tgi_batch_current_size 2\n').state.running, 2);
  assert.equal(state('llamacpp:requests_processing 2\n').flavour, 'llama-server');
  assert.equal(state('sglang:num_running_reqs{tp="0"} 2\n').state.running, 2);
  assert.equal(state('process_cpu_seconds_total 2\n').flavour, 'unknown');
});

function scraped(last: Partial<ServerState>): ScrapedRun {
  const nothing = Object.fromEntries(Object.keys(state('').state).map((key) => [key, null])) as unknown;
  const first = { ...(nothing as ServerState), outputTokens: 1000, requestsDone: 10, ttftSeconds: 5, ttftCount: 10 };
  return { url: 'u', flavour: 'vllm', samples: [], failedScrapes: 0, first, last: { ...first, ...last } };
}

/** 100 requests of 10 tokens, 50 ms from send to the first token. */
const RECORDS = Array.from({ length: 100 }, (): Partial<RequestRecord> => ({
  outcome: 'ok',
  outputTokens: 10,
  sentAtMs: 0,
  firstTokenAtMs: 50,
})) as RequestRecord[];

test('disagreements: within tolerance none, beyond it both figures', () => {
  const names = (last: Partial<ServerState>): string[] =>
    findDisagreements(RECORDS, scraped(last)).map(({ what }) => what);
  const agreeing = { outputTokens: 2010, requestsDone: 110, ttftSeconds: 5 + 100 * 0.048, ttftCount: 110 };
  assert.deepEqual(names(agreeing), []);
  assert.deepEqual(names({ ...agreeing, outputTokens: 2100 }), ['output tokens']);
  assert.deepEqual(names({ ...agreeing, requestsDone: 90 }), ['requests done']);
  assert.deepEqual(names({ ...agreeing, ttftSeconds: 5 + 100 * 0.01 }), ['mean time to first token']);
  assert.deepEqual(names({ ...agreeing, outputTokens: null }), [], 'a figure that is not told cannot disagree');
});
