/**
 * Bottleneck adapters of AdapterHub (adapters library, methods/modeling.py; Houlsby et al., arXiv 1902.00751) → BOTTLENECK.
 *
 * With t the output of attention or MLP and r the residual stream before it, the library's layer of llama and mistral gives
 * r + t + s·(U act(D n(i) + b_d) + b_u), where i is t (double_seq_bn), r + t with original_ln_before (seq_bn), or r with
 * is_parallel (par_bn).
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import { bug } from '../../core/errors.js';
import type { SiteName } from '../../core/model-config.js';
import type { BottleneckTerm, LayerNorm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { rounded, toDoubles } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkFolded, checkShape, readFloats, readTensor, wrongTensor } from '../tensor-values.js';
import { isAdapterHub, parseAdapterHubConfig } from './adapterhub-config.js';
import type { AdapterHubConfig } from './adapterhub-config.js';
import { checkWidths, groupBottlenecks } from './adapterhub-tensors.js';
import type { Bottleneck } from './adapterhub-tensors.js';
import { readPhmWeight } from './adapterhub-phm.js';

export const adapterHubImporter: AdapterImporter = {
  method: 'AdapterHub bottleneck',
  matches: (config) => isAdapterHub(config),
  compile: compileAdapterHub,
};

/** Of torch.nn.LayerNorm, which the library leaves at its default. */
const LAYER_NORM_EPS = 1e-5;

async function compileAdapterHub(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const config = parseAdapterHubConfig(folder.config, model);
  const bottlenecks = groupBottlenecks(folder, config, model);
  for (const bottleneck of bottlenecks) checkWidths(bottleneck, config, model, limits);
  const terms: BottleneckTerm[] = [];
  for (const bottleneck of bottlenecks) terms.push(await termOf(folder, bottleneck, config, model.hiddenSize));
  return { terms: { terms }, notes: [] };
}

async function termOf(
  folder: AdapterFolder,
  bottleneck: Bottleneck,
  config: AdapterHubConfig,
  hidden: number,
): Promise<BottleneckTerm> {
  const { layer, place, width, path } = bottleneck;
  const { phm, downName } = config;
  const down = phm
    ? await readPhmWeight(folder, bottleneck, { side: 'down', module: downName, from: hidden, to: width }, phm)
    : await readTensor(folder, bottleneck.tensor(`${downName}.weight`));
  let up = phm
    ? await readPhmWeight(folder, bottleneck, { side: 'up', module: 'adapter_up', from: width, to: hidden }, phm)
    : await readTensor(folder, bottleneck.tensor('adapter_up.weight'));
  const bias = phm ? (phm.bias ? 'b' : undefined) : 'bias';
  const downBias = bias && (await readFloats(folder, bottleneck.tensor(`${downName}.${bias}`)));
  let upBias = bias && (await readFloats(folder, bottleneck.tensor(`adapter_up.${bias}`)));
  let scale = config.scale;
  if (config.scaling === 'learned') {
    scale = (await readFloats(folder, bottleneck.tensor('scaling')))[0] ?? bug('a scale lost its value');
  }
  if (config.scaling === 'channel') {
    // s per channel stands behind U and its bias alike.
    const factors = await readFloats(folder, bottleneck.tensor('scaling'));
    const what = `the scaling of ${quoteName(path)}`;
    up = rounded(
      what,
      [hidden, width],
      toDoubles(up).map((value, i) => value * (factors[Math.floor(i / width)] as number)),
    );
    upBias =
      upBias &&
      checkFolded(
        what,
        Float32Array.from(upBias, (value, i) => value * (factors[i] as number)),
      );
  }
  const norm = config.normBefore ? await readNorm(folder, bottleneck) : undefined;
  return {
    kind: 'bottleneck',
    site: { layer, site: SITES[place] },
    placement: config.placement,
    activation: config.activation,
    down,
    ...(downBias && { downBias }),
    up,
    ...(upBias && { upBias }),
    scale,
    ...(norm && { norm }),
  };
}

const SITES: Readonly<Record<Bottleneck['place'], SiteName>> = { mh: 'residualAttn', output: 'residualMlp' };

/** The library registers the norm twice, and so its file holds it twice. */
async function readNorm(folder: AdapterFolder, bottleneck: Bottleneck): Promise<LayerNorm> {
  const read = async (part: 'weight' | 'bias'): Promise<Float32Array> => {
    const tensor = bottleneck.tensor(`adapter_norm_before.${part}`);
    const copy = bottleneck.tensor(`adapter_down.0.${part}`);
    checkShape(copy, tensor.shape);
    const [values, again] = [await readFloats(folder, tensor), await readFloats(folder, copy)];
    if (values.every((value, i) => value === again[i])) return values;
    throw wrongTensor(
      `${quoteName(tensor.name)} and ${quoteName(copy.name)} are one tensor of the library and differ in the file`,
      'Save the adapter again.',
    );
  };
  return { weight: await read('weight'), bias: await read('bias'), eps: LAYER_NORM_EPS };
}
