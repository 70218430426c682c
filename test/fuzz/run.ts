/**
 * `npm run fuzz` lists the targets; `npm run fuzz NAME… -- --seconds 60 --seed 1` fuzzes some of them, `--replay FILE` runs one
 * input again. `--corpora` replays every corpus, and `--rotation` spends the seconds on some targets, others every day. Exit code 1
 * means a find: it is written below .cache/fuzz, and the last lines say how to run it again.
 */
import path from 'node:path';
import { parseArgs } from 'node:util';

import { systemClock } from '../../src/core/clock.js';
import { closeBases } from './adapter-rules.js';
import { corpora, CORPUS, readCorpus, readEntry, writeEntry } from './corpus.js';
import { encodeInput, fuzz, judge } from './harness.js';
import type { FuzzFind, FuzzInput, FuzzTarget } from './harness.js';
import { inRotation } from './rotation.js';
import { TARGETS } from './targets.js';

const FINDS = path.join('.cache', 'fuzz');
const PRINTED_CHARS = 20_000;
const SECONDS_PER_DAY = 86_400;

const OPTIONS = {
  seconds: { type: 'string', default: '60' },
  seed: { type: 'string' },
  replay: { type: 'string' },
  corpora: { type: 'boolean', default: false },
  rotation: { type: 'boolean', default: false },
  /** Bytes up to which inputs with new outcomes go into the corpus. */
  collect: { type: 'string' },
} as const;

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function named(name: string): FuzzTarget {
  const target = TARGETS.find((candidate) => candidate.name === name);
  if (target !== undefined) return target;
  throw new UsageError(`There is no target "${name}". Choose of: ${TARGETS.map((one) => one.name).join(', ')}`);
}

function numberOf(option: 'seconds' | 'seed' | 'collect', text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value >= 0) return value;
  throw new UsageError(`--${option} is "${text}", expected a number of at least 0.`);
}

/** What the command line got wrong. */
class UsageError extends Error {}

function report(target: FuzzTarget, { input, broken }: FuzzFind, seed: number): void {
  const file = writeEntry(path.join(FINDS, target.name), input);
  say(`\nFIND in ${target.name}, seed ${seed}: ${broken}`);
  const text = encodeInput(input);
  if (text.length <= PRINTED_CHARS) say(`--- ${file}\n${text}---`);
  say(`Replay: npm run fuzz ${target.name} -- --replay ${file}`);
  say(`When it is mended, keep it: mv ${file} ${path.join(CORPUS, target.name)}/`);
}

async function fuzzOne(target: FuzzTarget, seed: number, seconds: number, collect = 0): Promise<boolean> {
  const kept = readCorpus(target.name);
  const corpus = kept.map(({ input }) => input);
  const { executions, outcomes, find } = await fuzz(target, { clock: systemClock, seed, seconds, corpus });
  say(`${target.name}: ${executions} executions, ${outcomes.size} distinct outcomes, seed ${seed}`);
  if (collect > 0) await keep(target, [...outcomes.values()], collect);
  if (find !== undefined) report(target, find, seed);
  return find === undefined;
}

/** Inputs of outcomes that the corpus does not reach yet, up to `bytes` in all; first those that were taken. */
async function keep(target: FuzzTarget, inputs: readonly FuzzInput[], bytes: number): Promise<void> {
  const kept = readCorpus(target.name).map(({ input }) => input);
  const known = new Set<string>();
  for (const input of kept) known.add((await judge(target, input)).what);
  let left = bytes - kept.reduce((sum, input) => sum + encodeInput(input).length, 0);
  const taken: FuzzInput[] = [];
  const refused: FuzzInput[] = [];
  for (const input of inputs) {
    const { what, broken } = await judge(target, input);
    if (broken === undefined && !known.has(what))
      (/^(?:compiled|read|parsed)/.test(what) ? taken : refused).push(input);
  }
  for (const input of [...taken, ...refused]) {
    const size = encodeInput(input).length;
    if (size > left) continue;
    left -= size;
    writeEntry(path.join(CORPUS, target.name), input);
  }
}

async function replay(target: FuzzTarget, file: string): Promise<boolean> {
  const { what, broken } = await judge(target, readEntry(file).input);
  say(`${file}: ${broken ?? what}`);
  return broken === undefined;
}

async function replayCorpora(): Promise<boolean> {
  let count = 0;
  let good = true;
  for (const name of corpora()) {
    for (const { file, input } of readCorpus(name)) {
      const { broken } = await judge(named(name), input);
      count += 1;
      if (broken === undefined) continue;
      good = false;
      say(`FIND in ${name}, ${file}: ${broken}\nReplay: npm run fuzz ${name} -- --replay ${file}`);
    }
  }
  say(`${count} inputs of ${corpora().length} corpora replayed`);
  return good;
}

async function main(): Promise<boolean> {
  const { values, positionals } = parseArgs({ options: OPTIONS, allowPositionals: true });
  const seconds = numberOf('seconds', values.seconds);
  const now = systemClock.unixSeconds();
  const seed = numberOf('seed', values.seed ?? String(now));
  let good = true;
  if (values.corpora) good = await replayCorpora();
  if (values.replay !== undefined) return replay(named(positionals[0] ?? ''), values.replay);
  if (values.rotation) {
    const turns = inRotation(TARGETS, { seconds, day: Math.floor(now / SECONDS_PER_DAY) });
    for (const { target, seconds: share } of turns) good = (await fuzzOne(target, seed, share)) && good;
    return good;
  }
  for (const target of positionals.map(named)) {
    good = (await fuzzOne(target, seed, seconds, numberOf('collect', values.collect ?? '0'))) && good;
  }
  if (positionals.length === 0 && !values.corpora) {
    for (const { name } of TARGETS) say(`${name.padEnd(24)}${readCorpus(name).length} inputs in its corpus`);
  }
  return good;
}

try {
  process.exitCode = (await main()) ? 0 : 1;
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 2;
} finally {
  await closeBases();
}
