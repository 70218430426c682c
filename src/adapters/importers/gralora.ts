/**
 * PEFT GraLoRA (Jung et al. 2025): the input in N runs, each with its own A `[in/N, r]`; the r results of a run are dealt
 * out to the N runs of the output, r/N to each; each run of the output has its own B `[r, out/N]`. An additive BLOCKDIAG
 * chain of two stages, in the file's type; with `hybrid_r` a plain LOWRANK term beside it. s = alpha / (r + hybrid_r).
 */
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { additiveTerms, indices, transposedBlocks } from '../block-chain.js';
import { integerField, numberField, refused } from '../config-fields.js';
import { Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { rowsOf } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  disagreement,
  expectTensor,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';

const GENERAL = ['gralora_A_general.weight', 'gralora_B_general.weight'] as const;
const KNOWN = ['alpha', 'gralora_dropout', 'gralora_k', 'hybrid_r', 'r'];

export const graloraImporter: AdapterImporter = {
  method: 'GRALORA',
  matches: (config) => isPeftType(config, 'GRALORA'),
  compile: compileGralora,
};

async function compileGralora(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: ['gralora_A', 'gralora_B', ...GENERAL] });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  const [rank, runs] = [integerField(folder.config, 'r', 1), integerField(folder.config, 'gralora_k', 1)];
  const hybrid = integerField(folder.config, 'hybrid_r', 0, 0);
  const scale = numberField(folder.config, 'alpha') / (rank + hybrid);
  if (rank % runs !== 0) {
    throw refused('r', `${rank}, expected a multiple of gralora_k ${runs}`, 'Write the values it was trained with.');
  }
  for (const module of modules) {
    checkShapes(module, rank, runs, hybrid);
    checkRankLimit(Math.max(rank, hybrid), module.path, limits);
  }
  const terms: Term[] = [];
  const turns = new Turns();
  // Place (j, n, t) of the second stage's input: value t of the share that run n of the input gives to run j.
  const share = rank / runs;
  const exchange = indices(runs * rank, (i) => {
    const [to, rest] = [Math.floor(i / rank), i % rank];
    return Math.floor(rest / share) * rank + to * share + (rest % share);
  });
  for (const module of modules) {
    const a = await readParameter(folder, module, 'gralora_A');
    const b = await readParameter(folder, module, 'gralora_B');
    const stages = [
      { blocks: transposedBlocks(a, runs, module.in / runs, rank) },
      { gather: exchange, blocks: transposedBlocks(b, runs, rank, module.out / runs) },
    ];
    terms.push(...additiveTerms(module, stages, undefined, scale));
    await turns.after(16 * rank * (module.in + module.out));
    if (hybrid > 0) terms.push(...(await hybridTerms(folder, module, scale)));
  }
  return { terms: { terms }, notes };
}

async function hybridTerms(folder: AdapterFolder, module: LinearTensors, scale: number): Promise<Term[]> {
  const a = await readParameter(folder, module, GENERAL[0]);
  const b = await readParameter(folder, module, GENERAL[1]);
  return module.parts.map(({ site, firstRow, rows }) => ({
    kind: 'lowrank',
    site,
    a,
    b: rowsOf(b, firstRow, rows),
    scale,
  }));
}

function checkShapes(module: LinearTensors, rank: number, runs: number, hybrid: number): void {
  const found = expectTensor(module, 'gralora_A', [-1, -1, -1]).shape;
  if (found[0] !== runs) throw disagreement('gralora_k', runs, module.path, `${String(found[0])} runs`);
  if (found[2] !== rank) throw disagreement('r', rank, module.path, `rank ${String(found[2])}`);
  expectTensor(module, 'gralora_A', [runs, module.in / runs, rank]);
  expectTensor(module, 'gralora_B', [runs, rank, module.out / runs]);
  if (hybrid > 0) {
    expectTensor(module, GENERAL[0], [hybrid, module.in]);
    expectTensor(module, GENERAL[1], [module.out, hybrid]);
  } else if (GENERAL.some((name) => module.tensors.has(name))) {
    throw disagreement('hybrid_r', 0, module.path, GENERAL.join(' and '));
  }
}
