import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TOY, toyIds } from '../service/testing/toy-text.js';
import { CHAT, makeApp, until } from './testing/client.js';

const HEAD = `"id":"chatcmpl-${'1'.padStart(32, '0')}","object":"chat.completion.chunk","created":1700000000,"model":"toy","system_fingerprint":"fp_ba5eba5eba"`;

function chatFrame(index: number, delta: string, finish = 'null', more = ''): string {
  const choice = `{"index":${index},"delta":${delta},"logprobs":null,"finish_reason":${finish}${more}}`;
  return `data: {${HEAD},"choices":[${choice}]}\n\n`;
}

const ROLE = '{"role":"assistant","content":""}';
const STOP = ',"stop_reason":null';

test('a chat stream, byte by byte', async () => {
  const { post } = makeApp({ answer: 'aé' });
  const response = await post('/v1/chat/completions', { ...CHAT, stream: true });
  assert.equal(response.status, 200);
  assert.equal(response.headers.get('content-type'), 'text/event-stream; charset=utf-8');
  assert.equal(response.headers.get('cache-control'), 'no-cache, no-transform');
  assert.equal(response.headers.get('x-accel-buffering'), 'no');
  assert.ok(response.headers.get('x-request-id'));
  const expected =
    chatFrame(0, ROLE) +
    chatFrame(0, '{"content":"a"}') +
    chatFrame(0, '{"content":"é"}') +
    chatFrame(0, '{}', '"stop"', STOP) +
    'data: [DONE]\n\n';
  assert.equal(await response.text(), expected);
});

test('include_usage adds one chunk without choices before the end, and null before it', async () => {
  const { post } = makeApp({ answer: 'a' });
  const body = { ...CHAT, stream: true, stream_options: { include_usage: true } };
  const frames = (await (await post('/v1/chat/completions', body)).text()).split('\n\n').slice(0, -1);
  assert.equal(frames.length, 5);
  for (const frame of frames.slice(0, 3)) assert.match(frame, /"usage":null\}$/);
  const usage =
    '{"prompt_tokens":20,"completion_tokens":2,"total_tokens":22,"prompt_tokens_details":{"cached_tokens":3}}';
  assert.equal(frames[3], `data: {${HEAD},"choices":[],"usage":${usage}}`);
  assert.equal(frames[4], 'data: [DONE]');
});

test('continuous_usage_stats counts in every chunk', async () => {
  const { post } = makeApp({ answer: 'ab' });
  const options = { include_usage: true, continuous_usage_stats: true };
  const text = await (await post('/v1/chat/completions', { ...CHAT, stream: true, stream_options: options })).text();
  const counts = [...text.matchAll(/"completion_tokens":(\d+)/g)].map((match) => Number(match[1]));
  assert.deepEqual(counts, [1, 1, 2, 3, 3]);
});

test('a completion stream, byte by byte, with token ids', async () => {
  const { post } = makeApp({ answer: 'ab' });
  const response = await post('/v1/completions', {
    prompt: 'x',
    stream: true,
    max_tokens: 2,
    return_token_ids: true,
    logprobs: 0,
  });
  const head = HEAD.replace('chatcmpl', 'cmpl').replace('chat.completion.chunk', 'text_completion');
  const logprobs = (token: string, offset: number, value: number): string =>
    `{"text_offset":[${offset}],"token_logprobs":[${value}],"tokens":["${token}"],"top_logprobs":[{"${token}":${value}}]}`;
  const chunk = (choice: string): string => `data: {${head},"choices":[{"index":0,${choice}}]}\n\n`;
  const expected =
    chunk(
      `"text":"a","logprobs":${logprobs('a', 0, -0.097)},"finish_reason":null,"token_ids":[97],"prompt_token_ids":[256,120]`,
    ) +
    chunk(`"text":"b","logprobs":${logprobs('b', 1, -0.098)},"finish_reason":null,"token_ids":[98]`) +
    chunk(`"text":"","logprobs":null,"finish_reason":"length","stop_reason":null`) +
    'data: [DONE]\n\n';
  assert.equal(await response.text(), expected);
});

