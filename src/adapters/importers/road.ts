/**
 * PEFT RoAd (Liao and Monz 2024): y = Q (W x + b), Q of 2×2 blocks. A run of `group_size` outputs is cut into halves, and
 * output j of the first half is paired with output j of the second: y1 = c1 z1 - s1 z2, y2 = s2 z1 + c2 z2, with
 * c = α cos θ, s = α sin θ. road_1 has one angle and scale for a pair, road_2 one for each row, road_4 one for each entry.
 * A BLOCKDIAG term after the base product, and DIAG c = Q b - b, because the engine adds the base's bias unturned.
 */
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { indices, inverse } from '../block-chain.js';
import { choiceField, integerField } from '../config-fields.js';
import { rounded, toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import type { ModulePart } from '../module-place.js';
import { checkFolded, wrongTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';

const VARIANTS = ['road_1', 'road_2', 'road_4'] as const;
type Variant = (typeof VARIANTS)[number];

export const roadImporter: AdapterImporter = {
  method: 'ROAD',
  matches: (config) => isPeftType(config, 'ROAD'),
  compile: compileRoad,
};

/** cos and sin parts, scaled: `[out]` each. */
export interface Columns {
  readonly cos: Float64Array;
  readonly sin: Float64Array;
}

async function compileRoad(folder: AdapterFolder, { model, limits, base }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: ['road_theta', 'road_alpha'] });
  const notes = checkPeftConfig(folder.config, ['group_size', 'variant'], modules);
  const variant = choiceField(folder.config, 'variant', VARIANTS, 'road_1');
  const group = integerField(folder.config, 'group_size', 2, 64);
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    const odd = module.parts.find(({ rows }) => group % 2 !== 0 || rows % group !== 0);
    if (odd !== undefined) {
      throw wrongTensor(
        `${JSON.stringify(module.path)} has ${odd.rows} outputs, expected a multiple of group_size ${group}, which is even`,
        'The adapter was trained for another base, or group_size is not what it was trained with.',
      );
    }
    const size = variant === 'road_1' ? module.out / 2 : variant === 'road_2' ? module.out : 2 * module.out;
    expectTensor(module, 'road_theta', [size]);
    expectTensor(module, 'road_alpha', [size]);
    budget.take(4 * module.out, module.path);
  }
  const terms: Term[] = [];
  const turns = new Turns();
  for (const module of modules) {
    const angles = toDoubles(await readParameter(folder, module, 'road_theta'));
    const scales = toDoubles(await readParameter(folder, module, 'road_alpha'));
    const columns = roadColumns(variant, group, module.out, angles, scales);
    for (const part of module.parts) {
      terms.push(...partTerms(module.path, part, group, columns, base.bias(part.site)));
    }
    await turns.after(100 * module.out);
  }
  return { terms: { terms }, notes };
}

/** The columns of RoAd's file, for all outputs. */
export function roadColumns(
  variant: Variant,
  group: number,
  out: number,
  angles: Float64Array,
  scales: Float64Array,
): Columns {
  const [cos, sin] = [new Float64Array(out), new Float64Array(out)];
  const half = group / 2;
  for (let i = 0; i < out; i += 1) {
    const [run, at] = [Math.floor(i / group), i % group];
    // Where the entry's own angle and scale stand: for the cos column, and for the sin column.
    const shared = variant === 'road_1' ? run * half + (at % half) : i;
    const first = variant === 'road_4' ? 2 * run * group + at : shared;
    const second = variant === 'road_4' ? (2 * run + 1) * group + at : shared;
    cos[i] = (scales[first] as number) * Math.cos(angles[first] as number);
    sin[i] = (scales[second] as number) * Math.sin(angles[second] as number);
  }
  return { cos, sin };
}

function partTerms(
  path: string,
  { site, firstRow, rows }: ModulePart,
  group: number,
  { cos, sin }: Columns,
  bias: Float32Array | undefined,
): Term[] {
  const half = group / 2;
  // Places 2p and 2p + 1 of the gathered vector are the two outputs of pair p.
  const gather = indices(rows, (i) => {
    const pair = Math.floor(i / 2);
    return Math.floor(pair / half) * group + (i % 2) * half + (pair % half);
  });
  const blocks = new Float64Array(2 * rows);
  for (let pair = 0; pair < rows / 2; pair += 1) {
    const [first, second] = [firstRow + (gather[2 * pair] as number), firstRow + (gather[2 * pair + 1] as number)];
    blocks.set([cos[first], -(sin[first] as number), sin[second], cos[second]] as number[], 4 * pair);
  }
  const turned = rounded(`the rotation of ${path}`, [rows / 2, 2, 2], blocks);
  const term: Term = {
    kind: 'blockdiag',
    site,
    placement: 'post',
    stages: [{ gather, blocks: turned }],
    output: inverse(gather),
    scale: 1,
  };
  if (bias === undefined) return [term];
  const shift = new Float32Array(rows);
  for (let pair = 0; pair < rows / 2; pair += 1) {
    const [i, j] = [gather[2 * pair] as number, gather[2 * pair + 1] as number];
    const [b1, b2] = [bias[i] as number, bias[j] as number];
    const at = (k: number): number => blocks[4 * pair + k] as number;
    shift[i] = at(0) * b1 + at(1) * b2 - b1;
    shift[j] = at(2) * b1 + at(3) * b2 - b2;
  }
  return [term, { kind: 'diag', site, c: checkFolded(`the turned bias of ${path}`, shift) }];
}
