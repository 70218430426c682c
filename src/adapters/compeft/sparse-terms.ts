/** Flat positions of a whole difference → SPARSE terms with ternary values, one a site. Called by sources.ts. */
import type { SparseTerm } from '../../core/terms.js';
import type { LinearTensors } from '../importers/linear-tensors.js';
import { toPlanes } from './planes.js';
import type { SignedPositions } from './rice.js';

/** Positions are row-major in the module's weight `[out, in]` and ascend, so that a site's entries are one run of them. */
export function sparseTerms(module: LinearTensors, entries: SignedPositions, scale: number): SparseTerm[] {
  const { positions, negative } = entries;
  const terms: SparseTerm[] = [];
  let from = 0;
  for (const { site, firstRow, rows } of module.parts) {
    const begin = firstRow * module.in;
    let to = from;
    while (to < positions.length && (positions[to] as number) < begin + rows * module.in) to += 1;
    const count = to - from;
    if (count === 0) continue;
    const rowStart = new Uint32Array(rows + 1);
    const columns = new Uint32Array(count);
    for (let i = 0; i < count; i += 1) {
      const flat = (positions[from + i] as number) - begin;
      const row = Math.floor(flat / module.in);
      columns[i] = flat - row * module.in;
      rowStart[row + 1] = (rowStart[row + 1] as number) + 1;
    }
    for (let row = 0; row < rows; row += 1)
      rowStart[row + 1] = (rowStart[row + 1] as number) + (rowStart[row] as number);
    const order = Uint32Array.from({ length: count }, (_, i) => i);
    const signs = negative?.subarray(from, to) ?? new Uint8Array(count);
    const values = toPlanes({ positions: order, negative: signs }, [1, count], scale);
    terms.push({ kind: 'sparse', site, rowStart, columns, values, scale: 1 });
    from = to;
  }
  return terms;
}
