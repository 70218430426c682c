/**
 * From the permuted dense checkpoint that the paper's code saves to an S²FT adapter folder: recover the order of the
 * channels from what is never trained, undo it, and keep exactly the rows of v and up and the columns of o and down
 * that differ from the base. Everything else must be equal, or the checkpoint is refused. Called by the command line.
 */
import type { RowReader } from '../../../checkpoint/read-rows.js';
import { bug, ManyfoldError } from '../../../core/errors.js';
import type { SiteName } from '../../../core/model-config.js';
import { refuseFullFolder } from '../adapter-writer.js';
import { modulePath, openModelPair } from '../model-pair.js';
import type { ModelPair, WeightPlace } from '../model-pair.js';
import { changedColumns, changedRows, residualOf } from './difference.js';
import type { ChannelDelta, ValueType } from './difference.js';
import { recoverOrder } from './layer-order.js';
import type { LayerOrder } from './layer-order.js';
import { isIdentity } from './permutation.js';
import { bytesOf, writeS2ftFolder } from './s2ft-folder.js';

export interface ImportOptions {
  readonly base: string;
  readonly checkpoint: string;
  readonly out: string;
  /** 'auto': bf16 where that loses nothing, else float32. */
  readonly dtype: ValueType;
  /** Told after each layer. */
  readonly progress?: (done: number, layers: number) => void;
}

export interface LayerReport {
  readonly layer: number;
  /** Heads that the channels of v and o lie in, v's by KV head. */
  readonly heads: { readonly v: number; readonly o: number };
  readonly channels: { readonly v: number; readonly o: number; readonly up: number; readonly down: number };
  readonly permuted: { readonly heads: boolean; readonly ffn: boolean };
}

export interface ImportReport {
  readonly layers: readonly LayerReport[];
  readonly bytes: number;
  /** Weights that base + value, rounded to the checkpoint's type, does not give back. */
  readonly inexact: number;
  readonly largestError: number;
  readonly notes: readonly string[];
}

/** Which tensors may differ, and where; all others may not. */
const TRAINED: Partial<Record<SiteName, { readonly side: 'in' | 'out'; readonly order: keyof LayerOrder }>> = {
  v: { side: 'out', order: 'kv' },
  o: { side: 'in', order: 'q' },
  up: { side: 'out', order: 'ffn' },
  down: { side: 'in', order: 'ffn' },
};
/** Whose rows move with the channels. */
const ROW_ORDER: Partial<Record<SiteName, keyof LayerOrder>> = { q: 'q', k: 'kv', v: 'kv', gate: 'ffn', up: 'ffn' };

/** Throws 'invalid_model' when anything else than S²FT's rows and columns differs, with the names of what does. */
export async function importS2ft(options: ImportOptions): Promise<ImportReport> {
  await refuseFullFolder(options.out);
  const pair = await openModelPair(options.base, options.checkpoint);
  try {
    const work = new Import(pair, options);
    await work.run();
    return await work.write();
  } finally {
    await pair.close();
  }
}

class Import {
  readonly #deltas = new Map<string, ChannelDelta>();
  readonly #layers: LayerReport[] = [];
  /** What differs and should not. */
  readonly #strangers: string[] = [];

  constructor(
    private readonly pair: ModelPair,
    private readonly options: ImportOptions,
  ) {}

  async run(): Promise<void> {
    const { model, base, tuned, places } = this.pair;
    for (const place of places.filter(({ ref }) => ref.layer < 0)) await this.#expectEqual(place, undefined);
    for (let layer = 0; layer < model.layers.length; layer += 1) {
      const order = await recoverOrder(model, layer, base, tuned);
      this.#noteLost(layer, order);
      const whole = { ffn: !order.ffn.includes(-1), heads: !order.kv.includes(-1) && !order.q.includes(-1) };
      for (const place of places.filter(({ ref }) => ref.layer === layer)) {
        const site = place.ref.site;
        const ofFfn = site === 'gate' || site === 'up' || site === 'down';
        const ofHeads = site === 'q' || site === 'k' || site === 'v' || site === 'o';
        if ((ofFfn && !whole.ffn) || (ofHeads && !whole.heads)) continue;
        await this.#compare(place, order);
      }
      this.#layers.push(this.#report(layer, order));
      this.options.progress?.(layer + 1, model.layers.length);
    }
  }

