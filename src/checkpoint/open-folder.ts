/** Opens a Hugging Face folder: config.json, safetensors (one file or shards), tokenizer. Called by open-checkpoint. */
import path from 'node:path';

import { ManyfoldError } from '../core/errors.js';
import type { Checkpoint } from './checkpoint.js';
import { fingerprintOf } from './fingerprint.js';
import { readGenerationConfig, unionEosIds } from './generation-defaults.js';
import { readHuggingFaceConfig } from './huggingface-config.js';
import { exists, readHuggingFaceText, readJsonObject } from './huggingface-text.js';
import { openSafetensors, WEIGHT_LIMITS } from './safetensors.js';
import type { JsonObject } from './strict-json.js';
import { isJsonObject, quoteName } from './strict-json.js';
import { dominantDtype, mapWeights } from './weight-map.js';
import type { TensorSource } from './weight-map.js';
import { huggingFaceHead, huggingFaceNaming } from './weight-names.js';

export const SINGLE_FILE = 'model.safetensors';
export const INDEX_FILE = 'model.safetensors.index.json';
const MAX_SHARDS = 1000;
/** A shard's name may not lead out of the folder. */
const SHARD_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors$/;

export async function openFolder(folder: string, configJson: JsonObject): Promise<Checkpoint> {
  const { files, tensors } = await readTensors(folder);
  const names = new Set(tensors.keys());
  const model = readHuggingFaceConfig(configJson, huggingFaceHead(names) !== undefined);
  const weights = mapWeights(tensors, model, huggingFaceNaming(model.config, names));
  const generationJson = await readJsonObject(folder, 'generation_config.json');
  const generation = generationJson === undefined ? undefined : readGenerationConfig(generationJson);
  return {
    path: folder,
    format: 'huggingface',
    config: model.config,
    files,
    weights,
    fileDtype: dominantDtype(weights),
    text: await readHuggingFaceText(folder),
    eosTokenIds: unionEosIds([model.eosTokenIds, generation?.eosTokenIds ?? []], model.config.vocabSize),
    generation: generation?.defaults ?? {},
    fingerprint: await fingerprintOf(model.config, files, weights),
  };
}

export interface FolderTensors {
  readonly files: readonly string[];
  readonly tensors: ReadonlyMap<string, TensorSource>;
}

export async function readTensors(folder: string): Promise<FolderTensors> {
  const single = path.join(folder, SINGLE_FILE);
  if (await exists(single)) return readShards(folder, [SINGLE_FILE], undefined);
  const index = await readJsonObject(folder, INDEX_FILE);
  if (index === undefined) {
    throw new ManyfoldError(
      'invalid_model',
      `${folder} has neither ${SINGLE_FILE} nor ${INDEX_FILE}. Pickle files (.bin, .pt) are never read; ` +
        'convert them with transformers: model.save_pretrained(folder, safe_serialization=True).',
    );
  }
  const shardOf = readIndex(index);
  return readShards(folder, [...new Set(shardOf.values())].sort(), shardOf);
}

/** Tensor name → shard name, of the index file. */
function readIndex(index: JsonObject): ReadonlyMap<string, string> {
  const weightMap = index['weight_map'];
  if (!isJsonObject(weightMap)) return refuse('expected an object weight_map', 'weight_map');
  const shardOf = new Map<string, string>();
  for (const [name, shard] of Object.entries(weightMap)) {
    if (typeof shard !== 'string' || !SHARD_NAME.test(shard)) {
      const shown = typeof shard === 'string' ? quoteName(shard) : typeof shard;
      refuse(`tensor ${quoteName(name)} is in ${shown}, expected the plain name of a .safetensors file`, name);
    }
    shardOf.set(name, shard);
  }
  const count = new Set(shardOf.values()).size;
  if (count > MAX_SHARDS) refuse(`${count} shards, at most ${MAX_SHARDS} are allowed`, 'weight_map');
  return shardOf;
}

/** With an index, each tensor must be in the shard that it names, and in no other. */
async function readShards(
  folder: string,
  shards: readonly string[],
  shardOf: ReadonlyMap<string, string> | undefined,
): Promise<FolderTensors> {
  const tensors = new Map<string, TensorSource>();
  for (const [file, shard] of shards.entries()) {
    const opened = await openSafetensors(path.join(folder, shard), WEIGHT_LIMITS);
    await opened.close();
    for (const { name, dtype, shape, offset, byteLength } of opened.tensors.values()) {
      const promised = shardOf === undefined ? shard : shardOf.get(name);
      if (promised !== shard) {
        refuse(`${shard} holds tensor ${quoteName(name)}, which the index puts into ${promised ?? 'no shard'}`, name);
      }
      tensors.set(name, { name, dtype, shape, file, offset, byteLength });
    }
  }
  const absent = [...(shardOf?.keys() ?? [])].find((name) => !tensors.has(name));
  if (absent !== undefined) refuse(`tensor ${quoteName(absent)} is not in ${shardOf?.get(absent)}`, absent);
  return { files: shards.map((shard) => path.join(folder, shard)), tensors };
}

function refuse(problem: string, param: string): never {
  throw new ManyfoldError('invalid_model', `${INDEX_FILE}: ${problem}. Download the model again.`, { param });
}
