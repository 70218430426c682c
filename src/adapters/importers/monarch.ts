/**
 * Monarch (Dao et al. 2022, fly's MonarchLinear): a linear becomes two block-diagonal maps with a permutation after each,
 * y = P₂ L P₁ R x. It stands in the place of the weight, so the base product is switched off with DIAG g = 0; the maps are an
 * additive BLOCKDIAG chain in the file's type.
 *
 * Keys `<linear>.blkdiag1 [k, q, p]`, `.blkdiag2 [l, s, r]` with k q = l r, and `.bias [out]` where the base has a bias. The
 * input is filled up with zeros to k p values, and of the l s results the first count. peft_type "MONARCH"; field `nblocks` (k).
 */
import type { BlockStage, DenseTensor, Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { additiveTerms, indices } from '../block-chain.js';
import { integerField } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkFolded, checkShape, readFloats, wrongTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  disagreement,
  expectTensor,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';

const [FIRST, SECOND, BIAS] = ['blkdiag1', 'blkdiag2', 'bias'];

export const monarchImporter: AdapterImporter = {
  method: 'MONARCH',
  matches: (config) => isPeftType(config, 'MONARCH'),
  compile: compileMonarch,
};

interface Shape {
  /** Blocks, outputs and inputs of one, of each of the two maps. */
  readonly first: readonly [number, number, number];
  readonly second: readonly [number, number, number];
}

async function compileMonarch(folder: AdapterFolder, { model, base }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: [FIRST, SECOND, BIAS] });
  const notes = checkPeftConfig(folder.config, ['nblocks'], modules);
  const plans = modules.map((module) => ({ module, shape: checkedShape(module) }));
  const blocks = folder.config['nblocks'] === undefined ? undefined : integerField(folder.config, 'nblocks', 1);
  for (const { module, shape } of plans) {
    if (blocks !== undefined && shape.first[0] !== blocks) {
      throw disagreement('nblocks', blocks, module.path, `${shape.first[0]} blocks`);
    }
    const biased = module.parts.some(({ site }) => base.bias(site) !== undefined);
    if (biased && !module.tensors.has(BIAS)) expectTensor(module, BIAS, [module.out]);
  }
  const terms: Term[] = [];
  for (const { module, shape } of plans) {
    const stages = await stagesOf(folder, module, shape);
    const [count, height] = shape.second;
    const output = indices(module.out, (i) => (i % count) * height + Math.floor(i / count));
    const tensor = module.tensors.get(BIAS);
    const bias = tensor === undefined ? undefined : await readFloats(folder, tensor);
    terms.push(...additiveTerms(module, stages, output, 1));
    for (const { site, firstRow, rows } of module.parts) {
      const old = base.bias(site);
      const c = bias?.slice(firstRow, firstRow + rows).map((value, i) => value - (old?.[i] ?? 0));
      const g = new Float32Array(rows);
      terms.push({ kind: 'diag', site, g, ...(c && { c: checkFolded(`the bias of ${module.path}`, c) }) });
    }
  }
  return { terms: { terms }, notes };
}

function checkedShape(module: LinearTensors): Shape {
  const first = expectTensor(module, FIRST, [-1, -1, -1]).shape as Shape['first'];
  const second = expectTensor(module, SECOND, [-1, -1, -1]).shape as Shape['second'];
  const bias = module.tensors.get(BIAS);
  if (bias !== undefined) checkShape(bias, [module.out]);
  const [k, q, p] = first;
  const [l, s, r] = second;
  const fits = (whole: number, blocks: number, size: number): boolean =>
    blocks * size >= whole && blocks * size - whole < blocks;
  if (k * q === l * r && fits(module.in, k, p) && fits(module.out, l, s)) return { first, second };
  throw wrongTensor(
    `${JSON.stringify(module.path)} has ${FIRST} [${first.join(', ')}] and ${SECOND} [${second.join(', ')}], expected ` +
      `[k, q, p] and [l, s, r] with k q = l r, k p = ${module.in} and l s = ${module.out}, both rounded up to whole blocks`,
    'Serve it on the base that it was trained for.',
  );
}

async function stagesOf(folder: AdapterFolder, module: LinearTensors, shape: Shape): Promise<BlockStage[]> {
  const [k, , p] = shape.first;
  const [l, , r] = shape.second;
  const blocks = await readParameter(folder, module, FIRST);
  const exchange = indices(l * r, (i) => (i % r) * l + Math.floor(i / r));
  const second = { gather: exchange, blocks: await readParameter(folder, module, SECOND) };
  if (k * p === module.in) return [{ blocks }, second];
  // Inputs that are not there read some other one, times zero.
  const gather = indices(k * p, (i) => (i < module.in ? i : 0));
  return [{ gather, blocks: withoutInputs(blocks, shape.first, module.in) }, second];
}

/** The blocks with zeros for the inputs from `width` on. */
function withoutInputs(tensor: DenseTensor, [k, q, p]: Shape['first'], width: number): DenseTensor {
  const data = tensor.data.slice();
  for (let input = width; input < k * p; input += 1) {
    const block = Math.floor(input / p);
    for (let row = 0; row < q; row += 1) data[(block * q + row) * p + (input % p)] = 0;
  }
  return { ...tensor, data } as DenseTensor;
}
