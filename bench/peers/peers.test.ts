import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseLlamaBench } from './llama-bench.js';
import { nearestRank, promptsOf, sampleOf, type Load, type LoadTimes } from './load.js';
import { bodyOf } from './http-load.js';
import { allRows, chosenRows, GROUPS, loadKey, sessionsOf, type Row } from './rows.js';
import type { SessionResult } from './session.js';
import { parseStartTable, startText } from './default-start.js';
import { median } from './median.js';
import { nameOf, SHAPES, startOf, type Place } from './systems.js';
import { insertBlock, judge, markdown, spread } from './table.js';

const PLACE: Place = { peers: '/p', repository: '/r', node: 'node', shape: SHAPES.smol, threads: 2 };
const BURST: Load = { streams: 2, promptTokens: 4, outputTokens: 3, adapters: 'none' };
const TWO: LoadTimes = {
  startMs: 1000,
  endMs: 1500,
  streams: [
    { promptTokens: 4, tokens: 3, firstMs: 1100, lastMs: 1400 },
    { promptTokens: 4, tokens: 3, firstMs: 1200, lastMs: 1500 },
  ],
};

test('several streams: generated tokens over the wall time, and the latest first token', () => {
  assert.deepEqual(sampleOf(BURST, TWO), { tokensPerSecond: 12, ttftP99Ms: 200 });
});

test('a prefill is its prompt over the time to the token, a single stream its rate after the first token', () => {
  const one = (tokens: number, promptTokens: number): LoadTimes => ({
    ...TWO,
    streams: [{ promptTokens, tokens, firstMs: 1200, lastMs: 1400 }],
  });
  const load: Load = { streams: 1, promptTokens: 512, outputTokens: 1, adapters: 'none' };
  assert.equal(sampleOf(load, one(1, 512)).tokensPerSecond, 2560);
  assert.equal(sampleOf({ ...load, promptTokens: 16, outputTokens: 5 }, one(5, 16)).tokensPerSecond, 20);
});

test('a system that did less than asked has no figure', () => {
  assert.throws(() => sampleOf({ ...BURST, outputTokens: 64 }, TWO), /expected 4 \+ 64 tokens .* counted 4 \+ 3/);
  assert.throws(() => sampleOf({ ...BURST, streams: 32 }, TWO), /expected 32 streams, got 2/);
});

test('prompts depend on the seed alone, differ from the first token on, and are ordinary tokens', () => {
  const load: Load = { ...BURST, streams: 32, promptTokens: 64 };
  const prompts = promptsOf(load, 7);
  assert.deepEqual(promptsOf(load, 7), prompts);
  assert.notDeepEqual(promptsOf(load, 8), prompts);
  assert.ok(new Set(prompts.map(([first]) => first)).size > 28);
  assert.ok(prompts.flat().every((id) => id >= 300 && id < 49_152));
});

test('nearest rank, median and spread', () => {
  assert.equal(nearestRank([5, 1, 4, 2, 3], 0.5), 3);
  assert.equal(nearestRank([1, 2, 3], 0.99), 3);
  assert.equal(median([4, 1, 3, 2]), 2.5);
  assert.equal(median([9, 1, 3]), 3);
  assert.equal(spread([120.4, 99, 130.6]), '120 [99..131]');
  assert.equal(spread([1.26]), '1.3 [1.3..1.3]');
});

test('the rate that llama-bench tells, from a line that it printed', () => {
  const printed =
    '{"build_commit": "unknown", "n_threads": 2, "n_prompt": 512, "n_gen": 0, "avg_ns": 9509802844, "avg_ts": 53.839181, "samples_ts": [ 53.8392 ]}\n';
  assert.equal(parseLlamaBench(printed), 53.839181);
  assert.throws(() => parseLlamaBench('error: failed to load model'), /expected one line with avg_ts/);
});

test('llama-server gets an explicit zero for the base, the others the name of the model or adapter', () => {
  const asked = (product: 'llama.cpp' | 'vllm', adapter?: number): Record<string, unknown> => ({
    ...bodyOf(product, BURST, [1, 2], adapter),
  });
  assert.deepEqual(asked('llama.cpp')['lora'], [{ id: 0, scale: 0 }]);
  assert.deepEqual(asked('llama.cpp', 5)['lora'], [{ id: 5, scale: 1 }]);
  assert.equal(asked('vllm')['model'], 'base');
  assert.equal(asked('vllm', 5)['model'], 'l05');
  assert.equal(asked('vllm')['ignore_eos'], true);
});

test('vLLM has one slot more than adapters, and none of the LoRA flags without them', () => {
  const system = { product: 'vllm', how: 'http', weights: 'bf16' } as const;
  const { args } = startOf({ ...system, adapters: 'distinct' }, PLACE, 9);
  assert.equal(args[args.indexOf('--max-loras') + 1], '33');
  assert.ok(args.includes('l31=/p/smol/loras/l31'));
  assert.ok(!startOf({ ...system, adapters: 'none' }, PLACE, 9).args.includes('--enable-lora'));
});

const EVERYTHING = { groups: GROUPS, products: ['vllm', 'llama.cpp', 'openvino'], weights: ['bf16', 'int8', '4-bit'] };

