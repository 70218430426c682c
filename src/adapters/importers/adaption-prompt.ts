/**
 * LLaMA-Adapter (arXiv 2303.16199; peft tuners/adaption_prompt) → one gated PREFIX a layer. Keys after the attention module:
 * `adaption_prompt [1, n, hidden]`, `adaption_gate [1]`. Keys and values are the base's k_proj and v_proj of the prompt
 * (biases included, no RoPE), computed here; the queries are those of the base.
 *
 * peft sends the gated result through o_proj apart from the attention's own, so that o_proj's bias is added twice: the second
 * time is a shift of o. It knows llama and mistral; on others it would leave out the norm of queries.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { ModelConfig, SiteName } from '../../core/model-config.js';
import { linearShape } from '../../core/model-config.js';
import type { DenseTensor, Term } from '../../core/terms.js';
import { bug } from '../../core/errors.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { integerField, refused, refuseUnknownFields, show } from '../config-fields.js';
import { baseTimes, rounded, toDoubles } from '../fold.js';
import type { AdapterImporter, BaseWeights, CompiledAdapter, ImportContext } from '../importer.js';
import { checkShape, readFloats, readTensor, wrongTensor } from '../tensor-values.js';
import { isPeftType } from './linear-tensors.js';

export const adaptionPromptImporter: AdapterImporter = {
  method: 'ADAPTION_PROMPT',
  matches: (config) => isPeftType(config, 'ADAPTION_PROMPT'),
  compile: compileAdaptionPrompt,
};

interface AdaptedLayer {
  readonly layer: number;
  prompt?: SafetensorsTensor;
  gate?: SafetensorsTensor;
}

async function compileAdaptionPrompt(folder: AdapterFolder, { model, base }: ImportContext): Promise<CompiledAdapter> {
  const { config } = folder;
  refuseUnknownFields(config, ['adapter_layers', 'adapter_len']);
  const modules = config['target_modules'] ?? 'self_attn';
  if (modules !== 'self_attn') {
    throw refused('target_modules', `${show(modules)}, expected "self_attn"`, 'Train it on the attention modules.');
  }
  refuseOtherBase(model);
  const layers = layersOf(folder, model);
  const length = integerField(config, 'adapter_len', 1);
  const wanted = integerField(config, 'adapter_layers', 1);
  if (layers.length !== wanted || layers.some(({ layer }) => layer < model.layers.length - wanted)) {
    const found = layers.map(({ layer }) => layer).join(', ');
    throw refused(
      'adapter_layers',
      `${wanted}, which are the last layers of ${model.layers.length}; the file has tensors for layers ${found}`,
      'Config and tensors do not belong together, or it was trained for another base; save both again together.',
    );
  }
  const terms: Term[] = [];
  for (const { layer, prompt, gate } of layers) {
    checkShape(prompt, [1, length, model.hiddenSize], `[1, ${length}, ${model.hiddenSize}] (1, adapter_len, hidden)`);
    checkShape(gate, [1]);
    const rows = toDoubles(await readTensor(folder, prompt));
    terms.push({
      kind: 'prefix',
      site: { layer, site: 'attention' },
      k: await project(base, model, layer, 'k', rows),
      v: await project(base, model, layer, 'v', rows),
      gate: (await readFloats(folder, gate))[0] ?? bug('a gate lost its value'),
    });
    const bias = base.bias({ layer, site: 'o' });
    if (bias !== undefined) terms.push({ kind: 'diag', site: { layer, site: 'o' }, c: bias.slice() });
  }
  return { terms: { terms }, notes: [] };
}

/** peft repeats heads by floor(hidden / width of k), which is the base's own repetition only where hidden is the width of q. */
function refuseOtherBase(model: ModelConfig): void {
  const mend = 'Serve it on the base that it was trained for, or train prefix tuning.';
  if (model.family !== 'llama' && model.family !== 'mistral') {
    throw refused(
      'peft_type',
      `"ADAPTION_PROMPT", which peft has for llama and mistral, not for ${model.family}`,
      mend,
    );
  }
  const repeats = Math.floor(model.hiddenSize / (model.numKvHeads * model.headDim));
  if (repeats * model.numKvHeads === model.numHeads) return;
  throw refused(
    'peft_type',
    `"ADAPTION_PROMPT", which peft cannot run on this base: hidden ${model.hiddenSize} is not ${model.numHeads} heads of ` +
      `${model.headDim}`,
    mend,
  );
}

const KEY = /^(?:base_model\.model\.)?(?:model\.)?layers\.(0|[1-9][0-9]{0,5})\.self_attn\.adaption_(prompt|gate)$/;

function layersOf(folder: AdapterFolder, model: ModelConfig): Required<AdaptedLayer>[] {
  const layers = new Map<number, AdaptedLayer>();
  for (const tensor of folder.tensors.values()) {
    const match = KEY.exec(tensor.name);
    const layer = Number(match?.[1] ?? -1);
    if (match === null || layer >= model.layers.length) {
      throw wrongTensor(
        `${quoteName(tensor.name)} is no adaption_prompt or adaption_gate of the base's ${model.layers.length} layers`,
        'Save the adapter again with PEFT, for this base.',
      );
    }
    const entry = layers.get(layer) ?? { layer };
    layers.set(layer, entry);
    const slot = match[2] === 'prompt' ? 'prompt' : 'gate';
    const other = entry[slot];
    if (other !== undefined) {
      throw wrongTensor(
        `${quoteName(other.name)} and ${quoteName(tensor.name)} adapt the same place`,
        'Which of them counts cannot be known; save the adapter again with PEFT.',
      );
    }
    entry[slot] = tensor;
  }
  return [...layers.values()]
    .sort((a, b) => a.layer - b.layer)
    .map(({ layer, prompt, gate }) => {
      if (prompt !== undefined && gate !== undefined) return { layer, prompt, gate };
      throw wrongTensor(
        `${quoteName((prompt ?? gate)?.name ?? '')} has no ${prompt === undefined ? 'adaption_prompt' : 'adaption_gate'} beside it`,
        'The file is incomplete; download or save it again.',
      );
    });
}

/** W p + b for each row p of the prompt: `[n, kv heads, head_dim]`. */
async function project(
  base: BaseWeights,
  model: ModelConfig,
  layer: number,
  name: SiteName,
  prompt: Float64Array,
): Promise<DenseTensor> {
  const site = { layer, site: name };
  const { out, in: width } = linearShape(model, name) ?? bug(`${name} is no linear`);
  const count = prompt.length / width;
  const matrix = { parts: [{ site, firstRow: 0, rows: out }], out, in: width };
  const columns = await baseTimes(base, matrix, prompt, count);
  const bias = base.bias(site);
  const result = new Float64Array(count * out);
  for (let i = 0; i < count; i += 1) {
    for (let row = 0; row < out; row += 1) {
      result[i * out + row] = (columns[row * count + i] as number) + (bias?.[row] ?? 0);
    }
  }
  return rounded(
    `the ${name === 'k' ? 'keys' : 'values'} of layer ${layer}`,
    [count, model.numKvHeads, model.headDim],
    result,
  );
}
