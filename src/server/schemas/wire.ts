/**
 * From unknown JSON to typed fields: zod schemas, one error for the first thing that is wrong, a warning for fields that
 * nobody knows (they are ignored, as in vLLM) and a refusal for known ones that cannot be honoured.
 */
import { z } from 'zod';
import { ManyfoldError } from '../../core/errors.js';
import type { JsonObject } from '../body.js';
import type { AppContext, RouteDeps } from '../context.js';

/** An optional field; null means absent, because clients of typed languages send it so. */
export function optional<T extends z.ZodType>(type: T) {
  return type.nullish().transform((value) => value ?? undefined);
}

function formatPath(path: readonly PropertyKey[]): string {
  return path
    .map((key) => (typeof key === 'number' ? `[${key}]` : `.${String(key)}`))
    .join('')
    .replace(/^\./, '');
}

/** Fields that are refused, each with what to do instead. */
export type Refusals = Readonly<Record<string, string>>;

export interface WireSchema<T extends z.ZodType> {
  readonly schema: T;
  /** Every name that the schema reads. */
  readonly known: ReadonlySet<string>;
  readonly refusals: Refusals;
}

export function wireSchema<S extends z.ZodRawShape>(shape: S, refusals: Refusals = {}): WireSchema<z.ZodObject<S>> {
  return { schema: z.object(shape), known: new Set([...Object.keys(shape), ...Object.keys(refusals)]), refusals };
}

const SHOWN_FIELDS = 10;
const SHOWN_FIELD_CHARS = 64;

/** Parses a body. Throws 'invalid_request' with the first wrong field as its param. */
export function parseWire<T extends z.ZodType>(
  wire: WireSchema<T>,
  body: JsonObject,
  deps: RouteDeps,
  c: AppContext,
): z.output<T> {
  for (const [field, mend] of Object.entries(wire.refusals)) {
    if (Object.hasOwn(body, field) && asksForSomething(body[field])) {
      throw new ManyfoldError('invalid_request', `'${field}' cannot be honoured by this server. ${mend}`, {
        param: field,
      });
    }
  }
  const result = wire.schema.safeParse(body);
  if (!result.success) throw wireError(result.error, body);
  const unknown = Object.keys(body).filter((field) => !wire.known.has(field));
  if (unknown.length > 0) {
    const fields = unknown.slice(0, SHOWN_FIELDS).map((field) => field.slice(0, SHOWN_FIELD_CHARS));
    deps.telemetry.logger.warn({ requestId: c.get('record').id, fields }, 'unknown request fields are ignored');
  }
  return result.data;
}

/** null, false and empty collections ask for nothing, so there is nothing to refuse. */
function asksForSomething(value: unknown): boolean {
  if (value === null || value === undefined || value === false) return false;
  return !(Array.isArray(value) && value.length === 0);
}

function wireError(error: z.ZodError, body: JsonObject): ManyfoldError {
  const issue = error.issues[0];
  const path = issue?.path ?? [];
  const param = formatPath(path);
  const wanted = issue === undefined ? undefined : wantedType(issue);
  const problem =
    wanted === undefined
      ? `'${param}': ${issue?.message ?? 'wrong'}`
      : `'${param}' must be ${wanted}; ${shortly(valueAt(body, path))} came`;
  return new ManyfoldError('invalid_request', `${problem}. Correct it and send the request again.`, { param });
}

const TYPE_WORDS: Readonly<Record<string, string>> = {
  array: 'an array',
  boolean: 'true or false',
  int: 'a whole number',
  number: 'a number',
  object: 'an object',
  record: 'an object',
  string: 'a string',
};

/** Our own words for a wrong type; undefined where the schema brings its words. */
function wantedType(issue: z.core.$ZodIssue): string | undefined {
  if (issue.code === 'invalid_type') return TYPE_WORDS[issue.expected];
  const isNumber = (issue.code === 'too_big' || issue.code === 'too_small') && issue.origin !== 'string';
  return isNumber ? `a whole number within ±${Number.MAX_SAFE_INTEGER}` : undefined;
}

function valueAt(body: JsonObject, path: readonly PropertyKey[]): unknown {
  let value: unknown = body;
  for (const key of path) {
    if (typeof value !== 'object' || value === null) return undefined;
    value = (value as Readonly<Record<PropertyKey, unknown>>)[key];
  }
  return value;
}

/** Numbers and the like as they are; of text and structures only what they are, for they may be long or private. */
function shortly(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (typeof value === 'string') return 'a string';
  if (Array.isArray(value)) return 'an array';
  if (typeof value === 'number' || typeof value === 'boolean' || value === null) return String(value);
  return 'an object';
}
