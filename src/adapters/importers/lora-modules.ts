/**
 * The tensors of a PEFT LoRA, grouped by the module that they adapt, and where each module stands in the model. Tensor
 * keys are `base_model.model.` + module path + `.lora_A.weight` and the like; old files have `.default` before `.weight`.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import { bug, ManyfoldError } from '../../core/errors.js';
import { linearShape } from '../../core/model-config.js';
import type { ModelConfig, SiteName, SiteRef } from '../../core/model-config.js';

export interface LoraModule {
  /** As in the file, without `base_model.model.`; config patterns are matched against it. */
  readonly path: string;
  /** -1 for embedding and head. */
  readonly layer: number;
  readonly a: SafetensorsTensor;
  readonly b: SafetensorsTensor;
  readonly rank: number;
  readonly parts: readonly LoraPart[];
}

/** One site that a module adapts; fused modules (qkv_proj, gate_up_proj) have several, each a range of B's rows. */
export interface LoraPart {
  readonly site: SiteRef;
  readonly firstRow: number;
  readonly rows: number;
}

/** Throws 'invalid_adapter' for the first key, shape or pair that is wrong. */
export function groupModules(tensors: ReadonlyMap<string, SafetensorsTensor>, model: ModelConfig): LoraModule[] {
  const pairs = new Map<string, ModulePair>();
  for (const tensor of tensors.values()) addToPair(pairs, tensor);
  if (pairs.size === 0) {
    throw wrong('it holds no tensors, so it would be the base under another name', 'Save the adapter again with PEFT.');
  }
  const modules = [...pairs.values()].map((pair) => moduleOf(pair, model));
  refuseAliases(modules);
  return modules;
}

interface ModulePair {
  readonly path: string;
  readonly embedding: boolean;
  a: SafetensorsTensor | undefined;
  b: SafetensorsTensor | undefined;
}

const LINEAR_KEY = /^(.+)\.lora_([AB])(?:\.default)?\.weight$/;
const EMBEDDING_KEY = /^(.+)\.lora_embedding_([AB])(?:\.default)?$/;
const PEFT_PREFIX = 'base_model.model.';

function addToPair(pairs: Map<string, ModulePair>, tensor: SafetensorsTensor): void {
  const key = tensor.name.startsWith(PEFT_PREFIX) ? tensor.name.slice(PEFT_PREFIX.length) : tensor.name;
  const linear = LINEAR_KEY.exec(key);
  const match = linear ?? EMBEDDING_KEY.exec(key);
  if (match === null) throw foreignTensor(tensor.name);
  const [, path = '', factor] = match;
  const pair = pairs.get(path) ?? { path, embedding: linear === null, a: undefined, b: undefined };
  pairs.set(path, pair);
  const slot = factor === 'A' ? 'a' : 'b';
  if (pair[slot] !== undefined) throw twice(pair[slot].name, tensor.name);
  if (pair.embedding !== (linear === null)) {
    throw wrong(`${quoteName(path)} has factors of a linear and of an embedding`, 'Save the adapter again with PEFT.');
  }
  pair[slot] = tensor;
}

const PLACE =
  /^(?:model\.language_model\.|language_model\.model\.|model\.)?(?:layers\.(0|[1-9][0-9]{0,5})\.(self_attn|mlp)\.([a-z_]+)|(embed_tokens))$/;
const HEAD = /^(?:language_model\.)?lm_head$/;

const MODULES: ReadonlyMap<string, readonly SiteName[]> = new Map<string, readonly SiteName[]>([
  ['self_attn.q_proj', ['q']],
  ['self_attn.k_proj', ['k']],
  ['self_attn.v_proj', ['v']],
  ['self_attn.qkv_proj', ['q', 'k', 'v']],
  ['self_attn.o_proj', ['o']],
  ['mlp.gate_proj', ['gate']],
  ['mlp.up_proj', ['up']],
  ['mlp.gate_up_proj', ['gate', 'up']],
  ['mlp.down_proj', ['down']],
]);

/** Where a module path stands; undefined when the base has no such module. */
function placeOf(path: string, model: ModelConfig): { layer: number; sites: readonly SiteName[] } | undefined {
  if (HEAD.test(path)) return { layer: -1, sites: ['head'] };
  const match = PLACE.exec(path);
  if (match === null) return undefined;
  const [, layerText, block, name, embedding] = match;
  if (embedding !== undefined) return { layer: -1, sites: ['embedding'] };
  const sites = MODULES.get(`${block}.${name}`);
  const layer = Number(layerText);
  return sites === undefined || layer >= model.layers.length ? undefined : { layer, sites };
}

