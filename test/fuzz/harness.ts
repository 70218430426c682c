/**
 * The loop of all fuzzers. A target makes inputs by mutation and runs them; an input is a few named files. A run is good when it
 * ends, within {@link MAX_MS} and little memory, in an outcome or in a refusal with a fit message. Called by run.ts and by tests.
 */
import type { Clock } from '../../src/core/clock.js';
import { ManyfoldError } from '../../src/core/errors.js';
import type { ErrorCode } from '../../src/core/errors.js';
import { pickFrom, seededRandom } from './mutate.js';
import type { Random } from './mutate.js';

/** Contents by name; a name may stand for something other than a file, e.g. the model. */
export type FuzzInput = ReadonlyMap<string, Uint8Array>;

export interface FuzzTarget {
  readonly name: string;
  readonly seeds: () => readonly FuzzInput[] | Promise<readonly FuzzInput[]>;
  /** The codes of a refusal. */
  readonly codes: readonly ErrorCode[];
  /** `other` is another seed, of which parts may come in. */
  readonly mutate: (seed: FuzzInput, other: FuzzInput, random: Random) => FuzzInput;
  /** What became of the input, in a word. Throws a refusal, or {@link BrokenRule}. */
  readonly run: (input: FuzzInput, random: Random) => Promise<string> | string;
}

/** A property that does not hold. */
export class BrokenRule extends Error {}

export interface FuzzFind {
  readonly input: FuzzInput;
  readonly broken: string;
}

export interface FuzzReport {
  readonly executions: number;
  /** The first input of each: outcomes in words, and messages of refusals without their numbers and names. */
  readonly outcomes: ReadonlyMap<string, FuzzInput>;
  /** What broke a rule first; undefined when nothing did. */
  readonly find: FuzzFind | undefined;
}

export interface FuzzOptions {
  readonly clock: Clock;
  readonly seed: number;
  readonly seconds: number;
  readonly maxExecutions?: number;
  /** Seeds beside the target's own: its corpus. */
  readonly corpus?: readonly FuzzInput[];
}

const MAX_MS = 250;
const MAX_GROWTH_BYTES = 512 << 20;
/** How often memory is looked at; looking costs more than a small input. */
const MEMORY_EVERY = 256;

/** Runs until the time or the number of executions is used up, or something breaks a rule. */
export async function fuzz(target: FuzzTarget, options: FuzzOptions): Promise<FuzzReport> {
  const { clock, seed, seconds, maxExecutions = Infinity, corpus = [] } = options;
  const random = seededRandom(seed);
  const seeds = [...(await target.seeds()), ...corpus] as unknown[] as [FuzzInput, ...FuzzInput[]];
  const outcomes = new Map<string, FuzzInput>();
  const end = clock.nowMs() + 1000 * seconds;
  const firstBytes = process.memoryUsage.rss();
  let executions = 0;
  while (executions < maxExecutions && clock.nowMs() < end) {
    const input = target.mutate(pickFrom(random, seeds), pickFrom(random, seeds), random);
    const { what, broken } = await judge(target, input);
    executions += 1;
    if (!outcomes.has(what)) outcomes.set(what, input);
    const growth = executions % MEMORY_EVERY === 0 ? process.memoryUsage.rss() - firstBytes : 0;
    const rule = broken ?? (growth > MAX_GROWTH_BYTES ? `memory grew by ${growth} bytes` : undefined);
    if (rule !== undefined) return { executions, outcomes, find: { input, broken: rule } };
  }
  return { executions, outcomes, find: undefined };
}

export interface Outcome {
  readonly what: string;
  readonly broken?: string | undefined;
}

/** One input. Where it took long it is run again: the collector of garbage, or a first call, may have been in the way. */
export async function judge(target: FuzzTarget, input: FuzzInput): Promise<Outcome> {
  const [outcome, ms] = await timed(target, input);
  if (ms <= MAX_MS || outcome.broken !== undefined) return outcome;
  const again = Math.min((await timed(target, input))[1], (await timed(target, input))[1]);
  const broken = again <= MAX_MS ? undefined : `took ${Math.round(again)} ms, at most ${MAX_MS} are allowed`;
  return { ...outcome, broken };
}

/** Milliseconds of this process's own work: others may have the cores meanwhile. */
async function timed(target: FuzzTarget, input: FuzzInput): Promise<[Outcome, number]> {
  const start = process.cpuUsage();
  const outcome = await execute(target, input);
  const { user, system } = process.cpuUsage(start);
  return [outcome, (user + system) / 1000];
}

/** What a run draws depends on nothing but its input, so that a find is found again. */
async function execute(target: FuzzTarget, input: FuzzInput): Promise<Outcome> {
  try {
    return { what: await target.run(input, seededRandom(1)) };
  } catch (error) {
    if (error instanceof BrokenRule) return { what: 'broken', broken: error.message };
    if (error instanceof ManyfoldError && target.codes.includes(error.code)) return refusal(error.message);
    const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { what: 'broken', broken: `threw ${stack}` };
  }
}

const MAX_MESSAGE_CHARS = 4000;
/** A problem and, after it, a mend: two sentences at least. */
const SENTENCES = /\S.{8,}\. \S.{8,}\.$/s;

function refusal(message: string): Outcome {
  const what = message
    .replaceAll(/"(?:[^"\\]|\\.)*"?/g, '""')
    .replaceAll(/[0-9]+/g, '0')
    .slice(0, 80);
  const broken = wrongMessage(message);
  return { what, broken: broken === undefined ? undefined : `${broken}: ${JSON.stringify(message.slice(0, 500))}` };
}

function wrongMessage(message: string): string | undefined {
  if (message.length > MAX_MESSAGE_CHARS) return `a message of ${message.length} characters`;
  if (!SENTENCES.test(message)) return 'a message without a mend';
  for (let i = 0; i < message.length; i += 1) {
    const code = message.charCodeAt(i);
    if (code < 32 && code !== 10) return `a message with the control character ${code}`;
  }
  return undefined;
}

/** An input as one text file: a JSON object of the files, those that are no text in base64. */
export function encodeInput(input: FuzzInput): string {
  const files = [...input].map(([name, bytes]) => {
    const text = Buffer.from(bytes).toString('utf8');
    const plain = Buffer.from(text).equals(bytes) && !text.includes('\0');
    return [name, plain ? text : { base64: Buffer.from(bytes).toString('base64') }];
  });
  return `${JSON.stringify(Object.fromEntries(files), undefined, 1)}\n`;
}

export function decodeInput(text: string): FuzzInput {
  const files = JSON.parse(text) as Record<string, string | { readonly base64: string }>;
  return new Map(
    Object.entries(files).map(([name, content]) => [
      name,
      typeof content === 'string' ? Buffer.from(content) : Buffer.from(content.base64, 'base64'),
    ]),
  );
}
