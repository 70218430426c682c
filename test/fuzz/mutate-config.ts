/** Mutations of an adapter's config: fields that change, go, or come. Called by mutate-adapter.ts. */
import type { AdapterInput, Json } from './adapter-input.js';
import { pick, pickFrom } from './mutate.js';
import type { Random } from './mutate.js';

/** Changes `input`; `other` is another seed, of which parts may come in. */
export type Mutation = (input: AdapterInput, random: Random, other: AdapterInput) => void;

const NUMBERS: readonly [number, ...number[]] = [
  0,
  -0,
  1,
  -1,
  2,
  3,
  7,
  16,
  64,
  0.5,
  -2.5,
  1e-40,
  1e-308,
  65536,
  1e6,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  3.5e38,
  1e300,
  NaN,
  Infinity,
  -Infinity,
];
export const STRINGS: readonly [string, ...string[]] = [
  '',
  'none',
  'all',
  'true',
  '1',
  'q_proj',
  'lora_only',
  '(a+)+$',
  '.*',
  '[',
  '__proto__',
  'constructor',
  'SEQ_CLS',
  'LORA',
  'é\u0000\ud83d',
  'x'.repeat(5000),
];
/** Names that a table kept in a plain object would already have. */
export const OBJECT_KEYS: readonly [string, ...string[]] = [
  '__proto__',
  'constructor',
  'toString',
  'hasOwnProperty',
  '',
];

function anyJson(random: Random, depth = 0): Json {
  switch (pick(random, depth > 3 ? 4 : 8)) {
    case 0:
      return null;
    case 1:
      return random() < 0.5;
    case 2:
    case 4:
      return pickFrom(random, NUMBERS);
    case 3:
      return pickFrom(random, STRINGS);
    case 5:
      return Array.from({ length: pick(random, 4) }, () => anyJson(random, depth + 1));
    case 6:
      return nested(pick(random, 40));
    default:
      return ownKeys([[random() < 0.5 ? 'q_proj' : pickFrom(random, OBJECT_KEYS), anyJson(random, depth + 1)]]);
  }
}

function nested(depth: number): Json {
  let value: Json = 1;
  for (let i = 0; i < depth; i += 1) value = i % 2 === 0 ? [value] : { a: value };
  return value;
}

/** An object that owns its `__proto__` too. */
export function ownKeys(entries: readonly (readonly [string, Json])[]): Record<string, Json> {
  const result: Record<string, Json> = {};
  for (const [key, value] of entries) {
    Object.defineProperty(result, key, { value, enumerable: true, configurable: true, writable: true });
  }
  return result;
}

/** Another value in the place of one of the config's, at any depth. */
export const setField: Mutation = (input, random) => {
  if (Object.keys(input.config).length > 0) input.config = changed(input.config, random) as AdapterInput['config'];
};

function changed(value: Json, random: Random): Json {
  const keys = typeof value === 'object' && value !== null ? Object.keys(value) : [];
  const key = keys[pick(random, keys.length)];
  if (key === undefined) return random() < 0.5 ? near(value, random) : anyJson(random);
  const inside = (item: Json | undefined): Json =>
    typeof item === 'object' && item !== null && random() < 0.7
      ? changed(item, random)
      : random() < 0.4
        ? near(item ?? null, random)
        : anyJson(random);
  if (Array.isArray(value)) return value.map((item, i) => (String(i) === key ? inside(item) : item));
  return ownKeys(
    Object.entries(value as object).map(([k, item]: [string, Json]) => [k, k === key ? inside(item) : item]),
  );
}

/** A value of the same type. */
function near(value: Json, random: Random): Json {
  if (typeof value === 'boolean') return !value;
  if (typeof value === 'number') return value * pickFrom(random, [1, 2, -1, 0.5]) + pickFrom(random, [0, 1, -1]);
  return typeof value === 'string' ? pickFrom(random, STRINGS) : anyJson(random);
}

export const removeField: Mutation = (input, random) => {
  const entries = Object.entries(input.config);
  entries.splice(pick(random, entries.length), 1);
  input.config = ownKeys(entries);
};

export const addField: Mutation = (input, random, other) => {
  const names = [...OBJECT_KEYS, ...Object.keys(other.config), 'use_xyz', 'modules_to_save', 'bias', 'rank_pattern'];
  const name = names[pick(random, names.length)] ?? '';
  const taken = Object.hasOwn(other.config, name) && random() < 0.5 ? other.config[name] : undefined;
  input.config = ownKeys([...Object.entries(input.config), [name, taken ?? anyJson(random)]]);
};
