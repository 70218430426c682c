/**
 * The kinds of value that an option may have. Each is a zod schema that takes what flags and environment variables give
 * (text) and what YAML gives (numbers, booleans, lists), and the words that an error uses for it. Used by options.ts.
 */
import { z } from 'zod';
import { ADAPTER_NAME_RULE, parseAdapterName } from '../core/ids.js';
import type { AdapterName } from '../core/ids.js';
import { parseByteSize } from './byte-size.js';
import { Secret } from './secret.js';

export interface OptionType<T> {
  readonly schema: z.ZodType<T>;
  /** What a value must be, for "--port expects ...". */
  readonly expects: string;
  /** How help shows the value: `N`, `FILE`; empty for a switch. */
  readonly placeholder: string;
  /** A switch stands alone; a list may be given several times. */
  readonly shape: 'single' | 'switch' | 'list';
}

/** An adapter named on the command line: `support=/adapters/support`. */
export interface AdapterModule {
  readonly name: AdapterName;
  readonly path: string;
}

export interface Range {
  readonly min: number;
  readonly max: number;
}

/** Text to number; anything else stays as it is and is refused by the schema behind. */
function toNumber(value: unknown): unknown {
  return typeof value === 'string' && /^[+-]?\d+(\.\d+)?$/.test(value.trim()) ? Number(value) : value;
}

export function wholeNumber({ min, max }: Range): OptionType<number> {
  return {
    schema: z.preprocess(toNumber, z.number().int().min(min).max(max)),
    expects: `a whole number of ${min} to ${max}`,
    placeholder: 'N',
    shape: 'single',
  };
}

export function seconds({ min, max }: Range): OptionType<number> {
  return {
    schema: z.preprocess(toNumber, z.number().min(min).max(max)),
    expects: `a number of seconds from ${min} to ${max}`,
    placeholder: 'SECONDS',
    shape: 'single',
  };
}

export function bytes({ min, max }: Range): OptionType<number> {
  return {
    schema: z.preprocess(
      (value) => (typeof value === 'string' ? parseByteSize(value) : value),
      z.number().int().min(min).max(max),
    ),
    expects: `a size of ${min} to ${max} bytes, such as 2GiB, 512MiB or 4MB (a bare K, M or G is ambiguous)`,
    placeholder: 'SIZE',
    shape: 'single',
  };
}

/** One of a few words; `spellings` maps other ways to write them. */
export function choice<const C extends string>(
  choices: readonly C[],
  spellings: Readonly<Record<string, C>> = {},
): OptionType<C> {
  return {
    schema: z.preprocess(
      (value) => (typeof value === 'string' ? (spellings[value.toLowerCase()] ?? value.toLowerCase()) : value),
      z.enum(choices),
    ),
    expects: `one of ${choices.join(', ')}`,
    placeholder: choices.join('|'),
    shape: 'single',
  };
}

const SWITCH_WORDS: Readonly<Record<string, boolean>> = {
  true: true,
  yes: true,
  on: true,
  '1': true,
  false: false,
  no: false,
  off: false,
  '0': false,
};

export function onOff(): OptionType<boolean> {
  return {
    schema: z.preprocess(
      (value) => (typeof value === 'string' ? SWITCH_WORDS[value.toLowerCase()] : value),
      z.boolean(),
    ),
    expects: 'true or false',
    placeholder: '',
    shape: 'switch',
  };
}

export function text(placeholder: string, expects: string, pattern = /^[^\0\r\n]+$/): OptionType<string> {
  return { schema: z.string().regex(pattern), expects, placeholder, shape: 'single' };
}

/** A file or folder name; relative ones start at the working directory. */
export function path(placeholder: 'FILE' | 'DIR' | 'PATH_OR_ID', expects: string): OptionType<string> {
  return text(placeholder, expects);
}

/** An http(s) address without credentials (they have an option of their own); a closing slash is dropped. */
export function httpUrl(): OptionType<string> {
  const acceptable = (value: string): boolean => {
    const url = URL.canParse(value) ? new URL(value) : undefined;
    if (url === undefined || !['http:', 'https:'].includes(url.protocol)) return false;
    return url.username === '' && url.password === '' && url.search === '' && url.hash === '';
  };
  return {
    schema: z
      .string()
      .refine(acceptable)
      .transform((value) => value.replace(/\/+$/, '')),
    expects: 'an http:// or https:// address without user name, password, query or fragment',
    placeholder: 'URL',
    shape: 'single',
  };
}

/** A key or token: visible ASCII, because it travels in an HTTP header. */
export function secret(placeholder: string): OptionType<Secret> {
  return {
    schema: z
      .string()
      .regex(/^[\x21-\x7e]+$/)
      .transform((value) => new Secret(value)),
    expects: 'visible ASCII characters without spaces',
    placeholder,
    shape: 'single',
  };
}

/** `name=path`, vLLM's JSON form `{"name": …, "path": …}`, or a YAML mapping with those two keys. */
export function adapterModule(): OptionType<AdapterModule> {
  const parse = (value: unknown): unknown => {
    if (typeof value !== 'string') return value;
    if (value.startsWith('{')) return parseJson(value);
    const equals = value.indexOf('=');
    return equals < 0 ? value : { name: value.slice(0, equals), path: value.slice(equals + 1) };
  };
  const name = z.string().transform((value, context): AdapterName => {
    const parsed = parseAdapterName(value);
    if (parsed !== undefined) return parsed;
    context.addIssue({ code: 'custom', message: 'bad name' });
    return z.NEVER;
  });
  return {
    schema: z.preprocess(parse, z.strictObject({ name, path: z.string().min(1) })),
    expects: `NAME=PATH, where NAME is ${ADAPTER_NAME_RULE} and PATH is the adapter's folder`,
    placeholder: 'NAME=PATH',
    shape: 'single',
  };
}

function parseJson(value: string): unknown {
  try {
    return JSON.parse(value);
  } catch {
    return value; // Not JSON: the schema behind refuses the text itself.
  }
}

/** Several values of one type. One value alone counts as a list of one. */
export function listOf<T>(item: OptionType<T>): OptionType<readonly T[]> {
  return {
    schema: z.preprocess((value): unknown => (Array.isArray(value) ? value : [value]), z.array(item.schema)),
    expects: item.expects,
    placeholder: item.placeholder,
    shape: 'list',
  };
}