function moduleOf(pair: ModulePair, model: ModelConfig): LoraModule {
  const { path, a, b } = pair;
  const place = placeOf(path, model);
  if (place === undefined) {
    throw wrong(
      `it adapts ${quoteName(path)}, which the base (${model.family}, ${model.layers.length} layers) does not have`,
      'Serve it on the base that it was trained for.',
    );
  }
  if (a === undefined || b === undefined) {
    const [present, missing] = a === undefined ? [b, 'A'] : [a, 'B'];
    const name = quoteName(present?.name ?? path);
    throw wrong(`${name} has no ${missing} beside it`, 'The file is incomplete; download or save it again.');
  }
  if (pair.embedding !== (place.sites[0] === 'embedding')) {
    throw wrong(
      `${quoteName(a.name)} is ${pair.embedding ? 'a factor of an embedding' : 'a factor of a linear'}, the module is not`,
      'Save the adapter again with PEFT.',
    );
  }
  const shapes = place.sites.map((site) => ({ site, ...factorShape(model, site) }));
  const width = shapes[0]?.in ?? bug(`the module ${path} has no site`);
  const height = shapes.reduce((sum, { out }) => sum + out, 0);
  const rank = a.shape[0] ?? 0;
  checkShape(a, [rank, width], `[r, ${width}]`);
  checkShape(b, [height, rank], `[${height}, ${rank}], with the rank of ${quoteName(a.name)} ${shapeText(a)}`);
  let firstRow = 0;
  const parts = shapes.map(({ site, out }) => {
    const part = { site: { layer: place.layer, site }, firstRow, rows: out };
    firstRow += out;
    return part;
  });
  return { path, layer: place.layer, a, b, rank, parts };
}

/** The embedding's input is a one-hot of the vocabulary. */
function factorShape(model: ModelConfig, site: SiteName): { out: number; in: number } {
  if (site === 'embedding') return { out: model.hiddenSize, in: model.vocabSize };
  return linearShape(model, site) ?? bug(`${site} is no linear`);
}

function checkShape(tensor: SafetensorsTensor, wanted: readonly number[], words: string): void {
  const fits = tensor.shape.length === wanted.length && tensor.shape.every((dim, i) => dim === wanted[i] && dim > 0);
  if (fits) return;
  throw wrong(
    `${quoteName(tensor.name)} has shape ${shapeText(tensor)}, expected ${words}`,
    'The adapter was trained for another base, or its tensors are transposed; save it with PEFT for this base.',
  );
}

function shapeText(tensor: SafetensorsTensor): string {
  return `[${tensor.shape.join(', ')}]`;
}

/** Two paths may mean one site (`model.layers.0` and `layers.0`, q_proj and qkv_proj). */
function refuseAliases(modules: readonly LoraModule[]): void {
  const seen = new Map<string, LoraModule>();
  for (const module of modules) {
    for (const { site } of module.parts) {
      const place = `${site.layer} ${site.site}`;
      const other = seen.get(place);
      if (other !== undefined) throw twice(other.a.name, module.a.name);
      seen.set(place, module);
    }
  }
}

function foreignTensor(name: string): ManyfoldError {
  const merge = "merge the adapter into its base with PEFT's merge_and_unload() and serve the result with --model";
  if (name.endsWith('.base_layer.weight')) {
    return wrong(
      `${quoteName(name)} is a whole weight of the base, saved beside the adapter, which would replace the one served`,
      `Save it again with save_pretrained(path, save_embedding_layers=False), or ${merge}.`,
    );
  }
  if (name.includes('lora_magnitude_vector')) {
    return wrong(`${quoteName(name)} belongs to DoRA`, `Train it with use_dora=False, or ${merge}.`);
  }
  if (/\.lora_(?:embedding_)?[AB]\./.test(name)) {
    return wrong(
      `${quoteName(name)} is not named as PEFT names plain LoRA factors ("….lora_A.weight")`,
      `Save it with PEFT's save_pretrained(), which leaves the adapter's name out, or ${merge}.`,
    );
  }
  const capital = merge.charAt(0).toUpperCase() + merge.slice(1);
  return wrong(`${quoteName(name)} is no LoRA factor but a trained tensor of another kind`, `${capital}.`);
}

function twice(first: string, second: string): ManyfoldError {
  return wrong(
    `${quoteName(first)} and ${quoteName(second)} adapt the same place`,
    'Which of them counts cannot be known; save the adapter again with PEFT.',
  );
}

function wrong(problem: string, mend: string): ManyfoldError {
  return new ManyfoldError('invalid_adapter', `adapter_model.safetensors: ${problem}. ${mend}`);
}
