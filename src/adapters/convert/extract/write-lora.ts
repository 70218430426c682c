/**
 * A dense difference as a PEFT LoRA: the best factors of at most the given rank for every matrix, norms and biases as they
 * are. Called by extract.
 */
import path from 'node:path';

import { bug } from '../../../core/errors.js';
import { writeAdapterFolder } from '../adapter-writer.js';
import type { WrittenTensor } from '../adapter-writer.js';
import type { ModelPair } from '../model-pair.js';
import { chunks } from '../s2ft/permutation.js';
import { isMatrix } from './change.js';
import type { Change, ExtractOptions, HeldChange, Written } from './change.js';
import { lowRank } from './low-rank.js';
import type { LowRank, RowStream } from './low-rank.js';

/** A difference with at most so many values is kept in memory between the passes over it. */
const KEPT_VALUES = 100_000_000;

export async function writeLora(
  changes: readonly Change[],
  { model, tunedModel }: ModelPair,
  { base, out, rank, progress }: ExtractOptions,
): Promise<Written> {
  const tensors: WrittenTensor[] = [];
  const held: HeldChange[] = [];
  const ranks = new Map<string, number>();
  for (const [i, change] of changes.entries()) {
    const { name, module, ref } = change;
    progress?.(`decomposing ${name}`, i, changes.length);
    if (!isMatrix(change)) {
      const values = await change.tuned.read(0, 1);
      tensors.push({ name: `base_model.model.${name}`, dtype: 'F32', shape: [values.length], data: values });
      held.push({ name, as: 'a whole vector', relativeError: 0, largestError: 0 });
      continue;
    }
    const found = await lowRank(differenceStream(change), rank);
    if (ref.site === 'embedding') {
      tensors.push(...embeddingFactors(module, found, change, model.vocabSize));
      if (model.tiedHead && tunedModel.tiedHead) {
        // PEFT adapts the embedding alone; the head, which is the same weight, needs factors of its own.
        tensors.push(
          ...linearFactors('lm_head', padded(found, change, model.vocabSize), model.vocabSize, change.scan.cols),
        );
        ranks.set('lm_head', found.rank);
      }
    } else {
      const rows = change.base.rows;
      tensors.push(...linearFactors(module, padded(found, change, rows), rows, change.scan.cols));
    }
    ranks.set(module, found.rank);
    const { relativeError, largestError } = found;
    held.push({ name, as: `rank ${found.rank}`, relativeError, largestError });
  }
  await writeAdapterFolder(out, configOf(changes, ranks, rank, base), tensors);
  return { held, inexact: 0, bytes: tensors.reduce((sum, { data }) => sum + data.byteLength, 0) };
}

/** B [out, r] and A [r, in] with a scale of 1. */
function linearFactors(module: string, { rank, left, right }: LowRank, rows: number, cols: number): WrittenTensor[] {
  const key = `base_model.model.${module}`;
  return [
    { name: `${key}.lora_A.weight`, dtype: 'F32', shape: [rank, cols], data: right },
    { name: `${key}.lora_B.weight`, dtype: 'F32', shape: [rows, rank], data: left },
  ];
}

/** The embedding's A [r, vocab] is read by columns and its B is [hidden, r]: both the other way round. */
function embeddingFactors(module: string, found: LowRank, change: Change, vocab: number): WrittenTensor[] {
  const { rank, right } = found;
  const { left } = padded(found, change, vocab);
  const { cols } = change.scan;
  const key = `base_model.model.${module}.lora_embedding_`;
  return [
    { name: `${key}A`, dtype: 'F32', shape: [rank, vocab], data: transposed(left, vocab, rank) },
    { name: `${key}B`, dtype: 'F32', shape: [cols, rank], data: transposed(right, rank, cols) },
  ];
}

function transposed(values: Float32Array, rows: number, cols: number): Float32Array {
  return values.map((_, at) => values[(at % rows) * cols + Math.floor(at / rows)] as number);
}

/** Rows that the fine-tune lacks stay as the base. */
function padded(found: LowRank, { scan: { rows } }: Change, all: number): LowRank {
  if (rows === all) return found;
  const left = new Float32Array(all * found.rank);
  left.set(found.left);
  return { ...found, left };
}

function differenceStream(change: Change): RowStream {
  const { base, tuned, scan } = change;
  const { rows, cols } = scan;
  const read = async function* (): AsyncGenerator<{ row0: number; count: number; values: Float32Array }> {
    for await (const { row0, count, values } of chunks({ ...base, rows })) {
      const others = await tuned.read(row0, count);
      yield { row0, count, values: others.map((value, i) => value - (values[i] as number)) };
    }
  };
  if (rows * cols > KEPT_VALUES) return { rows, cols, stream: read };
  const kept: { row0: number; count: number; values: Float32Array }[] = [];
  let complete = false;
  const stream = async function* (): AsyncGenerator<{ row0: number; count: number; values: Float32Array }> {
    if (complete) {
      yield* kept;
      return;
    }
    for await (const part of read()) {
      kept.push(part);
      yield part;
    }
    complete = true;
  };
  return { rows, cols, stream };
}

function configOf(
  changes: readonly Change[],
  ranks: ReadonlyMap<string, number>,
  rank: number,
  base: string,
): Record<string, unknown> {
  const modules = [...ranks.keys()];
  const pattern = Object.fromEntries(
    modules
      .filter((module) => ranks.get(module) !== rank)
      .map((module) => [module.replaceAll('.', '\\.'), ranks.get(module) ?? bug(`no rank of ${module}`)]),
  );
  const norms = changes.filter(({ ref, part }) => part === 'weight' && ref.site.endsWith('Norm'));
  const biases = changes.some(({ part }) => part === 'bias');
  return {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: path.basename(path.resolve(base)),
    r: rank,
    lora_alpha: rank,
    rank_pattern: pattern,
    // The same numbers: every scale is 1.
    alpha_pattern: pattern,
    target_modules: modules,
    bias: biases ? 'all' : 'none',
    ...(norms.length === 0 ? {} : { modules_to_save: norms.map(({ module }) => module) }),
  };
}
