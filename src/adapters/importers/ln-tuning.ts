/** PEFT LN tuning: trained copies of norms stand in the place of the base's. One OVERRIDE a norm. */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { refuseUnknownFields } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { placeOfModule, siteShape } from '../module-place.js';
import type { ModulePlace } from '../module-place.js';
import { checkShape, readTensor, wrongTensor } from '../tensor-values.js';
import { absoluteTerms } from './absolute-tensors.js';
import { isPeftType } from './linear-tensors.js';

export const lnTuningImporter: AdapterImporter = {
  method: 'LN_TUNING',
  matches: (config) => isPeftType(config, 'LN_TUNING'),
  compile: compileLnTuning,
};

const KEY = /^(?:base_model\.model\.)?(.+)\.ln_tuning_layers(?:\.default)?\.weight$/;

interface Norm {
  readonly place: ModulePlace;
  readonly tensor: SafetensorsTensor;
}

async function compileLnTuning(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  const { model, base } = context;
  refuseUnknownFields(folder.config, []);
  const norms = normsOf(folder, context);
  const terms: Term[] = [];
  for (const { place, tensor } of norms) {
    terms.push(
      ...absoluteTerms(place, 'weight', await readTensor(folder, tensor), { model, base, tied: model.tiedHead }),
    );
  }
  return { terms: { terms }, notes: [] };
}

function normsOf({ tensors }: AdapterFolder, { model }: ImportContext): Norm[] {
  const seen = new Map<string, SafetensorsTensor>();
  const norms: Norm[] = [];
  for (const tensor of tensors.values()) {
    const path = KEY.exec(tensor.name)?.[1];
    const place = path === undefined ? undefined : placeOfModule(path, model);
    const site = place?.sites[0];
    if (place === undefined || site?.endsWith('Norm') !== true) {
      throw wrongTensor(
        `${quoteName(tensor.name)} is no trained norm of the base ("….input_layernorm.ln_tuning_layers.weight")`,
        'Train it with norms alone among its target modules, on the base that is served.',
      );
    }
    checkShape(tensor, [siteShape(model, site).in]);
    const key = `${place.layer} ${site}`;
    const other = seen.get(key);
    if (other !== undefined) {
      throw wrongTensor(
        `${quoteName(other.name)} and ${quoteName(tensor.name)} are the same norm`,
        'Which of them counts cannot be known; save the adapter again.',
      );
    }
    seen.set(key, tensor);
    norms.push({ place, tensor });
  }
  if (norms.length > 0) return norms;
  throw wrongTensor('it holds no tensors, so it would be the base under another name', 'Save the adapter again.');
}
