import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LOOPBACK_HOSTS } from './host-check.js';
import { CHAT, errorOf, makeApp } from './testing/client.js';

test('a chat answer has the form of the API and says which version answered', async () => {
  const { post } = makeApp({ answer: 'Hello' });
  const response = await post('/v1/chat/completions', CHAT, { 'x-request-id': 'abc-1' });
  assert.equal(response.status, 200);
  assert.equal(response.headers.get('x-request-id'), 'abc-1');
  assert.match(response.headers.get('openai-processing-ms') ?? '', /^\d+$/);
  assert.deepEqual(await response.json(), {
    id: `chatcmpl-${'1'.padStart(32, '0')}`,
    object: 'chat.completion',
    created: 1_700_000_000,
    model: 'toy',
    system_fingerprint: 'fp_ba5eba5eba',
    choices: [
      {
        index: 0,
        message: { role: 'assistant', content: 'Hello', refusal: null },
        logprobs: null,
        finish_reason: 'stop',
        stop_reason: null,
      },
    ],
    usage: { prompt_tokens: 20, completion_tokens: 6, total_tokens: 26, prompt_tokens_details: { cached_tokens: 3 } },
  });
});

test('completions: echo with logprobs scores a prompt as evaluation harnesses ask for it', async () => {
  const { post } = makeApp({ answer: 'x' });
  const body = {
    model: 'toy',
    prompt: [[97, 98], [99]],
    max_tokens: 1,
    logprobs: 1,
    echo: true,
    seed: 1234,
    temperature: 0,
  };
  const answer = (await (await post('/v1/completions', body)).json()) as {
    choices: { index: number; text: string; logprobs: Record<string, unknown[]> }[];
  };
  assert.deepEqual(
    answer.choices.map((choice) => [choice.index, choice.text]),
    [
      [0, 'abx'],
      [1, 'cx'],
    ],
  );
  assert.deepEqual(answer.choices[0]?.logprobs, {
    text_offset: [0, 1, 2],
    token_logprobs: [null, -0.098, -0.12],
    tokens: ['a', 'b', 'x'],
    top_logprobs: [null, { b: -0.098 }, { x: -0.12 }],
  });
});

test('tokens as ids, token ids and prompt logprobs', async () => {
  const { post } = makeApp({ answer: 'x' });
  const more = { return_tokens_as_token_ids: true, return_token_ids: true, prompt_logprobs: 1 };
  const completion = await post('/v1/completions', { prompt: [97, 98], max_tokens: 1, logprobs: 2, ...more });
  const { choices } = (await completion.json()) as { choices: Record<string, unknown>[] };
  assert.deepEqual(choices[0]?.['token_ids'], [120]);
  assert.deepEqual(choices[0]?.['prompt_token_ids'], [97, 98]);
  assert.deepEqual(choices[0]?.['prompt_logprobs'], [null, { '98': { logprob: -0.098, rank: 1, decoded_token: 'b' } }]);
  const logprobs = choices[0]?.['logprobs'] as Record<string, unknown>;
  assert.deepEqual(logprobs['tokens'], ['token_id:120']);
  assert.deepEqual(logprobs['top_logprobs'], [{ 'token_id:120': -0.12, 'token_id:121': -1.121 }]);
  const chat = (await (await post('/v1/chat/completions', { ...CHAT, max_tokens: 1, ...more })).json()) as Record<
    string,
    unknown[]
  >;
  assert.equal(chat['prompt_token_ids']?.length, 20);
  assert.equal(chat['prompt_logprobs']?.length, 20);
});

test('chat logprobs have bytes and candidates', async () => {
  const { post } = makeApp({ answer: 'é' });
  const response = await post('/v1/chat/completions', { ...CHAT, logprobs: true, top_logprobs: 1, max_tokens: 2 });
  const { choices } = (await response.json()) as { choices: { logprobs: { content: unknown[] } }[] };
  assert.deepEqual(choices[0]?.logprobs.content[0], {
    token: '�',
    logprob: -0.195,
    bytes: [0xc3],
    top_logprobs: [{ token: '�', logprob: -0.195, bytes: [0xc3] }],
  });
});

