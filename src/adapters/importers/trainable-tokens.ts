/**
 * Trainable tokens (peft tuners/trainable_tokens): some rows of the embedding, or of the head, are replaced: OVERRIDE.
 * `trainable_tokens_delta [n, hidden]` holds whole rows in spite of its name; row i belongs to token_indices[i]. A head that
 * is tied to an adapted embedding reads the same rows.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { ModelConfig, SiteName } from '../../core/model-config.js';
import type { DenseTensor, OverrideTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { refused, show } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { wrongTensor } from '../tensor-values.js';
import { checkPeftConfig, expectTensor, isPeftType, readParameter } from './linear-tensors.js';
import { groupModules } from './module-tensors.js';
import type { PlacedTensors } from './module-tensors.js';

const ROWS = 'trainable_tokens_delta';

export const trainableTokensImporter: AdapterImporter = {
  method: 'TRAINABLE_TOKENS',
  matches: (config) => isPeftType(config, 'TRAINABLE_TOKENS'),
  compile: compileTokens,
};

async function compileTokens(folder: AdapterFolder, { model }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupModules(folder, model, [`token_adapter.${ROWS}`, ROWS]);
  // The library finds the embedding by itself and writes its bare name, where a string is else a pattern for whole paths.
  const named = modules.some(({ path }) =>
    `.${path}`.endsWith(`.${show(folder.config['target_modules']).slice(1, -1)}`),
  );
  const config: JsonObject = named ? { ...folder.config, target_modules: null } : folder.config;
  const notes = checkPeftConfig(config, ['token_indices'], modules);
  const tokens = tokensOf(folder.config, model);
  for (const module of modules) {
    const site = module.place.sites[0];
    if (site !== 'embedding' && site !== 'head') {
      throw wrongTensor(
        `${quoteName(module.path)} has trained rows, expected the embedding or the head`,
        'Serve it on the base that it was trained for.',
      );
    }
    expectTensor(module, parameterOf(module), [tokens.length, model.hiddenSize]);
  }
  const order = tokens.map((_, i) => i).sort((a, b) => (tokens[a] as number) - (tokens[b] as number));
  const rows = Uint32Array.from(order, (i) => tokens[i] as number);
  const values = new Map<SiteName, DenseTensor>();
  for (const module of modules) {
    values.set(module.place.sites[0] as SiteName, await readParameter(folder, module, parameterOf(module)));
  }
  tie(values, model);
  const terms = [...values].map(([site, tensor]): OverrideTerm => {
    return { kind: 'override', site: { layer: -1, site }, rows, values: permuted(tensor, order) };
  });
  return { terms: { terms }, notes };
}

function parameterOf({ tensors }: PlacedTensors): string {
  return tensors.has(ROWS) ? ROWS : `token_adapter.${ROWS}`;
}

/** One parameter serves both where they are tied; a file may have it under both names. */
function tie(values: Map<SiteName, DenseTensor>, { tiedHead }: ModelConfig): void {
  const embedding = values.get('embedding');
  if (!tiedHead || embedding === undefined) return;
  const head = values.get('head');
  const same =
    head === undefined || (head.dtype === embedding.dtype && head.data.every((v, i) => v === embedding.data[i]));
  if (!same) {
    throw wrongTensor(
      'embedding and head are tied in the base, and it holds different rows for them',
      'Serve it on the base that it was trained for, or save it again.',
    );
  }
  values.set('head', embedding);
}

function tokensOf(config: JsonObject, { vocabSize }: ModelConfig): number[] {
  const value = config['token_indices'];
  const items: readonly unknown[] = Array.isArray(value) ? value : [];
  const tokens = items.filter((item): item is number => Number.isSafeInteger(item));
  const fits = tokens.every((token) => token >= 0 && token < vocabSize);
  if (tokens.length === items.length && tokens.length > 0 && fits && new Set(tokens).size === tokens.length)
    return tokens;
  throw refused(
    'token_indices',
    `${show(value)}, expected different token ids below ${vocabSize}`,
    'Write those that the adapter was trained with, and serve it on its own base (a grown vocabulary is another base).',
  );
}

function permuted(tensor: DenseTensor, order: readonly number[]): DenseTensor {
  const [count = 0, width = 0] = tensor.shape;
  const shape = [count, width];
  const copy = <T extends Float32Array | Uint16Array>(from: T, to: T): T => {
    order.forEach((row, i) => {
      to.set(from.subarray(row * width, (row + 1) * width), i * width);
    });
    return to;
  };
  if (tensor.dtype === 'f32') return { dtype: 'f32', shape, data: copy(tensor.data, new Float32Array(count * width)) };
  return { dtype: tensor.dtype, shape, data: copy(tensor.data, new Uint16Array(count * width)) };
}
