/** The table of goals: what is run, by whom, and what ours must be of theirs. Pure. */
import type { AdapterUse, Load } from './load.js';
import { nameOf, type Product, type SystemId, type Weights } from './systems.js';

/** The better figure is the larger: tokens a second; or the smaller: TTFT. */
export type Measure = 'rate' | 'ttft';

export interface Goal {
  readonly ratio: number;
  readonly stretch?: number;
}

export interface Row {
  /** Word of --rows. */
  readonly group: string;
  readonly work: string;
  readonly load: Load;
  readonly measure: Measure;
  readonly ours: SystemId;
  /** Another load of the same system (`ours ÷ own base`), or a peer. */
  readonly theirs: SystemId;
  readonly theirLoad: Load;
  /** Undefined: for comparison, without a goal. */
  readonly goal: Goal | undefined;
}

const WEIGHTS: readonly Weights[] = ['bf16', 'int8', '4-bit'];

const system = (product: Product, how: SystemId['how'], weights: Weights, adapters: AdapterUse = 'none'): SystemId => ({
  product,
  how,
  weights,
  adapters,
});
/** Ours holds adapters whether or not a row uses them: it has no mode without. */
const ours = (how: 'process' | 'http', weights: Weights): SystemId =>
  system('manyfold', how, weights, how === 'process' ? 'one' : 'distinct');

function row(
  group: string,
  work: string,
  load: Load,
  pair: readonly [ours: SystemId, theirs: SystemId],
  goal?: Goal,
): Row {
  const [own, theirs] = pair;
  return { group, work, load, measure: 'rate', ours: own, theirs, theirLoad: load, goal };
}

const PREFILL: Load = { streams: 1, promptTokens: 512, outputTokens: 1, adapters: 'none' };
const DECODE: Load = { streams: 1, promptTokens: 16, outputTokens: 128, adapters: 'none' };
const many = (streams: number, adapters: AdapterUse): Load => ({
  streams,
  promptTokens: 64,
  outputTokens: 64,
  adapters,
});

/** One stream: against every peer, in process where the peer is. */
function singleRows(): Row[] {
  const goals = {
    prefill: { bf16: 1.0, int8: 1.7, '4-bit': 1.6 },
    decode1: { bf16: 1.2, int8: 1.7, '4-bit': 2.2 },
  } as const;
  return (['prefill', 'decode1'] as const).flatMap((group) =>
    WEIGHTS.flatMap((weights) => {
      const load = group === 'prefill' ? PREFILL : DECODE;
      const work = `${group === 'prefill' ? 'prefill 512' : 'decode batch 1'}, ${weights}`;
      const goal = { ratio: goals[group][weights] };
      const inProcess = ours('process', weights);
      const rows = [
        row(group, work, load, [inProcess, system('openvino', 'process', weights)], goal),
        row(group, work, load, [inProcess, system('llama.cpp', 'tool', weights)], goal),
      ];
      if (weights !== 'bf16') return rows;
      return [...rows, row(group, work, load, [ours('http', weights), system('vllm', 'http', weights)], goal)];
    }),
  );
}

function streamRows(streams: number): Row[] {
  const load = many(streams, 'none');
  const [own, work] = [ours('http', 'bf16'), `${streams} streams, base, bf16`];
  const rows = [
    row('streams', work, load, [own, system('vllm', 'http', 'bf16')], { ratio: 1.35, stretch: 1.5 }),
    row('streams', work, load, [own, system('openvino', 'process', 'bf16')], { ratio: 1.15 }),
    row('streams', work, load, [own, system('llama.cpp', 'http', 'bf16')]),
  ];
  for (const [weights, ratio] of [
    ['int8', 2.0],
    ['4-bit', 1.7],
  ] as const) {
    const quantized = `${streams} streams, base, ${weights}`;
    const lower = ours('http', weights);
    rows.push(row('streams', quantized, load, [lower, system('openvino', 'process', weights)], { ratio }));
    rows.push(row('streams', quantized, load, [lower, system('llama.cpp', 'http', weights)]));
  }
  return rows;
}

