/** The order of one layer's FFN channels and heads in a permuted checkpoint. Called by import-s2ft. */
import type { RowReader, WeightReader } from '../../../checkpoint/read-rows.js';
import { bug } from '../../../core/errors.js';
import type { ModelConfig, SiteName } from '../../../core/model-config.js';
import { expandBlocks, hashBlocks, hasTwins, matchChannels } from './permutation.js';

/** For every row or column of the checkpoint the one of the base; -1: the base has none like it. */
export interface LayerOrder {
  readonly ffn: Int32Array;
  /** Of q's rows and o's columns. */
  readonly q: Int32Array;
  /** Of k's and v's rows. */
  readonly kv: Int32Array;
}

type Source = Pick<WeightReader, 'tensor'>;

/** Both sources give values that can be compared (one type). */
export async function recoverOrder(
  model: ModelConfig,
  layer: number,
  base: Source,
  checkpoint: Source,
): Promise<LayerOrder> {
  const sides = [base, checkpoint].map((source) => new LayerHashes(model, layer, source));
  const [ours, theirs] = [sides[0] ?? bug('no base'), sides[1] ?? bug('no checkpoint')];
  const heads = await matchHeads(model, ours, theirs);
  const { headDim } = model;
  return { ffn: await matchFfn(ours, theirs), q: expandBlocks(heads.q, headDim), kv: expandBlocks(heads.kv, headDim) };
}

async function matchFfn(base: LayerHashes, checkpoint: LayerHashes): Promise<Int32Array> {
  const gates = [await base.rows('gate', 1), await checkpoint.rows('gate', 1)] as const;
  if (!hasTwins(gates[0])) return matchChannels([gates[0]], [gates[1]]);
  return matchChannels(
    [gates[0], await base.rows('up', 1), await base.columns('down', 1)],
    [gates[1], await checkpoint.rows('up', 1), await checkpoint.columns('down', 1)],
  );
}

/**
 * With grouped queries a group moves as a whole (k, v, and its heads of q and o), and within it the heads may move too.
 * Without, a group is one head.
 */
async function matchHeads(
  { numHeads, numKvHeads, headDim }: ModelConfig,
  base: LayerHashes,
  checkpoint: LayerHashes,
): Promise<{ q: Int32Array; kv: Int32Array }> {
  const size = numHeads / numKvHeads;
  const [ours, theirs] = [await base.heads(headDim, size), await checkpoint.heads(headDim, size)];
  const kv = matchChannels([ours.group, ours.v, ours.groupO], [theirs.group, theirs.v, theirs.groupO]);
  const q = new Int32Array(numHeads).fill(-1);
  kv.forEach((from, to) => {
    if (from < 0) return;
    const cut = (keys: readonly string[], group: number): string[] => keys.slice(group * size, (group + 1) * size);
    const inside = matchChannels([cut(ours.q, from), cut(ours.o, from)], [cut(theirs.q, to), cut(theirs.o, to)]);
    inside.forEach((head, i) => {
      q[to * size + i] = head < 0 ? -1 : from * size + head;
    });
  });
  return { q, kv };
}

interface HeadHashes {
  readonly q: readonly string[];
  readonly o: readonly string[];
  readonly v: readonly string[];
  /** For each group its k and its q heads in any order, and its o heads in any order. */
  readonly group: readonly string[];
  readonly groupO: readonly string[];
}

class LayerHashes {
  constructor(
    private readonly model: ModelConfig,
    private readonly layer: number,
    private readonly source: Source,
  ) {}

  /** The bias, where there is one, belongs to its row. */
  async rows(site: SiteName, block: number): Promise<string[]> {
    const hashes = await hashBlocks(this.#matrix(site), 'rows', block);
    const bias = this.source.tensor({ layer: this.layer, site }, 'bias');
    if (bias === undefined) return hashes;
    const more = await hashBlocks(bias, 'cols', block);
    return hashes.map((hash, i) => `${hash}.${more[i] ?? ''}`);
  }

  columns(site: SiteName, block: number): Promise<string[]> {
    return hashBlocks(this.#matrix(site), 'cols', block);
  }

  async heads(headDim: number, groupSize: number): Promise<HeadHashes> {
    const [q, k, v, o] = [
      await this.rows('q', headDim),
      await this.rows('k', headDim),
      await this.rows('v', headDim),
      await this.columns('o', headDim),
    ];
    const anyOrder = (keys: readonly string[], group: number): string =>
      keys
        .slice(group * groupSize, (group + 1) * groupSize)
        .sort()
        .join(',');
    const group = k.map((key, i) => `${key},${anyOrder(q, i)}`);
    return { q, o, v, group, groupO: k.map((_, i) => anyOrder(o, i)) };
  }

  #matrix(site: SiteName): RowReader {
    return this.source.tensor({ layer: this.layer, site }) ?? bug(`${this.model.family} has no ${site}`);
  }
}
