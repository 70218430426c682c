/**
 * From a dense fine-tune and its base to the smallest adapter folder that is exact: S²FT where whole rows or columns of
 * linears differ, SFT where few values differ, else LoRA of the best rank with its error. Called by the command line.
 */
import { ManyfoldError } from '../../../core/errors.js';
import { isLayerLinear } from '../../module-place.js';
import { refuseFullFolder } from '../adapter-writer.js';
import { modulePath, openModelPair } from '../model-pair.js';
import type { ModelPair } from '../model-pair.js';
import { isMatrix } from './change.js';
import type { Change, ExtractOptions, HeldChange } from './change.js';
import { scan } from './scan.js';
import { writeLora } from './write-lora.js';
import { writeS2ft, writeSft } from './write-exact.js';

export type ExtractKind = 'S2FT' | 'SFT' | 'LORA';

export interface ExtractReport {
  readonly kind: ExtractKind;
  readonly changes: readonly Change[];
  readonly held: readonly HeldChange[];
  /** Weights that base + difference, rounded to the fine-tune's type, does not give back; of S2FT and SFT. */
  readonly inexact: number;
  readonly bytes: number;
  readonly notes: readonly string[];
}

export async function extractAdapter(options: ExtractOptions): Promise<ExtractReport> {
  await refuseFullFolder(options.out);
  const pair = await openModelPair(options.base, options.finetuned);
  try {
    const changes = await findChanges(pair, options);
    if (changes.length === 0) {
      throw new ManyfoldError(
        'invalid_model',
        `${options.finetuned} holds the same weights as the base, so the adapter would be the base under another name. ` +
          'Give the checkpoint that was saved after training.',
      );
    }
    const kind = kindFor(changes);
    const write = { S2FT: writeS2ft, SFT: writeSft, LORA: writeLora }[kind];
    return { kind, changes, ...(await write(changes, pair, options)), notes: pair.notes };
  } finally {
    await pair.close();
  }
}

async function findChanges(pair: ModelPair, { progress }: ExtractOptions): Promise<Change[]> {
  const changes: Change[] = [];
  for (const [i, { ref, part }] of pair.places.entries()) {
    const module = modulePath(ref, pair.model);
    const name = `${module}.${part}`;
    progress?.(`comparing ${name}`, i, pair.places.length);
    const [base, tuned] = [pair.base.tensor(ref, part), pair.tuned.tensor(ref, part)];
    if (base === undefined || tuned === undefined) {
      const side = base === undefined ? 'fine-tune' : 'base';
      throw new ManyfoldError(
        'invalid_model',
        `Only the ${side} has ${name}, expected the same tensors on both sides. Give the base that it was trained from.`,
      );
    }
    const found = await scan(base, tuned);
    if (found.differing > 0) changes.push({ ref, part, name, module, scan: found, base, tuned });
  }
  return changes;
}

const VALUE_BYTES = 4;
const INDEX_BYTES = 4;
/** An exact kind must be at most this share of the dense weights that differ, or it is no adapter. */
const MOST_DENSE = 0.5;

/** The cheapest exact kind, else LoRA. Norms and biases are small, and SFT has them whole. */
export function kindFor(changes: readonly Pick<Change, 'ref' | 'part' | 'scan'>[]): ExtractKind {
  let [dense, rowcol, sparse, small] = [0, 0, 0, 0];
  for (const { ref, part, scan: found } of changes) {
    const { rows, cols, differing, changedRows, changedCols } = found;
    if (!isMatrix({ ref, part })) {
      small += cols * VALUE_BYTES;
      rowcol = Infinity;
      continue;
    }
    dense += rows * cols * VALUE_BYTES;
    sparse += differing * (VALUE_BYTES + INDEX_BYTES);
    rowcol += isLayerLinear(ref.site)
      ? Math.min(changedRows * (cols * VALUE_BYTES + INDEX_BYTES), changedCols * (rows * VALUE_BYTES + INDEX_BYTES))
      : Infinity;
  }
  if (Math.min(rowcol, sparse) > MOST_DENSE * dense) return 'LORA';
  return rowcol <= sparse + small ? 'S2FT' : 'SFT';
}

/** The report as lines. */
export function describeExtract({ kind, changes, held, inexact, bytes, notes }: ExtractReport): string[] {
  const scans = new Map(changes.map(({ name, scan: found }) => [name, found]));
  const head = ['tensor', 'values', 'rows', 'columns', 'max|Δ|', 'kept as', 'error', 'max error'];
  const rows = held.map(({ name, as, relativeError, largestError }) => {
    const found = scans.get(name);
    if (found === undefined) return [name, '', '', '', '', as, '', ''];
    const share = (part: number, all: number): string => `${part}/${all}`;
    return [
      name,
      `${((100 * found.differing) / (found.rows * found.cols)).toPrecision(3)} %`,
      share(found.changedRows, found.rows),
      share(found.changedCols, found.cols),
      found.largest.toExponential(1),
      as,
      relativeError === 0 ? '0' : relativeError.toExponential(1),
      largestError === 0 ? '0' : largestError.toExponential(1),
    ];
  });
  const widths = head.map((title, i) =>
    rows.reduce((most, row) => Math.max(most, (row[i] ?? '').length), title.length),
  );
  const lines = [head, ...rows].map((row) =>
    row
      .map((text, i) => text.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd(),
  );
  return [...lines, `${kind}, ${bytes} bytes of tensors. ${exactness(kind, held, inexact)}`, ...notes];
}

function exactness(kind: ExtractKind, held: readonly HeldChange[], inexact: number): string {
  if (kind !== 'LORA') {
    return inexact === 0
      ? 'Exact: base + difference gives every weight of the fine-tune bit for bit.'
      : `All but exact: ${inexact} weights are off by a rounding of float32.`;
  }
  const worst = held.reduce((most, { relativeError }) => Math.max(most, relativeError), 0);
  if (worst < 1e-5)
    return `Exact up to rounding: the largest error of a tensor is ${worst.toExponential(1)} of its difference.`;
  return (
    `An approximation: the largest error of a tensor is ${worst.toExponential(1)} of its difference. Raise --rank, or serve ` +
    'the fine-tune itself with --model.'
  );
}
