/** Files that a scenario may name: lengths (one number a line) and prompts (JSON lines). */
import { z } from 'zod';
import { ManyfoldError } from '../../src/core/errors.js';

function contentLines(text: string, path: string): { line: string; where: string }[] {
  const lines = text
    .split('\n')
    .map((line, index) => ({ line: line.trim(), where: `${path}:${index + 1}` }))
    .filter(({ line }) => line !== '');
  if (lines.length > 0) return lines;
  throw new ManyfoldError('invalid_config', `${path} is empty. Give a file with one entry a line.`);
}

/** Whole numbers of tokens, 1 or more. Throws 'invalid_config' with the line that is none. */
export function parseLengths(text: string, path: string): readonly number[] {
  return contentLines(text, path).map(({ line, where }) => {
    const value = Number(line);
    if (Number.isInteger(value) && value >= 1 && value <= 1_000_000) return value;
    throw new ManyfoldError(
      'invalid_config',
      `${where}: got ${JSON.stringify(line.slice(0, 60))}, expected a whole number of 1 to 1000000. Write one number a line.`,
    );
  });
}

const PromptLine = z.union([z.string().min(1), z.looseObject({ prompt: z.string().min(1) })]);

/** Texts. A line is a JSON string or an object with `prompt`. Throws 'invalid_config' with the line that is neither. */
export function parsePrompts(text: string, path: string): readonly string[] {
  return contentLines(text, path).map(({ line, where }) => {
    const parsed = PromptLine.safeParse(parseJson(line));
    if (parsed.success) return typeof parsed.data === 'string' ? parsed.data : parsed.data.prompt;
    throw new ManyfoldError(
      'invalid_config',
      `${where}: got ${line.slice(0, 60)}, expected a JSON string or {"prompt": "…"}. Put quotes around the text.`,
    );
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // The schema behind refuses it with the line's number.
  }
}
