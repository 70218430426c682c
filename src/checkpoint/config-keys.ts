/**
 * Typed access to the keys of a JSON object from a model's folder. It remembers which keys were asked for, so that
 * those left over can be refused: an unknown key may change the maths, and then serving without it would be wrong.
 */
import { ManyfoldError } from '../core/errors.js';
import { MAX_COUNT } from './model-description.js';
import { isJsonObject, quoteName } from './strict-json.js';
import type { JsonObject, JsonValue } from './strict-json.js';

export class ConfigKeys {
  private readonly asked = new Set<string>();

  constructor(
    private readonly object: JsonObject,
    /** File and place, for messages: `config.json`, or `config.json rope_scaling`. */
    private readonly what: string,
  ) {}

  /** The value; undefined when the key is absent or null. */
  get(key: string): Exclude<JsonValue, null> | undefined {
    this.asked.add(key);
    return this.object[key] ?? undefined;
  }

  /** Whether the key is there, be it null. */
  has(key: string): boolean {
    this.asked.add(key);
    return key in this.object;
  }

  /** A whole number of 1 to `most`. */
  count(key: string, most = MAX_COUNT): number | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (typeof value === 'number' && Number.isInteger(value) && value >= 1 && value <= most) return value;
    return this.wrong(key, value, `a whole number of 1 to ${most}`);
  }

  /** A finite number that passes `least <= value`, or `least < value` when `open`. */
  number(key: string, least: number, open = false): number | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (typeof value === 'number' && (open ? value > least : value >= least)) return value;
    return this.wrong(key, value, `a number ${open ? 'above' : 'of at least'} ${least}`);
  }

  boolean(key: string): boolean | undefined {
    const value = this.get(key);
    return value === undefined || typeof value === 'boolean' ? value : this.wrong(key, value, 'true or false');
  }

  string(key: string): string | undefined {
    const value = this.get(key);
    return value === undefined || typeof value === 'string' ? value : this.wrong(key, value, 'a string');
  }

  section(key: string): JsonObject | undefined {
    const value = this.get(key);
    return value === undefined || isJsonObject(value) ? value : this.wrong(key, value, 'an object');
  }

  strings(key: string): readonly string[] | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.every((item) => typeof item === 'string')) return value;
    return this.wrong(key, value, 'a list of strings');
  }

  /** One id or a list of ids, each of 0 to 2^31 - 1; [] when absent. */
  ids(key: string): readonly number[] {
    const value = this.get(key);
    if (value === undefined) return [];
    const list: readonly JsonValue[] = Array.isArray(value) ? value : [value];
    return list.map((id) => {
      if (typeof id === 'number' && Number.isInteger(id) && id >= 0 && id <= MAX_COUNT) return id;
      return this.wrong(key, value, 'a token id or a list of them');
    });
  }

  /** Refuses any value but those that leave the maths as it is; absent and null pass. */
  only(key: string, allowed: readonly JsonValue[]): void {
    const value = this.get(key);
    if (value === undefined || allowed.some((item) => JSON.stringify(item) === JSON.stringify(value))) return;
    this.wrong(key, value, [...allowed.map((item) => JSON.stringify(item)), 'nothing'].join(' or '));
  }

  /** Refuses keys that were neither asked for nor are known to be harmless; null counts as absent. */
  refuseOthers(harmless: ReadonlySet<string>): void {
    for (const [key, value] of Object.entries(this.object)) {
      if (value === null || this.asked.has(key) || harmless.has(key)) continue;
      throw new ManyfoldError(
        'invalid_model',
        `${this.what}: key ${quoteName(key)} is not known for this family and may change what the model computes. ` +
          `It is ${show(value)}. Remove it if the model computes the same without it, or use a model of a supported kind.`,
        { param: key },
      );
    }
  }

  wrong(key: string, value: JsonValue, expected: string, mend = 'Use a model of a supported kind.'): never {
    const message = `${this.what}: ${key} is ${show(value)}, expected ${expected}. ${mend}`;
    throw new ManyfoldError('invalid_model', message, { param: key });
  }
}

function show(value: JsonValue): string {
  const text = JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}