function loraRows(streams: number): Row[] {
  const load = many(streams, 'distinct');
  const work = `${streams} streams, ${streams} distinct LoRAs`;
  const vllm = system('vllm', 'http', 'bf16', 'distinct');
  const llama = system('llama.cpp', 'http', 'bf16', 'distinct');
  const own = ours('http', 'bf16');
  const base = many(streams, 'none');
  const share = row('lora', `${work} ÷ own base, bf16`, load, [own, own], { ratio: 0.7, stretch: 0.75 });
  return [
    row('lora', `${work}, bf16`, load, [own, vllm], { ratio: 4.3, stretch: 5 }),
    row('lora', `${work}, bf16`, load, [own, llama], { ratio: 8 }),
    row('lora', `${work}, int8 (theirs bf16)`, load, [ours('http', 'int8'), vllm], { ratio: 6, stretch: 7 }),
    { ...row('lora', `${work}, bf16: TTFT p99, ms`, load, [own, vllm], { ratio: 0.25 }), measure: 'ttft' },
    { ...row('lora', `${work}, bf16: TTFT p99, ms`, load, [own, llama]), measure: 'ttft' },
    { ...share, theirLoad: base },
    { ...row('lora', `${work} ÷ base, vLLM itself, bf16`, load, [vllm, vllm]), theirLoad: base },
  ];
}

function oneLoraRows(): Row[] {
  const one = (load: Load): Load => ({ ...load, adapters: 'one' });
  const inProcess = ours('process', 'bf16');
  const http = ours('http', 'bf16');
  const peers: readonly [SystemId, SystemId, prefill?: Goal | undefined, decode?: Goal][] = [
    [inProcess, system('openvino', 'process', 'bf16', 'one'), { ratio: 1.6 }],
    [http, system('llama.cpp', 'http', 'bf16', 'distinct'), undefined, { ratio: 1.5 }],
    [http, system('vllm', 'http', 'bf16', 'distinct')],
  ];
  return peers.flatMap(([own, theirs, prefill, decode]) => [
    row('onelora', 'prefill 512, one LoRA, bf16', one(PREFILL), [own, theirs], prefill),
    row('onelora', 'decode batch 1, one LoRA, bf16', one(DECODE), [own, theirs], decode),
  ]);
}

/** `start` has no row: it is the default model's own start. */
export const GROUPS = ['start', 'prefill', 'decode1', 'streams', 'lora', 'onelora'] as const;

export function allRows(streams: number): Row[] {
  return [...singleRows(), ...streamRows(streams), ...loraRows(streams), ...oneLoraRows()];
}

export interface Selection {
  readonly groups: readonly string[];
  readonly products: readonly string[];
  readonly weights: readonly string[];
}

/** Rows of the chosen groups and weights whose peer is chosen; a row against ourselves has no peer. */
export function chosenRows(rows: readonly Row[], { groups, products, weights }: Selection): Row[] {
  return rows.filter(
    ({ group, theirs, ours: own }) =>
      groups.includes(group) &&
      weights.includes(own.weights) &&
      (theirs.product === 'manyfold' || products.includes(theirs.product)),
  );
}

export interface SessionPlan {
  readonly system: SystemId;
  readonly loads: readonly Load[];
}

/** What each system must run, each load once, in an order that keeps ours beside those it is compared with. */
export function sessionsOf(rows: readonly Row[]): SessionPlan[] {
  const sessions = new Map<string, { system: SystemId; loads: Map<string, Load> }>();
  const add = (id: SystemId, load: Load): void => {
    const name = nameOf(id);
    const session = sessions.get(name) ?? { system: id, loads: new Map<string, Load>() };
    session.loads.set(loadKey(load), load);
    sessions.set(name, session);
  };
  for (const { ours: own, theirs, load, theirLoad } of rows) {
    add(own, load);
    add(theirs, theirLoad);
  }
  return [...sessions.values()].map(({ system: id, loads }) => ({ system: id, loads: [...loads.values()] }));
}

export function loadKey({ streams, promptTokens, outputTokens, adapters }: Load): string {
  return `${streams}x${promptTokens}+${outputTokens} ${adapters}`;
}