test('several choices: each begins with its role and ends once', async () => {
  const { post } = makeApp({ answer: (request) => [...toyIds(String(request.sampling.choice)), TOY.eos] });
  const text = await (await post('/v1/chat/completions', { ...CHAT, stream: true, n: 3 })).text();
  for (let i = 0; i < 3; i += 1) {
    const frames = text.split('\n\n').filter((frame) => frame.includes(`"choices":[{"index":${i},`));
    assert.equal(frames.length, 3);
    assert.match(frames[0] ?? '', /"role":"assistant"/);
    assert.match(frames[1] ?? '', new RegExp(`"content":"${i}"`));
    assert.match(frames[2] ?? '', /"finish_reason":"stop"/);
  }
  assert.ok(text.endsWith('data: [DONE]\n\n'));
});

test('an engine failure is told inside the stream, and there is no [DONE]', async () => {
  const { post, log } = makeApp({ answer: 'abc', failAfter: 1 });
  const text = await (await post('/v1/chat/completions', { ...CHAT, stream: true })).text();
  const last = text.split('\n\n').at(-2) ?? '';
  const error =
    '{"message":"The fake engine broke. Send the request again.","type":"server_error","param":null,"code":500}';
  assert.equal(last, `data: {"error":${error}}`);
  assert.doesNotMatch(text, /\[DONE\]|finish_reason":"stop"/);
  const line = log.find((entry) => entry['msg'] === 'request');
  assert.deepEqual([line?.['outcome'], line?.['error'], line?.['status']], ['failed', 'engine_failure', 200]);
});

test('comments keep a silent stream alive', async () => {
  const { post, engine } = makeApp({ answer: 'a', automatic: false, app: { keepAliveMs: 10 } });
  const response = await post('/v1/chat/completions', { ...CHAT, stream: true });
  const reader = (response.body ?? assert.fail('no body')).getReader();
  const first = await reader.read();
  assert.equal(Buffer.from(first.value ?? []).toString(), ': keep-alive\n\n');
  engine.step();
  engine.step();
  let rest = '';
  for (let part = await reader.read(); !part.done; part = await reader.read())
    rest += Buffer.from(part.value).toString();
  assert.ok(rest.endsWith('data: [DONE]\n\n'));
  assert.match(rest, /"content":"a"/);
});

test('a cancelled body cancels the engine within one step and is counted as cancelled', async () => {
  const { post, engine, log, service, get } = makeApp({
    answer: () => Array.from({ length: 300 }, () => 65),
    automatic: false,
  });
  const response = await post('/v1/chat/completions', { ...CHAT, stream: true, n: 2 });
  const reader = (response.body ?? assert.fail('no body')).getReader();
  engine.step();
  await reader.read();
  await reader.cancel();
  assert.equal(engine.cancelled.length, 2);
  engine.step();
  await until(() => service.lifecycle.active === 0);
  assert.equal(engine.running, 0);
  await until(() => log.some((line) => line['msg'] === 'request'));
  const line = log.find((entry) => entry['msg'] === 'request');
  assert.deepEqual([line?.['outcome'], line?.['error']], ['cancelled', undefined]);
  const metrics = await (await get('/metrics')).text();
  assert.match(metrics, /vllm:request_success_total\{model_name="toy",finished_reason="abort"\} 1/);
});

test('a reader that does not read holds the events back', async () => {
  const { post, service, engine } = makeApp({ answer: () => Array.from({ length: 300 }, () => 65) });
  const response = await post('/v1/completions', { prompt: 'x', stream: true, max_tokens: 300 });
  await until(() => engine.running === 0);
  // The engine has finished, the request has not: its events wait for the reader.
  assert.equal(service.lifecycle.active, 1);
  const text = await response.text();
  assert.equal([...text.matchAll(/"text":"A"/g)].length, 300);
  assert.equal(service.lifecycle.active, 0);
});

test('a client that leaves a unary request cancels it', async () => {
  const { app, engine, service, log } = makeApp({ answer: () => [65, 66, 67], automatic: false });
  const client = new AbortController();
  const answering = app.request('/v1/chat/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(CHAT),
    signal: client.signal,
  });
  await until(() => engine.running === 1);
  engine.step();
  client.abort();
  engine.step();
  assert.equal((await answering).status, 499);
  assert.equal(service.lifecycle.active, 0);
  assert.equal(log.find((entry) => entry['msg'] === 'request')?.['outcome'], 'cancelled');
});
