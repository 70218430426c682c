/**
 * Pickles of composable-SFT as inputs: written anew from a plan of which some parts are wrong, because flipped bytes of a pickle
 * seldom leave one. Called by files.ts.
 */
import { dict, int, list, pickle, tensor, text, tuple } from '../../src/checkpoint/testing/pickle-writer.js';
import type { Piece } from '../../src/checkpoint/testing/pickle-writer.js';
import { MODEL } from './adapter-input.js';
import type { FuzzInput } from './harness.js';
import { pick, pickFrom } from './mutate.js';
import type { Random } from './mutate.js';

const MODULES: readonly [string, ...string[]] = [
  'model.layers.0.self_attn.q_proj.weight',
  'model.layers.1.mlp.down_proj.weight',
  'model.layers.1.self_attn.k_proj.bias',
  'model.layers.0.input_layernorm.weight',
  'model.embed_tokens.weight',
  'model.norm.weight',
  'lm_head.weight',
  'model.layers.9.mlp.up_proj.weight',
  'classifier.out.weight',
  'model.norm.gamma',
  '__proto__.weight',
];
/** Of llama-gqa. */
const SIZES: ReadonlyMap<string, readonly number[]> = new Map([
  ['model.layers.0.self_attn.q_proj.weight', [64, 64]],
  ['model.layers.1.mlp.down_proj.weight', [64, 96]],
  ['model.layers.1.self_attn.k_proj.bias', [32]],
  ['model.layers.0.input_layernorm.weight', [64]],
  ['model.embed_tokens.weight', [320, 64]],
  ['model.norm.weight', [64]],
  ['lm_head.weight', [320, 64]],
]);
const KINDS: readonly [string, ...string[]] = ['FloatStorage', 'HalfStorage', 'LongStorage', 'BoolStorage', 'Storage'];
const ODD: readonly [number, ...number[]] = [-1, 0, 1, 2, 65, 4096, 2 ** 31 - 1, -(2 ** 31)];

export function composedPickle(random: Random): FuzzInput {
  const odd = (value: number): number => (random() < 0.06 ? pickFrom(random, ODD) : value);
  const storages = new Map<string, Uint8Array>();
  const values = (shape: readonly number[]): Piece => {
    const count = shape.reduce((product, size) => product * size, 1);
    const key = String(storages.size);
    const kind = random() < 0.9 ? 'FloatStorage' : pickFrom(random, KINDS);
    const data = Float32Array.from({ length: count }, () => (random() < 0.01 ? NaN : random() - 0.5));
    storages.set(`zip/data/${key}`, new Uint8Array(data.buffer));
    const strides = shape.map((_, i) => odd(shape.slice(i + 1).reduce((product, size) => product * size, 1)));
    return tensor({ kind, key, elements: odd(count) }, odd(0), shape.map(odd), strides);
  };
  const diff = (name: string): Piece => {
    const size = SIZES.get(name) ?? [8, 8];
    const steps = Array.from({ length: 1 + pick(random, 6) }, () => 1 + pick(random, 12));
    const fields = {
      size: tuple(...size.map((dim) => int(odd(dim)))),
      index_steps: list(...steps.map((step) => (random() < 0.02 ? text('1') : int(odd(step))))),
      values: random() < 0.03 ? int(1) : values([odd(steps.length)].map((count) => Math.min(Math.max(count, 0), 64))),
    };
    return dict(random() < 0.03 ? { ...fields, more: int(1) } : fields);
  };
  const some = (make: (name: string) => Piece): Piece => {
    const names = Array.from({ length: 1 + pick(random, 3) }, () => pickFrom(random, MODULES));
    return random() < 0.03 ? list() : dict(Object.fromEntries(names.map((name) => [name, make(name)])));
  };
  const root = {
    diffs: some(diff),
    abs: random() < 0.5 ? dict({}) : some((name) => (random() < 0.05 ? int(1) : values(SIZES.get(name) ?? [8]))),
    ...(random() < 0.03 ? { other: int(1) } : {}),
  };
  return new Map([[MODEL, Buffer.from('llama-gqa')], ['zip/data.pkl', pickle(dict(root))], ...storages]);
}
