/**
 * PEFT GLoRA (Chavan et al. 2023): W' = W + W ⊙ A + B, b' = b + b ⊙ D + E + W C. A as a column or one number is DIAG
 * g = 1 + A; B as a column or one number is LOWRANK of rank 1 over a row of ones, as a pair a plain LOWRANK; the change of
 * the bias is DIAG c. A as a pair, W ⊙ (Xd Xu), is dense and refused unless it is zero.
 */
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { choiceField, integerField, refused } from '../config-fields.js';
import { baseBias, baseTimes, product, rounded, toDoubles } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkFolded, readTensor, rowsOf, wrongTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  disagreement,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';

const LETTERS = ['A', 'B', 'C', 'D', 'E'] as const;
type Letter = (typeof LETTERS)[number];
type Form = 'lora' | 'vector' | 'constant' | 'none';

const PARAMETERS = LETTERS.flatMap((letter) => ['X', 'Xd', 'Xu', 'zeros'].map((name) => `glora_${letter}.${name}`));
const KNOWN = ['config_A_B', 'config_C', 'config_D_E', 'r'];

export const gloraImporter: AdapterImporter = {
  method: 'GLORA',
  matches: (config) => isPeftType(config, 'GLORA'),
  compile: compileGlora,
};

type Forms = Readonly<Record<Letter, Form>>;

async function compileGlora(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  const { model, limits } = context;
  const modules = groupLinears(folder, model, { parameters: PARAMETERS });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  const wanted = formsOf(folder.config);
  const rank = integerField(folder.config, 'r', 1, 8);
  const budget = new FoldBudget(limits);
  const plans = modules.map((module) => {
    const forms = checkShapes(module, wanted, rank, hasBias(module, context));
    checkRankLimit(rank, module.path, limits);
    budget.take(Math.max(1, rank) * (module.in + module.out), module.path);
    return forms;
  });
  const terms: Term[] = [];
  for (const [i, module] of modules.entries())
    terms.push(...(await termsOf(folder, context, module, plans[i] as Forms)));
  return { terms: { terms }, notes };
}

function formsOf(config: JsonObject): Forms {
  const ab = choiceField(config, 'config_A_B', ['lora', 'vector', 'constant', 'none'] as const, 'lora');
  const c = choiceField(config, 'config_C', ['lora', 'vector', 'none'] as const, 'lora');
  const de = choiceField(config, 'config_D_E', ['vector', 'constant', 'none'] as const, 'constant');
  return { A: ab, B: ab, C: c, D: de, E: de };
}

function hasBias(module: LinearTensors, { base }: ImportContext): boolean {
  return module.parts.some(({ site }) => base.bias(site) !== undefined);
}

/** Checks every tensor of the module; without a bias in the base PEFT leaves C, D and E out. */
function checkShapes(module: LinearTensors, wanted: Forms, rank: number, bias: boolean): Forms {
  const forms: Forms = bias ? wanted : { ...wanted, C: 'none', D: 'none', E: 'none' };
  const { out, in: width } = module;
  const expected = new Set<string>();
  const expect = (name: string, shape: readonly number[]): void => {
    expectTensor(module, name, shape);
    expected.add(name);
  };
  for (const letter of LETTERS) {
    const column = letter === 'C' ? width : out;
    const row = letter === 'C' ? 1 : width;
    const name = `glora_${letter}`;
    switch (forms[letter]) {
      case 'lora':
        expect(`${name}.Xd`, [column, rank]);
        expect(`${name}.Xu`, [rank, row]);
        break;
      case 'vector':
        expect(`${name}.X`, letter === 'D' || letter === 'E' ? [column] : [column, 1]);
        break;
      case 'constant':
        expect(`${name}.X`, [1]);
        break;
      case 'none':
        // PEFT saves its placeholder of zeros.
        if (module.tensors.has(`${name}.zeros`)) expected.add(`${name}.zeros`);
    }
  }
  const stray = [...module.tensors.keys()].find((name) => !expected.has(name));
  if (stray !== undefined) {
    throw disagreement('config_A_B, config_C or config_D_E', 'another form', module.path, `${stray}${biasWords(bias)}`);
  }
  return forms;
}

function biasWords(bias: boolean): string {
  return bias ? '' : ' (and the base has no bias there, so that C, D and E have no place)';
}

