/** Positions with signs → the two bit planes of the IR (core/terms.ts), and back. Called by the importer. */
import type { TernaryTensor } from '../../core/terms.js';
import type { SignedPositions } from './rice.js';

/** Bits of one row are padded to whole 32-bit words. */
function wordsPerRow(cols: number): number {
  return Math.ceil(cols / 32);
}

/** Bytes of both planes. */
export function planeBytes(rows: number, cols: number): number {
  return 8 * rows * wordsPerRow(cols);
}

/** `[rows, cols]`; positions are row-major and below rows · cols. */
export function toPlanes(
  { positions, negative }: SignedPositions,
  [rows, cols]: readonly [number, number],
  scale: number,
): TernaryTensor {
  const words = wordsPerRow(cols);
  const planes = [new Uint32Array(rows * words), new Uint32Array(rows * words)] as const;
  for (let i = 0; i < positions.length; i += 1) {
    const position = positions[i] as number;
    const row = Math.floor(position / cols);
    const column = position - row * cols;
    const plane = negative?.[i] === 1 ? planes[1] : planes[0];
    const at = row * words + (column >>> 5);
    plane[at] = (plane[at] as number) | (1 << (column & 31));
  }
  return { dtype: 'ternary', shape: [rows, cols], positive: planes[0], negative: planes[1], scale };
}

/** Rows firstRow .. firstRow + rows - 1, without a copy. */
export function planeRows(tensor: TernaryTensor, firstRow: number, rows: number): TernaryTensor {
  const cols = tensor.shape[1] ?? 0;
  const words = wordsPerRow(cols);
  const [from, to] = [firstRow * words, (firstRow + rows) * words];
  return {
    ...tensor,
    shape: [rows, cols],
    positive: tensor.positive.subarray(from, to),
    negative: tensor.negative.subarray(from, to),
  };
}

export function fromPlanes({ shape, positive, negative }: TernaryTensor): Required<SignedPositions> {
  const [rows = 0, cols = 0] = shape;
  const words = wordsPerRow(cols);
  const positions: number[] = [];
  const signs: number[] = [];
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < cols; column += 1) {
      const at = row * words + (column >>> 5);
      const bit = 1 << (column & 31);
      const isNegative = ((negative[at] as number) & bit) !== 0;
      if (!isNegative && ((positive[at] as number) & bit) === 0) continue;
      positions.push(row * cols + column);
      signs.push(isNegative ? 1 : 0);
    }
  }
  return { positions: Uint32Array.from(positions), negative: Uint8Array.from(signs) };
}
