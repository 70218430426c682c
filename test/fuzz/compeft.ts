/**
 * A fuzz target of packed ComPEFT payloads: what compiles keeps the limit on memory, has no bit in both planes, and its entries
 * survive being packed again.
 */
import { isDeepStrictEqual } from 'node:util';

import type { AdapterFolder } from '../../src/adapters/adapter-folder.js';
import { encodePayload, PAYLOAD_TENSOR, readPayload, readStream } from '../../src/adapters/compeft/payload.js';
import type { EntryToPack } from '../../src/adapters/compeft/payload.js';
import type { ImportContext } from '../../src/adapters/importer.js';
import { compeftImporter } from '../../src/adapters/importers/compeft.js';
import { termSetFacts } from '../../src/adapters/native-terms.js';
import { TINY_MODEL } from '../../src/adapters/testing/peft-folder.js';
import { decodeUtf8, parseJsonStrict } from '../../src/checkpoint/strict-json.js';
import type { JsonObject } from '../../src/checkpoint/strict-json.js';
import type { TermSet, TermTensor } from '../../src/core/terms.js';
import { CONFIG } from './adapter-input.js';
import { BrokenRule } from './harness.js';
import type { FuzzInput, FuzzTarget } from './harness.js';
import { mutate } from './mutate.js';

const PAYLOAD = 'payload';
const LIMITS = { maxRank: 16, maxBytes: 16 << 20 };
const CONTEXT: ImportContext = {
  model: TINY_MODEL,
  base: { weight: () => new Float32Array(0), bias: () => undefined },
  limits: LIMITS,
};

function seed(type: string, source: JsonObject, entries: readonly EntryToPack[]): FuzzInput {
  const config = { peft_type: 'COMPEFT', compeft_version: 1, source_type: type, source };
  return new Map([
    [CONFIG, Buffer.from(JSON.stringify(config))],
    [PAYLOAD, encodePayload(entries)],
  ]);
}

/** Every third position, every other one of them negative. */
function some(name: string, shape: readonly number[]): EntryToPack {
  const size = shape.reduce((product, dim) => product * dim, 1);
  const positions = Uint32Array.from({ length: Math.ceil(size / 3) }, (_, i) => 3 * i);
  return { name, shape, positions, negative: Uint8Array.from(positions, (_, i) => i % 2), scale: 0.5 };
}

const Q = 'model.layers.0.self_attn.q_proj';
const DOWN = 'model.layers.1.mlp.down_proj';
const SEEDS: readonly FuzzInput[] = [
  seed('LORA', { r: 2, lora_alpha: 4 }, [some(`${Q}.lora_A.weight`, [2, 8]), some(`${Q}.lora_B.weight`, [8, 2])]),
  seed('IA3', {}, [some(`${Q}.ia3_l`, [8, 1]), some(`${DOWN}.ia3_l`, [1, 12])]),
  seed('S2FT', {}, [
    { name: `${DOWN}.s2ft_columns.index`, shape: [9], positions: Uint32Array.of(0, 8) },
    some(`${DOWN}.s2ft_columns.values`, [8, 2]),
  ]),
  seed('SFT', {}, [some(`${DOWN}.sft_delta`, [96])]),
];

const payloadOf = (input: FuzzInput): Uint8Array => Uint8Array.from(input.get(PAYLOAD) ?? []);

export const compeftPayload: FuzzTarget = {
  name: 'compeft-payload',
  seeds: () => SEEDS,
  codes: ['invalid_adapter'],
  mutate: (seed_, other, random) => new Map([...seed_, [PAYLOAD, mutate(payloadOf(seed_), payloadOf(other), random)]]),
  run: async (input) => {
    const payload = payloadOf(input);
    const { terms } = await compeftImporter.compile(folderOf(input, payload), CONTEXT);
    checkRules(terms, payload);
    return 'compiled';
  },
};

function checkRules(terms: TermSet, input: Uint8Array): void {
  const { bytes } = termSetFacts(terms);
  if (bytes > LIMITS.maxBytes) throw new BrokenRule(`it compiled to ${bytes} bytes of terms`);
  for (const term of terms.terms) {
    const tensors: TermTensor[] = term.kind === 'lowrank' ? [term.a, term.b] : 'values' in term ? [term.values] : [];
    for (const tensor of tensors) {
      if (tensor.dtype !== 'ternary') throw new BrokenRule(`a ${term.kind} term is ${tensor.dtype}`);
      const { positive, negative } = tensor;
      if (positive.some((word, i) => (word & (negative[i] ?? 0)) !== 0)) {
        throw new BrokenRule('a bit is set in both planes');
      }
    }
  }
  const entries = entriesOf(input);
  const again = entriesOf(encodePayload(entries));
  if (!isDeepStrictEqual(again, entries)) throw new BrokenRule('the entries change when they are packed again');
}

function entriesOf(bytes: Uint8Array): EntryToPack[] {
  const payload = readPayload(bytes);
  return [...readStream(payload)].map((positions, i) => {
    const { name = '', shape = [], scale = 0, kind } = payload.entries[i] ?? {};
    return { name, shape, ...positions, ...(kind === 'index' ? {} : { scale }) };
  });
}

function folderOf(input: FuzzInput, bytes: Uint8Array): AdapterFolder {
  const { length } = bytes;
  const text = decodeUtf8(input.get(CONFIG) ?? new Uint8Array(0), CONFIG, 'invalid_adapter');
  const config = parseJsonStrict(text, { maxDepth: 16, what: CONFIG, code: 'invalid_adapter' }) as JsonObject;
  const tensor = { name: PAYLOAD_TENSOR, dtype: 'U8', shape: [length], offset: 0, byteLength: length } as const;
  return {
    directory: '',
    config,
    tensors: new Map([[PAYLOAD_TENSOR, tensor]]),
    read: () => Promise.resolve(bytes),
    readTexts: () => Promise.reject(new Error('no importer reads texts')),
    close: () => Promise.resolve(),
  };
}
