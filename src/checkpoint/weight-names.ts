/** How Hugging Face and GGUF name the tensors of the sites. Called by open-checkpoint, used by weight-map. */
import type { ModelConfig, SiteName, SiteRef } from '../core/model-config.js';
import { DTYPES } from '../native/binding-types.js';
import type { WeightDtype } from '../native/binding-types.js';
import type { WeightNaming } from './weight-map.js';

type LayerNames = Readonly<Partial<Record<SiteName, string>>>;

const HUGGINGFACE: LayerNames = {
  attnNorm: 'input_layernorm',
  q: 'self_attn.q_proj',
  k: 'self_attn.k_proj',
  v: 'self_attn.v_proj',
  qNorm: 'self_attn.q_norm',
  kNorm: 'self_attn.k_norm',
  o: 'self_attn.o_proj',
  mlpNorm: 'post_attention_layernorm',
  gate: 'mlp.gate_proj',
  up: 'mlp.up_proj',
  down: 'mlp.down_proj',
};
/** Gemma calls the norm after attention what the others call the norm before the MLP. */
const HUGGINGFACE_GEMMA: LayerNames = {
  ...HUGGINGFACE,
  postAttnNorm: 'post_attention_layernorm',
  mlpNorm: 'pre_feedforward_layernorm',
  postMlpNorm: 'post_feedforward_layernorm',
};
const GGUF: LayerNames = {
  attnNorm: 'attn_norm',
  q: 'attn_q',
  k: 'attn_k',
  v: 'attn_v',
  qNorm: 'attn_q_norm',
  kNorm: 'attn_k_norm',
  o: 'attn_output',
  postAttnNorm: 'post_attention_norm',
  mlpNorm: 'ffn_norm',
  gate: 'ffn_gate',
  up: 'ffn_up',
  down: 'ffn_down',
  postMlpNorm: 'post_ffw_norm',
};

/** Where the decoder's tensors may stand: as usual, saved without its head, and inside a multimodal Gemma 3. */
const PREFIXES = ['model.', '', 'model.language_model.', 'language_model.model.'];
/** Parts of a multimodal Gemma 3 that are not served. */
const VISION = /^(?:model\.)?(?:vision_tower|multi_modal_projector)\./;
/** A buffer that old transformers saved; it follows from the config. */
const INV_FREQ = /(?:^|\.)rotary_emb\.inv_freq$/;

const HUGGINGFACE_DTYPES: ReadonlyMap<string, WeightDtype> = new Map([
  ['F32', 'f32'],
  ['F16', 'f16'],
  ['BF16', 'bf16'],
]);

/** Name of a head of its own in Hugging Face checkpoints; undefined when there is none. */
export function huggingFaceHead(names: ReadonlySet<string>): string | undefined {
  return ['lm_head.weight', 'language_model.lm_head.weight'].find((name) => names.has(name));
}

export function huggingFaceNaming(config: ModelConfig, names: ReadonlySet<string>): WeightNaming {
  const gemma = config.family === 'gemma3';
  const layerNames = gemma ? HUGGINGFACE_GEMMA : HUGGINGFACE;
  const prefixes = gemma ? PREFIXES : PREFIXES.slice(0, 2);
  const prefix = prefixes.find((candidate) => names.has(`${candidate}embed_tokens.weight`)) ?? 'model.';
  const head = (huggingFaceHead(names) ?? 'lm_head.weight').replace(/\.weight$/, '');
  return {
    name: (ref) =>
      siteName(ref, `${prefix}layers.`, layerNames, {
        embedding: `${prefix}embed_tokens`,
        finalNorm: `${prefix}norm`,
        head,
      }),
    ignored: (name) => INV_FREQ.test(name) || (gemma && VISION.test(name)),
    dtype: (name) => HUGGINGFACE_DTYPES.get(name),
    dtypes: [...HUGGINGFACE_DTYPES.keys()].join(', '),
    permutedHeads: () => 0,
    normAdd: gemma ? 1 : 0,
  };
}

/** Tensors of Llama files that follow from the config, or that gguf-config has read. */
const GGUF_IGNORED = /^(?:rope_freqs\.weight|blk\.[0-9]+\.attn_rot_embd\.weight)$/;
export const GGUF_HEAD = 'output.weight';
export const GGUF_EMBEDDING = 'token_embd.weight';
export const GGUF_ROPE_FACTORS = 'rope_freqs.weight';

export function ggufNaming(config: ModelConfig): WeightNaming {
  const llama = config.family === 'llama';
  return {
    name: (ref) => siteName(ref, 'blk.', GGUF, { embedding: 'token_embd', finalNorm: 'output_norm', head: 'output' }),
    ignored: (name) => llama && GGUF_IGNORED.test(name),
    dtype: (name) => (Object.hasOwn(DTYPES, name) ? (name as WeightDtype) : undefined),
    dtypes: Object.keys(DTYPES).join(', '),
    permutedHeads: (site) => {
      if (!llama) return 0;
      if (site === 'q') return config.numHeads;
      return site === 'k' ? config.numKvHeads : 0;
    },
    normAdd: 0,
  };
}

/** Linears of the first layer that have a bias; weight-map then asks every layer for the same. */
export function ggufBiases(names: ReadonlySet<string>): ReadonlySet<SiteName> {
  const linears: readonly SiteName[] = ['q', 'k', 'v', 'o', 'gate', 'up', 'down'];
  return new Set(linears.filter((site) => names.has(`blk.0.${GGUF[site]}.bias`)));
}

function siteName(ref: SiteRef, layers: string, names: LayerNames, outer: LayerNames): string {
  const name = ref.layer < 0 ? outer[ref.site] : names[ref.site];
  return ref.layer < 0 ? `${name}` : `${layers}${ref.layer}.${name}`;
}
