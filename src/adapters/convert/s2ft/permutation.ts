/**
 * The order in which a permuted checkpoint holds the base's channels. The paper's training code permutes rows of gate and
 * up together with columns of down, and head blocks of q, k, v together with those of o, so that the network's function
 * stays the same. gate, q and k are never trained: their rows, hashed, tell which channel of the base stands where.
 */
import type { RowReader } from '../../../checkpoint/read-rows.js';

/** Values read at once. */
const CHUNK_VALUES = 4_000_000;

/** Two lanes of 32 bits for each block of rows (or of columns); equal blocks have equal keys. */
export async function hashBlocks(matrix: RowReader, axis: 'rows' | 'cols', block: number): Promise<string[]> {
  const blocks = (axis === 'rows' ? matrix.rows : matrix.cols) / block;
  const first = new Uint32Array(blocks).fill(0x243f6a88);
  const second = new Uint32Array(blocks).fill(0x85a308d3);
  for await (const { row0, values } of chunks(matrix)) {
    const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
    for (let i = 0; i < bits.length; i += 1) {
      const col = i % matrix.cols;
      const at = Math.floor((axis === 'rows' ? row0 + (i - col) / matrix.cols : col) / block);
      // Zero has two patterns that mean the same weight.
      const value = bits[i] === 0x80000000 ? 0 : (bits[i] as number);
      first[at] = Math.imul((first[at] as number) ^ value, 0x9e3779b1) + (value >>> 16);
      second[at] = Math.imul(rotate(second[at] as number) ^ value, 0x85ebca77) + 0x165667b1;
    }
  }
  return Array.from(first, (lane, i) => `${lane.toString(36)}.${(second[i] as number).toString(36)}`);
}

function rotate(value: number): number {
  return (value << 13) | (value >>> 19);
}

/** The matrix from its first row to its last, some rows at a time. */
export async function* chunks(
  matrix: RowReader,
): AsyncGenerator<{ row0: number; count: number; values: Float32Array }> {
  const step = Math.max(1, Math.floor(CHUNK_VALUES / matrix.cols));
  for (let row0 = 0; row0 < matrix.rows; row0 += step) {
    const count = Math.min(step, matrix.rows - row0);
    yield { row0, count, values: await matrix.read(row0, count) };
  }
}

/** What is known of each channel: `keys[0]` must agree between base and checkpoint, the others decide between equals. */
export type ChannelKeys = readonly (readonly string[])[];

/**
 * Which channel of the base stands at each place of the checkpoint; -1: none of the base's. Channels with the same
 * `keys[0]` may be told apart by none of the others when they were trained: any of them will do then, because the
 * difference to it is written whole. More agreeing keys go first, so that as few as possible differ.
 */
export function matchChannels(base: ChannelKeys, checkpoint: ChannelKeys): Int32Array {
  const count = checkpoint[0]?.length ?? 0;
  const found = new Int32Array(count).fill(-1);
  const taken = new Uint8Array(count);
  for (const level of levelsOf(base.length)) {
    const key = (keys: ChannelKeys, i: number): string => level.map((k) => keys[k]?.[i]).join(' ');
    const free = new Map<string, number[]>();
    for (let i = count - 1; i >= 0; i -= 1) {
      if (taken[i] === 1) continue;
      const name = key(base, i);
      const list = free.get(name);
      if (list === undefined) free.set(name, [i]);
      else list.push(i);
    }
    for (let i = 0; i < count; i += 1) {
      if (found[i] !== -1) continue;
      const match = free.get(key(checkpoint, i))?.pop();
      if (match === undefined) continue;
      found[i] = match;
      taken[match] = 1;
    }
  }
  return found;
}

/** [0, 1, 2], [0, 1], [0, 2], [0]. */
function levelsOf(kinds: number): number[][] {
  const others = Array.from({ length: kinds - 1 }, (_, i) => i + 1);
  const all = others.length > 1 ? [[0, ...others]] : [];
  return [...all, ...others.map((other) => [0, other]), [0]];
}

export function hasTwins(keys: readonly string[]): boolean {
  return new Set(keys).size < keys.length;
}

/** Head numbers → numbers of the single rows or columns. */
export function expandBlocks(order: Int32Array, block: number): Int32Array {
  return Int32Array.from({ length: order.length * block }, (_, i) => {
    const from = order[Math.floor(i / block)] as number;
    return from < 0 ? -1 : from * block + (i % block);
  });
}

export function isIdentity(order: Int32Array): boolean {
  return order.every((from, i) => from === i);
}
