/**
 * zod's issues → sentences: which key (and line), what came, what was expected, what to write. Walks the schema along the
 * issue's path, for the words that hang on it and the keys that are known there.
 */
import { z } from 'zod';
import { didYouMean } from '../../src/config/suggest.js';

type Path = readonly PropertyKey[];
type Schema = z.core.$ZodType;

/** Where a key stands in the file, such as `line 12`; undefined when that is not known. */
export type Locate = (path: Path) => string | undefined;

/** One sentence or two for each issue, the mend last. */
export function explainIssues(schema: z.ZodType, input: unknown, error: z.ZodError, locate: Locate): string[] {
  return error.issues.flatMap((issue) => explainIssue(schema, input, issue, locate));
}

function explainIssue(schema: Schema, input: unknown, issue: z.core.$ZodIssue, locate: Locate): string[] {
  if (issue.code === 'unrecognized_keys') {
    const known = Object.keys(shapeAt(schema, input, issue.path));
    return issue.keys.map((key) => {
      const hint = didYouMean(key, known) || ` Delete it, or use one of ${known.join(', ')}.`;
      return `${place([...issue.path, key], locate)}: unknown key.${hint}`;
    });
  }
  // A union of `100` and a mapping: when a mapping came, what is wrong inside of it is the news.
  if (issue.code === 'invalid_union' && issue.errors.length > 0 && isMapping(valueAt(input, issue.path))) {
    const inner = issue.errors.find((issues) => issues.every(({ path, code }) => path.length > 0 || isInside(code)));
    if (inner !== undefined) {
      return inner.flatMap((one) =>
        explainIssue(schema, input, { ...one, path: [...issue.path, ...one.path] }, locate),
      );
    }
  }
  return [explainValue(schema, input, issue, locate)];
}

function isInside(code: string | undefined): boolean {
  return code === 'unrecognized_keys';
}

function explainValue(schema: Schema, input: unknown, issue: z.core.$ZodIssue, locate: Locate): string {
  const value = valueAt(input, issue.path);
  const key = issue.path.at(-1);
  const came = value === undefined ? 'is missing' : `got ${show(value)}`;
  if (issue.code === 'invalid_union' && key === 'kind' && 'options' in issue && Array.isArray(issue.options)) {
    const kinds = issue.options.map(String);
    const hint = typeof value === 'string' ? didYouMean(value, kinds) : '';
    return `${place(issue.path, locate)}: ${came}, expected one of ${kinds.join(', ')}.${hint || ` Write for example kind: ${kinds[0] ?? ''}.`}`;
  }
  const words = wordsAt(schema, input, issue.path);
  const options = issue.code === 'invalid_value' ? issue.values.map(String) : [];
  const hint = typeof value === 'string' ? didYouMean(value, options) : '';
  const mend = hint || (words.example === undefined ? '' : ` Write for example ${String(key)}: ${words.example}.`);
  return `${place(issue.path, locate)}: ${came}, expected ${words.expects ?? issue.message}.${mend}`;
}

function place(path: Path, locate: Locate): string {
  const name = path.length === 0 ? 'the file' : path.map(String).join('.');
  const line = locate(path);
  return line === undefined ? name : `${line}: ${name}`;
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

function isMapping(value: unknown): value is Record<PropertyKey, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function valueAt(input: unknown, path: Path): unknown {
  let value = input;
  for (const key of path) {
    if (typeof value !== 'object' || value === null) return undefined;
    value = (value as Record<PropertyKey, unknown>)[key];
  }
  return value;
}

/** Through optional, default and the like to the type that does the checking. */
function unwrap(schema: Schema): Schema {
  let inner: Schema = schema;
  while (
    inner instanceof z.ZodOptional ||
    inner instanceof z.ZodDefault ||
    inner instanceof z.ZodPrefault ||
    inner instanceof z.ZodNullable
  ) {
    inner = inner.unwrap();
  }
  return inner;
}

/** The member of a union that the value is meant for. */
function resolve(schema: Schema, value: unknown): Schema {
  const inner = unwrap(schema);
  if (!(inner instanceof z.ZodUnion)) return inner;
  const kind = isMapping(value) ? value['kind'] : undefined;
  for (const option of inner.options.map(unwrap)) {
    if (option instanceof z.ZodUnion && isMapping(value)) return resolve(option, value);
    if (option instanceof z.ZodObject && unwrap(option.shape['kind'] as Schema) instanceof z.ZodLiteral) {
      const literal = unwrap(option.shape['kind'] as Schema) as z.ZodLiteral;
      if (literal.value === kind) return option;
    }
  }
  return inner;
}

function shapeAt(schema: Schema, input: unknown, path: Path): Readonly<Record<string, Schema>> {
  const found = walk(schema, input, path).at(-1);
  const resolved = found === undefined ? undefined : resolve(found, valueAt(input, path));
  return resolved instanceof z.ZodObject ? resolved.shape : {};
}

/** The schema of each step of the path, the root first; shorter than the path where the schema knows no more. */
function walk(schema: Schema, input: unknown, path: Path): Schema[] {
  const steps = [schema];
  for (const [index, key] of path.entries()) {
    const here = resolve(steps[index] as Schema, valueAt(input, path.slice(0, index)));
    const next =
      here instanceof z.ZodObject
        ? (here.shape as Record<string, Schema>)[String(key)]
        : here instanceof z.ZodArray
          ? here.element
          : here instanceof z.ZodRecord
            ? here.valueType
            : undefined;
    if (next === undefined) break;
    steps.push(next);
  }
  return steps;
}

/** The words of the innermost type along the path that has some. */
function wordsAt(schema: Schema, input: unknown, path: Path): { expects?: string; example?: string } {
  for (const step of walk(schema, input, path).reverse()) {
    const meta = z.globalRegistry.get(step) ?? z.globalRegistry.get(unwrap(step));
    if (typeof meta?.['expects'] === 'string') {
      return { expects: meta['expects'], ...(typeof meta['example'] === 'string' ? { example: meta['example'] } : {}) };
    }
  }
  return {};
}