test('sampling fields reach the engine', async () => {
  const { engine, post } = makeApp({ answer: 'x' });
  const fields = {
    ...{ temperature: 0.5, top_p: 0.8, top_k: 7, min_p: 0.05, repetition_penalty: 1.1, presence_penalty: 0.5 },
    ...{ frequency_penalty: -0.5, seed: 9, max_completion_tokens: 8, max_tokens: 3, min_tokens: 2, ignore_eos: true },
    ...{ logit_bias: { 65: -100, 66: 5 }, stop_token_ids: [7], cache_salt: 's', user: 'u', n: 1, best_of: 1 },
  };
  assert.equal((await post('/v1/chat/completions', { ...CHAT, ...fields })).status, 200);
  assert.deepEqual(engine.requests[0]?.sampling, {
    ...{ temperature: 0.5, topP: 0.8, topK: 7, minP: 0.05, repetitionPenalty: 1.1, presencePenalty: 0.5 },
    ...{ frequencyPenalty: -0.5, seed: 9, maxTokens: 8, minTokens: 2, ignoreEos: true, choice: 0 },
    ...{
      logitBias: [
        [65, -100],
        [66, 5],
      ],
      stopTokenIds: [7],
    },
  });
  assert.equal(engine.requests[0]?.cacheSalt, 's');
});

test('null means absent, unknown fields are ignored with a warning', async () => {
  const { post, log } = makeApp();
  const response = await post('/v1/chat/completions', {
    ...CHAT,
    temperature: null,
    stop: null,
    tools: null,
    colour: 'red',
  });
  assert.equal(response.status, 200);
  const warning = log.find((line) => line['msg'] === 'unknown request fields are ignored');
  assert.deepEqual(warning?.['fields'], ['colour']);
});

test('wrong types and fields that cannot be honoured are refused by name', async () => {
  const { post, engine } = makeApp();
  const cases: [string, string, object][] = [
    ['messages', 'chat', { messages: undefined }],
    ['messages', 'chat', { messages: 'Hi' }],
    ['messages', 'chat', { messages: [] }],
    ['messages[0].role', 'chat', { messages: [{ content: 'x' }] }],
    ['messages[0].content', 'chat', { messages: [{ role: 'user', content: 5 }] }],
    ['messages[0].content', 'chat', { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: {} }] }] }],
    ['temperature', 'chat', { temperature: 'hot' }],
    ['n', 'chat', { n: 1.5 }],
    ['n', 'chat', { n: 9 }],
    ['best_of', 'chat', { n: 1, best_of: 2 }],
    ['stop', 'chat', { stop: 5 }],
    ['logit_bias', 'chat', { logit_bias: { a: 1 } }],
    ['logit_bias', 'chat', { logit_bias: [1] }],
    ['top_logprobs', 'chat', { top_logprobs: 3 }],
    ['top_logprobs', 'chat', { logprobs: true, top_logprobs: 21 }],
    ['stream_options', 'chat', { stream_options: { include_usage: true } }],
    ['stream_options.include_usage', 'chat', { stream: true, stream_options: { include_usage: 'yes' } }],
    ['prompt_logprobs', 'chat', { stream: true, prompt_logprobs: 1 }],
    ['response_format.type', 'chat', { response_format: { type: 'json_object' } }],
    ['tool_choice', 'chat', { tool_choice: 'required' }],
    ['tool_choice', 'chat', { tool_choice: { type: 'function', function: { name: 'f' } } }],
    ['chat_template', 'chat', { chat_template: '{{ x }}' }],
    ['guided_json', 'chat', { guided_json: {} }],
    ['structured_outputs', 'chat', { structured_outputs: { regex: 'a' } }],
    ['cache_salt', 'chat', { cache_salt: '' }],
    ['max_completion_tokens', 'chat', { max_completion_tokens: 100_000 }],
    ['tools', 'chat', { tools: Array.from({ length: 129 }, () => ({})) }],
    ['prompt', 'completion', { prompt: undefined }],
    ['prompt', 'completion', { prompt: [] }],
    ['prompt', 'completion', { prompt: ['a', 1] }],
    ['prompt', 'completion', { prompt: [1.5] }],
    ['prompt', 'completion', { prompt: [-1] }],
    ['prompt', 'completion', { prompt: { text: 'a' } }],
    ['suffix', 'completion', { suffix: 'end' }],
    ['logprobs', 'completion', { logprobs: true }],
    ['echo', 'completion', { echo: 'yes' }],
  ];
  for (const [param, kind, change] of cases) {
    const path = kind === 'chat' ? '/v1/chat/completions' : '/v1/completions';
    const response = await post(path, { ...(kind === 'chat' ? CHAT : { prompt: 'x' }), ...change });
    const error = await errorOf(response);
    assert.deepEqual(
      [response.status, error.code, error.param],
      [400, 400, param],
      JSON.stringify(change) + error.message,
    );
    assert.match(error.message, /[.]$/);
  }
  assert.equal(engine.requests.length, 0);
});