test('every system starts once a pass, with each of its loads once', () => {
  const sessions = sessionsOf(allRows(32));
  const names = sessions.map(({ system }) => nameOf(system));
  assert.equal(new Set(names).size, names.length);
  for (const { loads } of sessions) assert.equal(new Set(loads.map(loadKey)).size, loads.length);
  const vllm = sessions.find(({ system }) => nameOf(system) === 'vllm bf16 HTTP, LoRAs loaded');
  assert.deepEqual(vllm?.loads.map(loadKey), ['32x64+64 distinct', '32x64+64 none', '1x512+1 one', '1x16+128 one']);
});

test('rows are chosen by group, peer and weights; a row against ourselves needs no peer', () => {
  const rows = allRows(32);
  assert.deepEqual(chosenRows(rows, EVERYTHING), rows);
  const few = chosenRows(rows, { ...EVERYTHING, groups: ['lora'], products: ['llama.cpp'] });
  assert.ok(few.every(({ theirs }) => theirs.product === 'llama.cpp' || theirs.product === 'manyfold'));
  assert.ok(few.some(({ theirs }) => theirs.product === 'manyfold'));
});

function rowOf(work: RegExp, product: string): Row {
  const found = allRows(32).find((row) => work.test(row.work) && row.theirs.product === product);
  assert.ok(found);
  return found;
}

test('a rate must reach its goal, a waiting time must not pass it', () => {
  const rate = rowOf(/^prefill 512, bf16/, 'openvino');
  assert.deepEqual(judge(rate, [100], [100]), { ratio: 1, met: true });
  assert.deepEqual(judge(rate, [99], [100]), { ratio: 0.99, met: false });
  const wait = rowOf(/TTFT/, 'vllm');
  assert.deepEqual(judge(wait, [100], [400]), { ratio: 0.25, met: true });
  assert.deepEqual(judge(wait, [101], [400]).met, false);
  assert.equal(judge(rate, [], [100]).met, undefined);
});

test('the table has figures, ratio and verdict, and says of a peer without figures why', () => {
  const rows = [rowOf(/^prefill 512, bf16/, 'openvino'), rowOf(/^prefill 512, bf16/, 'vllm')];
  const session = (id: Row['ours'], values: readonly number[], failure: string | null): SessionResult => ({
    system: nameOf(id),
    pass: 0,
    startSeconds: 1.5,
    rssMiB: 700,
    samples: values.map((tokensPerSecond) => ({
      load: '1x512+1 none',
      tokensPerSecond,
      ttftP99Ms: 5,
      foreignCores: 0.01,
    })),
    failure,
  });
  const [first, second] = rows;
  assert.ok(first !== undefined && second !== undefined);
  const results = [
    session(first.ours, [300, 320], null),
    session(first.theirs, [200, 100], null),
    session(second.theirs, [], 'not installed: vllm/stamp'),
  ];
  const facts = {
    ...{ model: 'M', cpu: 'C', commit: 'abc', threads: 2, passes: 1, repeats: 2, versions: { vllm: 'not installed' } },
    machine: { threads: 2, gflops: 100, int8Gops: 200, gbPerSecond: 30 },
  };
  const text = markdown(rows, results, [], facts);
  assert.match(text, /310 \[300\.\.320\] \| openvino bf16 in process \| 150 \[100\.\.200\] \| 2\.07 \| ≥ 1 \| yes \|/);
  assert.match(text, /not run \| vllm bf16 HTTP \| not installed: vllm\/stamp \| – \| ≥ 1 \| – \|/);
  assert.match(text, /\| openvino bf16 in process \| 1\.5 \[1\.5\.\.1\.5\] \| 700 \[700\.\.700\] \| 0\.01 \|/);
});

test('the block goes between its marks and nowhere else', () => {
  const page = 'a\n<!-- peers-smol: written by x -->\n\nold\n\n<!-- /peers-smol -->\nz\n';
  const once = insertBlock(page, 'peers-smol', 'new');
  assert.equal(once, 'a\n<!-- peers-smol: written by x -->\n\nnew\n\n<!-- /peers-smol -->\nz\n');
  assert.equal(insertBlock(once, 'peers-smol', 'new'), once);
  assert.throws(() => insertBlock(page, 'peers-1b', 'new'), /expected <!-- peers-1b/);
});

test('weights and KV pool are read from what the server prints, and held against the goals', () => {
  const printed = [
    '  model     base',
    '  weights   bf16 (file: q4_1), 257 MiB; --dtype int8 takes half of that and decodes faster',
    '  KV pool   46592 tokens, 1.00 GiB',
  ].join('\n');
  assert.deepEqual(parseStartTable(printed), { weightsMiB: 257, kvMiB: 1024 });
  assert.throws(() => parseStartTable('  weights   bf16'), /no size of 'weights'/);
  const start = { seconds: 1.5, rssMiB: 700, weightsMiB: 257, kvMiB: 1024 };
  assert.match(
    startText([start]).join(''),
    /1\.50 s \(goal ≤ 2 s: met\); RSS after one answer 700 MiB.*beside the weights: 443 MiB/,
  );
  assert.match(startText([{ ...start, seconds: 2.1 }]).join(''), /2\.10 s \(goal ≤ 2 s: not met\)/);
  assert.deepEqual(startText([]), []);
});
