/**
 * Where a module of a Hugging Face checkpoint stands in the model: `model.layers.3.self_attn.q_proj` → layer 3, site q.
 * Importers know modules by these paths only.
 */
import { linearShape } from '../core/model-config.js';
import type { ModelConfig, SiteName, SiteRef } from '../core/model-config.js';

export interface ModulePlace {
  /** -1 for embedding, final norm and head. */
  readonly layer: number;
  /** One, or several for a fused linear (qkv_proj, gate_up_proj), in the order of its output rows. */
  readonly sites: readonly SiteName[];
}

/** One site of a module, and the rows of the module's output that are its own. */
export interface ModulePart {
  readonly site: SiteRef;
  readonly firstRow: number;
  readonly rows: number;
}

const PLACE =
  /^(?:model\.language_model\.|language_model\.model\.|model\.)?(?:layers\.(0|[1-9][0-9]{0,5})\.(?:((?:self_attn|mlp)\.[a-z_]+)|([a-z_]+layernorm))|(embed_tokens|norm))$/;
const HEAD = /^(?:language_model\.)?lm_head$/;

const MODULES: ReadonlyMap<string, readonly SiteName[]> = new Map<string, readonly SiteName[]>([
  ['self_attn.q_proj', ['q']],
  ['self_attn.k_proj', ['k']],
  ['self_attn.v_proj', ['v']],
  ['self_attn.qkv_proj', ['q', 'k', 'v']],
  ['self_attn.o_proj', ['o']],
  ['self_attn.q_norm', ['qNorm']],
  ['self_attn.k_norm', ['kNorm']],
  ['mlp.gate_proj', ['gate']],
  ['mlp.up_proj', ['up']],
  ['mlp.gate_up_proj', ['gate', 'up']],
  ['mlp.down_proj', ['down']],
  ['input_layernorm', ['attnNorm']],
  ['pre_feedforward_layernorm', ['mlpNorm']],
  ['post_feedforward_layernorm', ['postMlpNorm']],
]);

/** Undefined when the base has no such module. */
export function placeOfModule(path: string, model: ModelConfig): ModulePlace | undefined {
  if (HEAD.test(path)) return { layer: -1, sites: ['head'] };
  const match = PLACE.exec(path);
  if (match === null) return undefined;
  const [, layerText, linear, norm, single] = match;
  if (single !== undefined) return { layer: -1, sites: [single === 'norm' ? 'finalNorm' : 'embedding'] };
  const layer = Number(layerText);
  const name = linear ?? norm ?? '';
  // Gemma calls the norm after attention what the others call the norm before the MLP.
  const gemmas: readonly SiteName[] = model.postNorms ? ['postAttnNorm'] : ['mlpNorm'];
  const sites = name === 'post_attention_layernorm' ? gemmas : MODULES.get(name);
  if (sites === undefined || layer >= model.layers.length) return undefined;
  return sites.every((site) => hasSite(model, site)) ? { layer, sites } : undefined;
}

function hasSite(model: ModelConfig, site: SiteName): boolean {
  if (site === 'qNorm' || site === 'kNorm') return model.qkNorm;
  if (site === 'postAttnNorm' || site === 'postMlpNorm') return model.postNorms;
  return true;
}

/** `[out, in]` of a linear, `[vocab, hidden]` of the embedding, `[1, width]` of a norm. */
export function siteShape(model: ModelConfig, site: SiteName): { out: number; in: number } {
  if (site === 'embedding') return { out: model.vocabSize, in: model.hiddenSize };
  if (site === 'qNorm' || site === 'kNorm') return { out: 1, in: model.headDim };
  return linearShape(model, site) ?? { out: 1, in: model.hiddenSize };
}

/** The sites of a linear module with their rows; the module's output has as many rows as all of them together. */
export function partsOf(place: ModulePlace, model: ModelConfig): ModulePart[] {
  let firstRow = 0;
  return place.sites.map((site) => {
    const rows = siteShape(model, site).out;
    const part = { site: { layer: place.layer, site }, firstRow, rows };
    firstRow += rows;
    return part;
  });
}

/** The linears of the layers: q, k, v, o, gate, up, down. */
export function isLayerLinear(site: SiteName): boolean {
  return site !== 'head' && LINEARS.has(site);
}

/** The linears, the head among them. */
export function isLinear(site: SiteName): boolean {
  return LINEARS.has(site);
}

const LINEARS: ReadonlySet<SiteName> = new Set(['q', 'k', 'v', 'o', 'gate', 'up', 'down', 'head']);
