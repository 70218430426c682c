/**
 * What the prefix cache gives and what it costs: time to the first token of a prompt whose prefix was computed before,
 * against one that nobody has seen; the tokens that were reused; and the time of the keys when nothing is found.
 *
 *   node dist/bench/prefix-cache.js [--runs 5] [-- flags of manyfold serve]
 */
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { compose, type Composition } from '../src/cli/compose.js';
import { fetchModel } from '../src/cli/fetch-model.js';
import { processEnvironment, readTextFile } from '../src/config/environment.js';
import { loadConfig } from '../src/config/load-config.js';
import { systemClock } from '../src/core/clock.js';
import { sequenceId } from '../src/core/ids.js';
import { pageKey } from '../src/engine/page-identity.js';
import { createLogger } from '../src/telemetry/log.js';

const PREFIXES = [512, 2048] as const;
/** Tokens behind the prefix, different in every prompt. */
const OWN = 16;

const split = process.argv.indexOf('--', 2);
const { values } = parseArgs({
  options: { runs: { type: 'string', default: '5' } },
  args: process.argv.slice(2, split < 0 ? process.argv.length : split),
});
const state = { requests: 0 };

/** Tokens that no other call gives. */
function freshTokens(count: number, vocabSize: number): number[] {
  state.requests += 1;
  return Array.from({ length: count }, (_, i) => (300 + 7919 * i + 104_729 * state.requests) % vocabSize);
}

/** Milliseconds to the first token, and prompt tokens that were reused. */
async function firstToken(
  { engine }: Composition,
  promptIds: readonly number[],
): Promise<{ ms: number; cached: number }> {
  const id = sequenceId(`prefix-${state.requests}-${promptIds.length}-${systemClock.nowMs()}`);
  const sampling = { ...GREEDY, maxTokens: 1 };
  const startedMs = systemClock.nowMs();
  let ms = NaN;
  let cached = NaN;
  for await (const event of engine.submit({ id, promptIds, emittedIds: [], sampling })) {
    if (event.type === 'token') ms = systemClock.nowMs() - startedMs;
    if (event.type === 'done') cached = event.usage.cachedTokens;
    if (event.type === 'failed') throw new Error(event.error.message);
  }
  return { ms, cached };
}

const GREEDY = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: [],
  seed: 0,
  choice: 0,
  minTokens: 0,
  ignoreEos: true,
  stopTokenIds: [],
};

/** Milliseconds for the keys of all pages of so many tokens. */
function keysMs(tokens: number, { engine }: Composition): number {
  const { pageTokens, baseFingerprint, vocabSize } = engine.info;
  const ids = Int32Array.from(freshTokens(tokens, vocabSize));
  const startedMs = systemClock.nowMs();
  let parent: string | undefined;
  for (let at = 0; at + pageTokens <= tokens; at += pageTokens) {
    const owner = { kind: 'base', fingerprint: baseFingerprint } as const;
    parent = pageKey({ parent, owner, salt: undefined, tokens: ids.subarray(at, at + pageTokens) });
  }
  return systemClock.nowMs() - startedMs;
}

function spread(figures: readonly number[]): string {
  const sorted = [...figures].sort((a, b) => a - b);
  const shown = [sorted[Math.floor(sorted.length / 2)], sorted[0], sorted.at(-1)].map((ms) => (ms ?? NaN).toFixed(2));
  return `${shown[0]} [${shown[1]}..${shown[2]}]`;
}

async function measure(composition: Composition, tokens: number): Promise<string> {
  const { vocabSize } = composition.engine.info;
  const [cold, hit, keys]: number[][] = [[], [], []];
  let cached = 0;
  for (let run = -1; run < Number(values.runs); run++) {
    const prefix = freshTokens(tokens, vocabSize);
    const first = await firstToken(composition, [...prefix, ...freshTokens(OWN, vocabSize)]);
    const second = await firstToken(composition, [...prefix, ...freshTokens(OWN, vocabSize)]);
    const keyed = keysMs(tokens, composition);
    if (first.cached > 0 || second.cached === 0)
      throw new Error(`reused ${first.cached}, then ${second.cached} tokens`);
    if (run < 0) continue;
    cold?.push(first.ms);
    hit?.push(second.ms);
    keys?.push(keyed);
    cached = second.cached;
  }
  return `| ${tokens} | ${spread(cold ?? [])} | ${spread(hit ?? [])} | ${cached} of ${tokens + OWN} | ${spread(keys ?? [])} |`;
}

const own = split < 0 ? [] : process.argv.slice(split + 1);
const config = loadConfig(['--log-level', 'error', ...own], processEnvironment(), readTextFile);
const modelPath = await fetchModel(config.model, process.stderr);
const composition = await compose({ config, modelPath, clock: systemClock, logger: createLogger(config.logging) });
try {
  const { isa, dtype, threads } = composition.engine.info;
  const lines = [
    `${cpus()[0]?.model.trim() ?? 'unknown'}; ${isa}, ${dtype}, ${threads} threads; ${values.runs} runs, median [min..max]`,
    '',
    '| shared prefix, tokens | TTFT cold, ms | TTFT hit, ms | reused | keys of the prefix, ms |',
    '|---|---|---|---|---|',
  ];
  process.stdout.write(`${lines.join('\n')}\n`);
  for (const tokens of PREFIXES) process.stdout.write(`${await measure(composition, tokens)}\n`);
  const { prefixQueries, prefixHits } = composition.engine.stats();
  process.stdout.write(`\nMetrics: ${prefixHits} of ${prefixQueries} prompt tokens looked up were found.\n`);
} finally {
  await composition.close();
}