test('a wrong type is told with what was expected and what came', async () => {
  const { post } = makeApp();
  const user = (fields: object): object => ({ messages: [{ role: 'user', ...fields }] });
  const cases: [RegExp, object][] = [
    [/^'messages' must be an array; nothing came\./, {}],
    [/^'max_tokens' must be a whole number; 1\.5 came\./, { ...CHAT, max_tokens: 1.5 }],
    [/^'max_tokens' must be a number; a string came\./, { ...CHAT, max_tokens: '4' }],
    [/^'seed' must be a whole number within ±9007199254740991; 1e\+30 came\./, { ...CHAT, seed: 1e30 }],
    [/^'stream' must be true or false; 1 came\./, { ...CHAT, stream: 1 }],
    [/^'chat_template_kwargs' must be an object; an array came\./, { ...CHAT, chat_template_kwargs: [] }],
    [/^'messages\[0\]\.role' must be a string; nothing came\./, { messages: [{ content: 'x' }] }],
    [/^'messages\[0\]\.content': expected a string .*; nothing came\./, user({ text: 'Hi' })],
    [/^'messages\[0\]\.content': expected a string .*; nothing came\./, user({ content: null })],
    [/^'logit_bias': expected token ids with a number each/, { ...CHAT, logit_bias: { hello: 5 } }],
  ];
  for (const [message, body] of cases)
    assert.match((await errorOf(await post('/v1/chat/completions', body))).message, message);
  const called = {
    role: 'assistant',
    content: null,
    tool_calls: [{ id: 'a', type: 'function', function: { name: 'f' } }],
  };
  assert.equal((await post('/v1/chat/completions', { messages: [...CHAT.messages, called] })).status, 200);
});

test('hostile bodies get an answer in the envelope, never a 500', async () => {
  const fixture = makeApp({ limits: { bodyBytes: 5000 } });
  const deep = '['.repeat(2000) + ']'.repeat(2000);
  const bodies: [number, string][] = [
    [400, ''],
    [400, '{'],
    [400, 'null'],
    [400, '[]'],
    [400, '"text"'],
    [400, '{"messages":'],
    [400, `{"messages":${deep}}`],
    [400, '{"messages":[{"role":"user","content":"x"}],"temperature":1e999}'],
    [400, '{"messages":[{"role":"user","content":"x"}],"seed":123456789012345678901234567890}'],
    [200, '{"messages":[{"role":"user","content":"x"}],"__proto__":{"n":5},"constructor":1}'],
    [200, `{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"__proto__":{"a":1}}}`],
    [413, `{"messages":"${'x'.repeat(6000)}"}`],
  ];
  for (const [status, body] of bodies) {
    const response = await fixture.post('/v1/chat/completions', body);
    assert.equal(response.status, status, body.slice(0, 60));
    if (status !== 200) assert.equal((await errorOf(response)).code, status);
  }
  const notUtf8 = await fixture.app.request('/v1/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d),
  });
  assert.equal(notUtf8.status, 400);
});

