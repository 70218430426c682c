/** llama.cpp's own measurement of one stream without HTTP. Called by session.ts. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import type { Load, Sample } from './load.js';
import type { Start } from './systems.js';

/** Prefill: as many prompt tokens; else as many generated ones from an empty context, which flatters it a little. */
export async function runLlamaBench({ file, args }: Start, load: Load): Promise<Sample> {
  const test = load.outputTokens === 1 ? [load.promptTokens, 0] : [0, load.outputTokens];
  const counts = ['-p', String(test[0]), '-n', String(test[1]), '-r', '1'];
  const { stdout } = await promisify(execFile)(file, [...args, ...counts]);
  return { tokensPerSecond: parseLlamaBench(stdout), ttftP99Ms: null };
}

/** Tokens a second of the one test in the output of `llama-bench -o jsonl`. */
export function parseLlamaBench(output: string): number {
  const lines = output.split('\n').filter((line) => line.startsWith('{'));
  const [rate] = lines.map((line) => (JSON.parse(line) as { avg_ts?: number }).avg_ts);
  if (lines.length !== 1 || rate === undefined) throw new Error(`expected one line with avg_ts, got:\n${output}`);
  return rate;
}
