/** Opens a GGUF file: header, config and tokenizer metadata. Called by open-checkpoint. */
import { ManyfoldError } from '../core/errors.js';
import type { Checkpoint, GgufValue } from './checkpoint.js';
import { fingerprintOf } from './fingerprint.js';
import { readGgufGeneration, unionEosIds } from './generation-defaults.js';
import { readGguf } from './gguf.js';
import type { GgufHeader } from './gguf.js';
import { ggufFamily, readGgufConfig } from './gguf-config.js';
import type { ModelDescription } from './model-description.js';
import { openRegularFile, readRange } from './regular-file.js';
import { dominantDtype, mapWeights } from './weight-map.js';
import type { TensorSource } from './weight-map.js';
import { GGUF_EMBEDDING, GGUF_HEAD, GGUF_ROPE_FACTORS, ggufBiases, ggufNaming } from './weight-names.js';

/** Rope factors are one for each pair of a head; no head is wider than this. */
const MAX_ROPE_FACTOR_BYTES = 1 << 16;

export async function openGguf(filePath: string): Promise<Checkpoint> {
  const header = await readGguf(filePath);
  const model = await describe(filePath, header);
  const tensors = new Map<string, TensorSource>();
  for (const tensor of header.tensors.values()) tensors.set(tensor.name, { ...tensor, file: 0 });
  const weights = mapWeights(tensors, model, ggufNaming(model.config));
  const { defaults, eosTokenIds } = readGgufGeneration(header.metadata);
  const template = header.metadata.get('tokenizer.chat_template');
  return {
    path: filePath,
    format: 'gguf',
    config: model.config,
    files: [filePath],
    weights,
    fileDtype: dominantDtype(weights),
    text: {
      kind: 'gguf',
      metadata: header.metadata,
      chatTemplate: typeof template === 'string' ? template : undefined,
    },
    eosTokenIds: unionEosIds([eosTokenIds], model.config.vocabSize),
    generation: defaults,
    fingerprint: await fingerprintOf(model.config, [filePath], weights),
  };
}

async function describe(filePath: string, { metadata, tensors }: GgufHeader): Promise<ModelDescription> {
  const names = new Set(tensors.keys());
  const found = ggufBiases(names);
  // Qwen2 always has these three, so weight-map must ask for them even when the file lacks all.
  const biases = ggufFamily(metadata) === 'qwen2' ? new Set([...found, 'q', 'k', 'v'] as const) : found;
  const vocabSize = tensors.get(GGUF_EMBEDDING)?.shape[0];
  if (vocabSize === undefined) refuse(`has no tensor "${GGUF_EMBEDDING}"`, GGUF_EMBEDDING);
  checkTokens(metadata, vocabSize);
  const ropeFactors = await readRopeFactors(filePath, tensors);
  return readGgufConfig(metadata, { vocabSize, hasHead: names.has(GGUF_HEAD), biases, ropeFactors });
}

/** Every token needs a row of the embedding; rows without a token are padding. */
function checkTokens(metadata: ReadonlyMap<string, GgufValue>, vocabSize: number): void {
  const tokens = metadata.get('tokenizer.ggml.tokens');
  const count = Array.isArray(tokens) ? tokens.length : 0;
  if (count < 1 || count > vocabSize) {
    refuse(`has ${count} tokens in tokenizer.ggml.tokens, expected 1 to ${vocabSize}`, 'tokenizer.ggml.tokens');
  }
}

async function readRopeFactors(filePath: string, tensors: GgufHeader['tensors']): Promise<Float32Array | undefined> {
  const tensor = tensors.get(GGUF_ROPE_FACTORS);
  if (tensor === undefined) return undefined;
  if (tensor.dtype !== 'f32' || tensor.byteLength > MAX_ROPE_FACTOR_BYTES) {
    refuse(
      `has a tensor "${GGUF_ROPE_FACTORS}" of type ${tensor.dtype}, expected F32 and one head's`,
      GGUF_ROPE_FACTORS,
    );
  }
  const { handle } = await openRegularFile(filePath);
  try {
    return new Float32Array((await readRange(handle, tensor.offset, tensor.byteLength)).buffer);
  } finally {
    await handle.close();
  }
}

function refuse(problem: string, param: string): never {
  throw new ManyfoldError('invalid_model', `The GGUF file ${problem}. Convert or download the model again.`, { param });
}