async function termsOf(
  folder: AdapterFolder,
  context: ImportContext,
  module: LinearTensors,
  forms: Forms,
): Promise<Term[]> {
  for (const letter of LETTERS) await refusePlaceholder(folder, module, letter);
  const gain = await gainOf(folder, module, forms.A);
  const shift = await shiftOf(folder, context, module, forms);
  const pair = await pairOf(folder, module, forms.B);
  return module.parts.flatMap(({ site, firstRow, rows }) => {
    const own = (vector: Float32Array): Float32Array => vector.slice(firstRow, firstRow + rows);
    const terms: Term[] = [];
    if (gain !== undefined || shift !== undefined) {
      terms.push({
        kind: 'diag',
        site,
        ...(gain === undefined ? {} : { g: own(gain) }),
        ...(shift === undefined ? {} : { c: own(shift) }),
      });
    }
    if (pair !== undefined) {
      terms.push({ kind: 'lowrank', site, a: pair.a, b: rowsOf(pair.b, firstRow, rows), scale: 1 });
    }
    return terms;
  });
}

async function refusePlaceholder(folder: AdapterFolder, module: LinearTensors, letter: Letter): Promise<void> {
  const tensor = module.tensors.get(`glora_${letter}.zeros`);
  if (tensor === undefined) return;
  const { data } = await readTensor(folder, tensor);
  if (data.every((bits) => bits === 0)) return;
  throw wrongTensor(
    `${JSON.stringify(tensor.name)} holds values, expected zeros`,
    'The file is damaged; save it again.',
  );
}

/** A column or one number as `[out]` values. */
async function columnOf(
  folder: AdapterFolder,
  module: LinearTensors,
  letter: Letter,
  size: number,
): Promise<Float64Array> {
  const values = toDoubles(await readParameter(folder, module, `glora_${letter}.X`));
  return values.length === size ? values : new Float64Array(size).fill(values[0] as number);
}

/** g = 1 + A. */
async function gainOf(folder: AdapterFolder, module: LinearTensors, form: Form): Promise<Float32Array | undefined> {
  if (form === 'none') return undefined;
  if (form === 'lora') {
    const down = await readParameter(folder, module, 'glora_A.Xd');
    const up = await readParameter(folder, module, 'glora_A.Xu');
    if (toDoubles(down).every((value) => value === 0) || toDoubles(up).every((value) => value === 0)) return undefined;
    throw refused(
      'config_A_B',
      `"lora" with a trained A for ${JSON.stringify(module.path)}: W ⊙ (Xd Xu) is as large as the weight`,
      'Merge it into its base with merge_and_unload() and serve the result with --model, or train it with ' +
        'config_A_B="vector".',
    );
  }
  const values = await columnOf(folder, module, 'A', module.out);
  return checkFolded(
    `1 + A of ${module.path}`,
    Float32Array.from(values, (value) => 1 + value),
  );
}

async function pairOf(
  folder: AdapterFolder,
  module: LinearTensors,
  form: Form,
): Promise<{ a: ReturnType<typeof rounded>; b: ReturnType<typeof rounded> } | undefined> {
  if (form === 'none') return undefined;
  if (form === 'lora') {
    const a = await readParameter(folder, module, 'glora_B.Xu');
    const b = await readParameter(folder, module, 'glora_B.Xd');
    return { a: rounded('Xu', a.shape, toDoubles(a)), b: rounded('Xd', b.shape, toDoubles(b)) };
  }
  const values = await columnOf(folder, module, 'B', module.out);
  return {
    a: rounded('ones', [1, module.in], new Float64Array(module.in).fill(1)),
    b: rounded('B', [module.out, 1], values),
  };
}

/** c = b ⊙ D + E + W C; undefined where there is nothing of it. */
async function shiftOf(
  folder: AdapterFolder,
  { base }: ImportContext,
  module: LinearTensors,
  forms: Forms,
): Promise<Float32Array | undefined> {
  if (forms.C === 'none' && forms.D === 'none') return undefined;
  const shift = new Float64Array(module.out);
  if (forms.C !== 'none') {
    const c = await vectorC(folder, module, forms.C);
    shift.set(await baseTimes(base, module, c, 1));
  }
  if (forms.D !== 'none') {
    const bias = baseBias(base, module) ?? new Float64Array(module.out);
    const d = await columnOf(folder, module, 'D', module.out);
    const e = await columnOf(folder, module, 'E', module.out);
    for (let i = 0; i < shift.length; i += 1) {
      shift[i] = (shift[i] as number) + (bias[i] as number) * (d[i] as number) + (e[i] as number);
    }
  }
  return checkFolded(`the bias of ${module.path}`, Float32Array.from(shift));
}

/** C `[in]`. */
async function vectorC(folder: AdapterFolder, module: LinearTensors, form: Form): Promise<Float64Array> {
  if (form === 'vector') return columnOf(folder, module, 'C', module.in);
  const down = await readParameter(folder, module, 'glora_C.Xd');
  const up = toDoubles(await readParameter(folder, module, 'glora_C.Xu'));
  return product(toDoubles(down), up, module.in, up.length, 1);
}
