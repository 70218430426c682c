/**
 * Trace files: one JSON object a line. Two forms are read: the one that `manyfold bench --out` writes (TracedRequest), and
 * the field's `{"timestamp": ms, "input_length": n, "output_length": n}`, in which several public traces come.
 */
import { z } from 'zod';
import { didYouMean } from '../../src/config/suggest.js';
import { ManyfoldError } from '../../src/core/errors.js';
import type { TracedRequest } from '../report/report-trace.js';

const Count = z.int().min(1).max(10_000_000);
const Seed = z.int().min(0);
const OwnLine = z.strictObject({
  atMs: z.number().nullable(),
  adapter: z.string().min(1).nullish(),
  promptTokens: Count,
  outputTokens: Count,
  promptSeed: Seed.optional(),
  prefixTokens: Count.optional(),
  prefixSeed: Seed.optional(),
  prompt: z.string().min(1).optional(),
});
const FieldLine = z.looseObject({ timestamp: z.number(), input_length: Count, output_length: Count });
const OWN_KEYS = Object.keys(OwnLine.shape);

/** A line as it was given: what is left out is chosen by the scenario. `atMs` is made to begin at 0 by the planner. */
export interface TraceLine {
  readonly atMs: number;
  /** `undefined`: the scenario's popularity chooses. */
  readonly adapter: string | null | undefined;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly promptSeed: number | undefined;
  readonly prefixTokens: number | undefined;
  readonly prefixSeed: number | undefined;
  readonly prompt: string | undefined;
}

/** Lines in the order of their times. Throws 'invalid_config' with the number of the first line that cannot be read. */
export function parseTrace(text: string, path: string): readonly TraceLine[] {
  const lines: TraceLine[] = [];
  for (const [index, line] of text.split('\n').entries()) {
    if (line.trim() !== '') lines.push(parseLine(line, `${path}:${index + 1}`));
  }
  if (lines.length === 0) {
    throw new ManyfoldError('invalid_config', `${path} holds no request. Give a file with one JSON object a line.`);
  }
  return lines.sort((left, right) => left.atMs - right.atMs);
}

function parseLine(line: string, where: string): TraceLine {
  let json: unknown;
  try {
    json = JSON.parse(line);
  } catch {
    throw new ManyfoldError('invalid_config', `${where} is not JSON: ${excerpt(line)}. Write one JSON object a line.`);
  }
  const field = FieldLine.safeParse(json);
  if (field.success) {
    const { timestamp, input_length: promptTokens, output_length: outputTokens } = field.data;
    return { ...NOTHING_CHOSEN, atMs: timestamp, promptTokens, outputTokens };
  }
  const own = OwnLine.safeParse(json);
  if (!own.success) throw new ManyfoldError('invalid_config', `${where}: ${explain(own.error)}`);
  if (own.data.atMs === null) {
    throw new ManyfoldError(
      'invalid_config',
      `${where}: atMs is null, so this is the trace of a closed loop, whose times the answers decided. ` +
        'Play back a trace of an open loop, or run the closed loop again with its seed.',
    );
  }
  return { ...NOTHING_CHOSEN, ...own.data, atMs: own.data.atMs };
}

const NOTHING_CHOSEN = {
  adapter: undefined,
  promptSeed: undefined,
  prefixTokens: undefined,
  prefixSeed: undefined,
  prompt: undefined,
};

function excerpt(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);
}

function explain(error: z.ZodError): string {
  const [issue] = error.issues;
  if (issue?.code === 'unrecognized_keys') {
    const [key = ''] = issue.keys;
    return `unknown key '${key}'.${didYouMean(key, OWN_KEYS)} Known are ${OWN_KEYS.join(', ')}.`;
  }
  return (
    `${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'not understood'}. Write lines like ` +
    '{"atMs": 0, "adapter": "a", "promptTokens": 100, "outputTokens": 20} or with timestamp, input_length, output_length.'
  );
}

export function traceText(requests: readonly TracedRequest[]): string {
  return requests.map((request) => `${JSON.stringify(request)}\n`).join('');
}
