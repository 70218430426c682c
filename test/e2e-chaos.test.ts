/**
 * A hundred streams at once over a pool too small for them, on adapters that are loaded, moved and unloaded meanwhile,
 * while clients leave at random: every answer that is finished is the one of its version alone, and in the end every
 * page, lease, term set and socket is back. The seed decides who does what.
 */
import assert from 'node:assert/strict';
import { cp, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { chunksOf, post } from './support/api.js';
import { GOLDENS, readGoldens } from './support/goldens.js';
import { greedy, GreedyReference, type Prompt } from './support/greedy-reference.js';
import { assertIdle, metric, startStack, until, type Stack } from './support/stack.js';

const MODEL = 'gemma3';
const FOLDER = path.join(GOLDENS, 'models', MODEL);
/** 48 pages hold two thirds of what 16 running sequences need by their ends. */
const FLAGS = [
  '--dtype',
  'f32',
  '--kv-bytes',
  '1MiB',
  '--max-model-len',
  '160',
  '--max-num-seqs',
  '16',
  '--threads',
  '1',
];
const STREAMS = 100;
const TOKENS = 48;
const SEED = 20240607;
/** Token ids of three lengths, and a chat. */
const PROMPTS: readonly Prompt[] = [
  ...readGoldens(path.join(FOLDER, 'goldens'))
    .cases.slice(0, 3)
    .map(({ prompt }) => prompt),
  'Which of them is it?',
];
const FOLDERS = ['qkvo-r8', 'regex-mlp-r1', 'head-r8', 'embed-r3'];

/** Names and the folders that they point at over time. `steady` is never touched. */
const STEADY = 'steady';
const MOVING = 'moving';
const FLEETING = 'fleeting';
const MODELS = [MODEL, STEADY, MOVING, FLEETING];

let adapters: string;
let stack: Stack;
let socketsBefore: number;
let filesBefore: number;

function openSockets(): number {
  return process.getActiveResourcesInfo().filter((name) => /^(TCP|Pipe|TLS)/.test(name)).length;
}

/** Open file descriptors of this process, where the system tells them. */
async function openFiles(): Promise<number> {
  return process.platform === 'linux' ? (await readdir('/proc/self/fd')).length : 0;
}

before(async () => {
  adapters = await mkdtemp(path.join(tmpdir(), 'manyfold-e2e-'));
  // The first request of a process opens what stays open; it is no part of the count.
  await fetch('http://127.0.0.1:9/').catch(() => undefined);
  socketsBefore = openSockets();
  filesBefore = await openFiles();
  stack = await startStack(FOLDER, [...FLAGS, '--adapter-dir', adapters, '--enable-runtime-lora']);
  // Only now, so that the start does not find and serve them.
  await cp(path.join(FOLDER, 'adapters'), path.join(adapters, 'from'), { recursive: true });
});
after(async () => {
  await stack.stop();
  await rm(adapters, { recursive: true });
});

/** Whole numbers of 0 to below - 1, the same on every run. */
function dice(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

async function load(name: string, folder: string, inPlace: boolean): Promise<void> {
  const body = { lora_name: name, lora_path: path.join('from', folder), load_inplace: inPlace };
  const response = await post(stack.url, '/v1/load_lora_adapter', body);
  assert.equal(response.status, 200, await response.text());
}

async function unload(name: string): Promise<void> {
  const response = await post(stack.url, '/v1/unload_lora_adapter', { lora_name: name });
  assert.equal(response.status, 200, await response.text());
}

/** Every version on every prompt, asked quietly; leaves the names as the storm expects them. */
async function prepare(): Promise<GreedyReference> {
  const reference = new GreedyReference(TOKENS);
  await reference.add(stack.url, MODEL, PROMPTS);
  for (const folder of FOLDERS) {
    await load(MOVING, folder, true);
    await reference.add(stack.url, MOVING, PROMPTS);
  }
  reference.assertDistinct(PROMPTS.length);
  await load(STEADY, FOLDERS[0] ?? '', false);
  await load(FLEETING, FOLDERS[1] ?? '', false);
  return reference;
}

interface Visitor {
  readonly model: string;
  readonly prompt: number;
  /** Leaves after so many tokens; 0: before the answer begins; undefined: stays. */
  readonly leavesAfter: number | undefined;
  readonly arrivesMs: number;
}

function visitors(): Visitor[] {
  const roll = dice(SEED);
  return Array.from({ length: STREAMS }, () => ({
    model: MODELS[roll(MODELS.length)] ?? MODEL,
    prompt: roll(PROMPTS.length),
    leavesAfter: roll(100) < 40 ? roll(TOKENS) : undefined,
    arrivesMs: roll(40),
  }));
}

type Outcome = 'finished' | 'left' | 'unknown model';

async function visit(visitor: Visitor, reference: GreedyReference): Promise<Outcome> {
  await sleep(visitor.arrivesMs);
  const controller = new AbortController();
  if (visitor.leavesAfter === 0) setImmediate(() => controller.abort());
  try {
    const { route, body } = greedy(visitor.model, PROMPTS[visitor.prompt] ?? [], TOKENS);
    const response = await post(stack.url, route, { ...body, stream: true }, controller.signal);
    if (response.status === 404 && visitor.model === FLEETING) {
      await response.text();
      return 'unknown model';
    }
    assert.equal(response.status, 200);
    const ids: number[] = [];
    let fingerprint = '';
    for await (const chunk of chunksOf(response)) {
      assert.ok(!('error' in chunk), JSON.stringify(chunk));
      assert.equal(chunk.model, visitor.model);
      fingerprint = chunk.system_fingerprint;
      ids.push(...(chunk.choices[0]?.token_ids ?? []));
      if (visitor.leavesAfter !== undefined && ids.length >= visitor.leavesAfter) controller.abort();
    }
    assert.deepEqual(ids, reference.of(fingerprint, visitor.prompt), `${visitor.model}, prompt ${visitor.prompt}`);
    return 'finished';
  } catch (error) {
    if (controller.signal.aborted && (error as Error).name === 'AbortError') return 'left';
    throw error;
  }
}

/** Moves one name from folder to folder and takes another away and back, until the streams are over. */
async function churn(isOver: () => boolean): Promise<number> {
  let changes = 0;
  for (let round = 0; !isOver(); round++) {
    await load(MOVING, FOLDERS[round % FOLDERS.length] ?? '', true);
    if (round % 2 === 0) await unload(FLEETING);
    else await load(FLEETING, FOLDERS[(round + 1) % FOLDERS.length] ?? '', false);
    changes += 2;
    await sleep(5);
  }
  return changes;
}

test('a hundred streams, cancellations, loads and unloads', async () => {
  const reference = await prepare();
  const preemptionsBefore = stack.composition.engine.stats().preemptions;
  // Tiny models answer faster than clients change their minds.
  stack.gate.slow(1);
  let over = false;
  const storm = Promise.all(visitors().map((visitor) => visit(visitor, reference)));
  const [outcomes, changes] = await Promise.all([storm.finally(() => (over = true)), churn(() => over)]);

  const count = (outcome: Outcome): number => outcomes.filter((candidate) => candidate === outcome).length;
  assert.ok(count('finished') >= 40, `${count('finished')} finished`);
  assert.ok(count('left') >= 20, `${count('left')} left`);
  assert.ok(changes >= 6, `${changes} loads and unloads`);
  assert.ok(stack.composition.engine.stats().preemptions > preemptionsBefore, 'the pool was too small');
  assert.ok((await metric(stack, 'vllm:request_success_total', 'finished_reason="abort"')) > 0);

  await assertIdle(stack);
  await until(() => openSockets() === socketsBefore + 1, 'only the listener is open');
  const faults = stack.warnings.filter((line) => !line.includes('"level":40'));
  assert.deepEqual(faults, [], 'no request met an error of the server');
});

test('closing leaves nothing', async () => {
  const { native } = stack.composition;
  await stack.stop();
  assert.throws(() => native.info(), 'the native engine is gone');
  await until(() => openSockets() === socketsBefore, 'the listener is closed');
  assert.equal(await openFiles(), filesBefore, 'every file is closed');
});