test('a body without a length is counted while it arrives', async () => {
  const { app } = makeApp({ limits: { bodyBytes: 5000 } });
  let sent = 0;
  const body = new ReadableStream<Uint8Array>({
    pull: (controller) => {
      sent += 1000;
      controller.enqueue(new Uint8Array(1000).fill(32));
    },
  });
  const headers = { 'content-type': 'application/json' };
  const init: RequestInit & { duplex: 'half' } = { method: 'POST', headers, body, duplex: 'half' };
  const response = await app.request('/v1/completions', init);
  assert.equal(response.status, 413);
  assert.ok(sent < 10_000);
});

test('unknown paths, methods and media types', async () => {
  const { app, get, post } = makeApp();
  const cases: [Response, number, string][] = [
    [await get('/nothing'), 404, 'NotFoundError'],
    [await get('/v1/chat/completions'), 405, 'invalid_request_error'],
    [await app.request('/v1/models', { method: 'DELETE' }), 405, 'invalid_request_error'],
    [await app.request('/v1/completions', { method: 'POST', body: '{}' }), 415, 'invalid_request_error'],
    [await post('/v1/completions', {}, { 'content-type': 'text/plain' }), 415, 'invalid_request_error'],
    [await post('/v1/completions', {}, { 'content-encoding': 'gzip' }), 415, 'invalid_request_error'],
    [await post('/v1/load_lora_adapter', {}), 404, 'NotFoundError'],
    [await post('/v1/completions', { prompt: 'x', model: 'nobody' }), 404, 'NotFoundError'],
  ];
  for (const [response, status, type] of cases) {
    const error = await errorOf(response);
    assert.deepEqual([response.status, error.code, error.type], [status, status, type]);
    assert.equal(response.headers.get('content-type'), 'application/json');
    assert.ok(response.headers.get('x-request-id'));
  }
  assert.equal((await get('/v1/chat/completions')).headers.get('allow'), 'POST');
  assert.match((await errorOf(await post('/v1/load_lora_adapter', {}))).message, /--enable-runtime-lora/);
});

test('a request id of the wrong form is replaced', async () => {
  const { get } = makeApp();
  for (const bad of ['a b', 'x'.repeat(129), 'a"b', '']) {
    assert.notEqual((await get('/version', { 'x-request-id': bad })).headers.get('x-request-id'), bad);
  }
  assert.match((await get('/version')).headers.get('x-request-id') ?? '', /^[A-Za-z0-9._-]{1,128}$/);
});

test('with keys everything but the probes needs one; each key works', async () => {
  const { get, post } = makeApp({ apiKeys: ['first-key', 'second-key'] });
  for (const path of ['/livez', '/readyz', '/health', '/ping', '/version', '/metrics']) {
    assert.equal((await get(path)).status, 200, path);
  }
  for (const path of ['/v1/models', '/nothing', '/tokenize', '/health/', '//health', '/livez%2f..%2fv1%2fmodels']) {
    const response = await get(path);
    assert.equal(response.status, 401, path);
    assert.equal((await errorOf(response)).type, 'authentication_error');
  }
  for (const authorization of ['Bearer wrong', 'Bearer first-keyx', 'Bearer first-ke', 'Basic first-key', 'Bearer ']) {
    assert.equal((await get('/v1/models', { authorization })).status, 401, authorization);
  }
  for (const key of ['first-key', 'second-key']) {
    assert.equal((await post('/v1/chat/completions', CHAT, { authorization: `Bearer ${key}` })).status, 200);
  }
  const closed = makeApp({ apiKeys: ['k'], app: { metricsNeedKey: true } });
  assert.equal((await closed.get('/metrics')).status, 401);
});

test('a loopback server without a key answers only under loopback names', async () => {
  const { get } = makeApp({ app: { allowedHosts: LOOPBACK_HOSTS } });
  for (const host of ['localhost', 'localhost:8000', '127.0.0.1:8000', '[::1]:8000', 'LOCALHOST:1']) {
    assert.equal((await get('/v1/models', { host })).status, 200, host);
  }
  for (const host of ['evil.example', 'localhost.evil.example:8000', '127.0.0.1.evil.example', '']) {
    assert.equal((await get('/v1/models', { host })).status, 403, host);
  }
});