  async write(): Promise<ImportReport> {
    const { pair, options } = this;
    if (this.#strangers.length > 0) throw notS2ft(this.#strangers, options);
    if (this.#deltas.size === 0) {
      throw new ManyfoldError(
        'invalid_model',
        `${options.checkpoint} holds the same weights as the base, so the adapter would be the base under another name. ` +
          'Give the checkpoint that was saved after training.',
      );
    }
    await writeS2ftFolder(options.out, options.base, this.#deltas);
    const deltas = [...this.#deltas.values()];
    return {
      layers: this.#layers,
      bytes: bytesOf(this.#deltas),
      inexact: deltas.reduce((sum, { inexact }) => sum + inexact, 0),
      largestError: deltas.reduce((largest, { largestError }) => Math.max(largest, largestError), 0),
      notes: pair.notes,
    };
  }

  async #compare(place: WeightPlace, order: LayerOrder): Promise<void> {
    const { site } = place.ref;
    const trained = place.part === 'weight' ? TRAINED[site] : undefined;
    if (trained === undefined) {
      const rows = ROW_ORDER[site];
      await this.#expectEqual(place, rows && order[rows]);
      return;
    }
    const [base, checkpoint] = this.#readers(place);
    if (base === undefined || checkpoint === undefined) return;
    const changed = trained.side === 'out' ? changedRows : changedColumns;
    const delta = await changed({ base, checkpoint }, order[trained.order], this.options.dtype);
    if (delta !== undefined) this.#deltas.set(modulePath(place.ref, this.pair.model), delta);
  }

  async #expectEqual(place: WeightPlace, order: Int32Array | undefined): Promise<void> {
    const [base, checkpoint] = this.#readers(place);
    if (base === undefined || checkpoint === undefined) return;
    // A bias is one row whose values move with the rows of its weight.
    const moved = place.part === 'bias' && order !== undefined;
    const turned = (reader: RowReader): RowReader => (moved ? { ...reader, rows: reader.cols, cols: 1 } : reader);
    const { differing, largest } = await residualOf({ base: turned(base), checkpoint: turned(checkpoint) }, order);
    if (differing === 0) return;
    this.#strangers.push(`${this.#name(place)} (${differing} values, max|Δ| ${largest.toExponential(1)})`);
  }

  /** Undefined for a tensor that only one side has; that is a stranger, too. */
  #readers(place: WeightPlace): [RowReader | undefined, RowReader | undefined] {
    const readers = [this.pair.base, this.pair.tuned].map((side) => side.tensor(place.ref, place.part));
    const [base, checkpoint] = readers;
    if (base === undefined) this.#strangers.push(`${this.#name(place)} (the base has none)`);
    if (checkpoint === undefined) this.#strangers.push(`${this.#name(place)} (the checkpoint has none)`);
    return [base, checkpoint];
  }

  #noteLost(layer: number, { ffn, kv }: LayerOrder): void {
    const lost = (order: Int32Array, block: number): number => order.filter((from) => from < 0).length / block;
    const { headDim, numKvHeads, ffnSize } = this.pair.model;
    const [channels, groups] = [lost(ffn, 1), lost(kv, headDim)];
    const gate = modulePath({ layer, site: 'gate' }, this.pair.model);
    if (channels > 0) this.#strangers.push(`${gate} (${channels} of ${ffnSize} rows are no rows of the base)`);
    const [q, k] = (['q', 'k'] as const).map((site) => modulePath({ layer, site }, this.pair.model));
    if (groups > 0) this.#strangers.push(`${q} and ${k} (${groups} of ${numKvHeads} KV heads are none of the base)`);
  }

  #report(layer: number, order: LayerOrder): LayerReport {
    const { model } = this.pair;
    const index = (site: SiteName): Int32Array =>
      this.#deltas.get(modulePath({ layer, site }, model))?.index ?? new Int32Array(0);
    const heads = (site: SiteName): number => new Set([...index(site)].map((i) => Math.floor(i / model.headDim))).size;
    return {
      layer,
      heads: { v: heads('v'), o: heads('o') },
      channels: {
        v: index('v').length,
        o: index('o').length,
        up: index('up').length,
        down: index('down').length,
      },
      permuted: { heads: !isIdentity(order.q) || !isIdentity(order.kv), ffn: !isIdentity(order.ffn) },
    };
  }

  #name({ ref, part }: WeightPlace): string {
    return `${modulePath(ref, this.pair.model)}.${part}`;
  }
}

const SHOWN = 5;

function notS2ft(strangers: readonly string[], { base, checkpoint, out }: ImportOptions): ManyfoldError {
  const shown = strangers.slice(0, SHOWN).join(', ');
  const more = strangers.length > SHOWN ? ` and ${strangers.length - SHOWN} more` : '';
  return new ManyfoldError(
    'invalid_model',
    `${checkpoint} is no S2FT checkpoint of this base: it also differs in ${shown}${more}; S2FT trains rows of v_proj and ` +
      'up_proj and columns of o_proj and down_proj only. Check that the base is the one that was trained, or run ' +
      `manyfold adapters extract --base ${base} --finetuned ${checkpoint} --out ${out}.`,
  );
}

export function isExact({ inexact }: Pick<ImportReport, 'inexact'>): boolean {
  return inexact === 0;
}

/** The report as lines of a table. */
export function describeImport(report: ImportReport): string[] {
  const head = ['layer', 'v rows', 'o columns', 'up rows', 'down columns', 'order'];
  const cell = (channels: number, heads?: number): string =>
    heads === undefined || channels === 0
      ? String(channels)
      : `${channels} (${heads} ${heads === 1 ? 'head' : 'heads'})`;
  const rows = report.layers.map(({ layer, heads, channels, permuted }) => [
    String(layer),
    cell(channels.v, heads.v),
    cell(channels.o, heads.o),
    cell(channels.up),
    cell(channels.down),
    [permuted.heads ? 'heads permuted' : '', permuted.ffn ? 'FFN permuted' : '']
      .filter((text) => text !== '')
      .join(', ') || 'as the base',
  ]);
  const widths = head.map((title, i) =>
    Math.max(title.length, ...rows.map((row) => (row[i] ?? bug('a short row')).length)),
  );
  const lines = [head, ...rows].map((row) =>
    row
      .map((text, i) => text.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd(),
  );
  const exact = isExact(report)
    ? 'Exact: base + difference gives every weight of the checkpoint bit for bit.'
    : `Rounded: ${report.inexact} weights are off by up to ${report.largestError.toExponential(1)}.`;
  return [...lines, 'Residual elsewhere: max|Δ| = 0.', exact, ...report.notes];
}
