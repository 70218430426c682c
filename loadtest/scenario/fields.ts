/**
 * The vocabulary of scenario files: types that say in words what they expect, so that every error can name the key, what
 * came, what was expected and an example that would do. The words hang on the schema as zod metadata.
 */
import { z } from 'zod';

declare module 'zod' {
  // zod's registry of metadata is extended in this way by its own documentation.
  interface GlobalMeta {
    /** Completes "expected …". */
    expects?: string;
    /** YAML that would be accepted, behind the key. */
    example?: string;
  }
}

/** A type with its words. */
export function field<T extends z.ZodType>(type: T, expects: string, example: string): T {
  return type.meta({ expects, example });
}

export const text = (expects: string, example: string) => field(z.string().trim().min(1), expects, example);
/** Above 0. */
export const positive = (what: string, example: string) =>
  field(z.number().positive().max(1e9), `a number above 0 (${what})`, example);
/** 0 or above. */
export const nonNegative = (what: string, example: string) =>
  field(z.number().min(0).max(1e9), `a number of 0 or more (${what})`, example);
export const count = (what: string, example: string, max = 2_000_000) =>
  field(z.int().min(1).max(max), `a whole number of 1 to ${max} (${what})`, example);
export const wholeNumber = (what: string, example: string) =>
  field(z.int().min(0).max(Number.MAX_SAFE_INTEGER), `a whole number of 0 or more (${what})`, example);
export const share = (what: string, example: string) =>
  field(z.number().min(0).max(1), `a number of 0 to 1 (${what})`, example);
export const yesOrNo = (what: string) => field(z.boolean(), `true or false (${what})`, 'true');
export const oneOf = <const T extends readonly [string, ...string[]]>(values: T, what: string) =>
  field(z.enum(values), `one of ${values.join(', ')} (${what})`, values[0]);