test('models: the base under its names, then adapters; ids with slashes', async () => {
  const fixture = makeApp();
  await fixture.service.manageAdapters.load({ name: 'org/team/a', path: 'a', inPlace: false });
  const list = (await (await fixture.get('/v1/models')).json()) as { data: Record<string, unknown>[] };
  assert.deepEqual(
    list.data.map((card) => card['id']),
    ['toy', 'toy-alias', 'org/team/a'],
  );
  assert.equal(list.data[0]?.['max_model_len'], 512);
  for (const path of ['/v1/models/org/team/a', '/v1/models/org%2Fteam%2Fa']) {
    const card = (await (await fixture.get(path)).json()) as Record<string, unknown>;
    assert.deepEqual([card['id'], card['root'], card['parent']], ['org/team/a', '/adapters/a', 'toy']);
  }
  assert.equal((await fixture.get('/v1/models/nobody')).status, 404);
});

test('tokenize and detokenize', async () => {
  const { post } = makeApp();
  const text = await post('/tokenize', { model: 'toy', prompt: 'aé', return_token_strs: true });
  assert.deepEqual(await text.json(), {
    ...{ count: 4, max_model_len: 512, tokens: [256, 97, 0xc3, 0xa9], token_strs: ['<bos>', 'a', '�', '�'] },
  });
  const chat = (await (await post('/tokenize', { ...CHAT, add_generation_prompt: false })).json()) as { count: number };
  assert.equal(chat.count, 'user: Hi\n'.length);
  assert.deepEqual(await (await post('/detokenize', { tokens: [256, 0xc3, 0xa9] })).json(), { prompt: '<bos>é' });
  assert.equal((await post('/tokenize', { model: 'toy' })).status, 400);
  assert.equal((await post('/detokenize', { tokens: [99999] })).status, 400);
});

test('the adapter routes answer in the words of the contract', async () => {
  const { post } = makeApp({ app: { runtimeLora: true } });
  const loaded = await post('/v1/load_lora_adapter', { lora_name: 'tenant-a', lora_path: 'a' });
  assert.equal(loaded.status, 200);
  assert.match(loaded.headers.get('content-type') ?? '', /^text\/plain/);
  assert.equal(await loaded.text(), "Success: LoRA adapter 'tenant-a' added successfully.");
  const again = await post('/v1/load_lora_adapter', { lora_name: 'tenant-a', lora_path: 'a' });
  assert.deepEqual([again.status, (await errorOf(again)).type], [400, 'InvalidUserInput']);
  const missing = await post('/v1/load_lora_adapter', { lora_name: 'b', lora_path: 'missing' });
  assert.deepEqual([missing.status, (await errorOf(missing)).type], [404, 'NotFoundError']);
  const unloaded = await post('/v1/unload_lora_adapter', { lora_name: 'tenant-a', lora_int_id: null });
  assert.equal(await unloaded.text(), "Success: LoRA adapter 'tenant-a' removed successfully.");
  assert.equal((await post('/v1/unload_lora_adapter', { lora_name: 'tenant-a' })).status, 404);
  assert.equal((await post('/v1/unload_lora_adapter', {})).status, 400);
});

test('health fails with the reason while the engine stands still', async () => {
  const { get, engine } = makeApp();
  assert.deepEqual(await (await get('/health')).json(), { status: 'ok' });
  engine.stalledMs = 61_000;
  for (const path of ['/health', '/livez', '/readyz', '/ping']) {
    const response = await get(path);
    assert.equal(response.status, 503, path);
    assert.match((await errorOf(response)).message, /No step has ended for 61 s/);
  }
});

test('overload and engine failure carry what clients obey', async () => {
  const full = makeApp({ refuse: 'submit' });
  const busy = await full.post('/v1/chat/completions', { ...CHAT, stream: true });
  assert.equal(busy.status, 503);
  assert.ok(Number(busy.headers.get('retry-after')) >= 1);
  assert.ok(Number(busy.headers.get('retry-after-ms')) >= 1000);
  assert.equal(busy.headers.get('x-llm-d-request-dropped-reason'), 'rejected-saturated');
  const broken = makeApp({ failAfter: 1 });
  const failed = await broken.post('/v1/chat/completions', CHAT);
  assert.deepEqual([failed.status, (await errorOf(failed)).type], [500, 'server_error']);
});
