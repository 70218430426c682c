/**
 * The tensors of an AdapterHub file, grouped by the place that they adapt: `model.layers.N.attention_adapters.adapters.NAME.…`
 * behind attention, `output_adapters` behind the MLP, `shared_parameters.NAME.…` for PHM layers. Called by adapterhub.ts.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { AdapterFolder, AdapterLimits } from '../adapter-folder.js';
import { refused } from '../config-fields.js';
import { checkShape, wrongTensor } from '../tensor-values.js';
import { phmShapes } from './adapterhub-config.js';
import type { AdapterHubConfig } from './adapterhub-config.js';

export interface Bottleneck {
  readonly layer: number;
  readonly place: 'mh' | 'output';
  /** For messages. */
  readonly path: string;
  /** m of D `[m, hidden]`. */
  readonly width: number;
  /** A tensor of the bottleneck by its name within it; 'invalid_adapter' if it is missing. */
  readonly tensor: (name: string) => SafetensorsTensor;
  /** One that all bottlenecks share. */
  readonly shared: (name: string) => SafetensorsTensor;
}

const KEY =
  /^(?:model\.)?layers\.(0|[1-9][0-9]{0,5})\.(attention_adapters|output_adapters)\.adapters\.([^.]+)\.([a-zA-Z0-9_.]+)$/;
const SHARED_KEY = /^(?:model\.)?shared_parameters\.([^.]+)\.(\w+)$/;

type Group = Map<string, SafetensorsTensor>;

export function groupBottlenecks(folder: AdapterFolder, config: AdapterHubConfig, model: ModelConfig): Bottleneck[] {
  const groups = new Map<string, Group>();
  const shared: Group = new Map();
  const names = new Set<string>();
  for (const tensor of folder.tensors.values()) {
    const own = KEY.exec(tensor.name);
    const common = SHARED_KEY.exec(tensor.name);
    if (own === null && common === null) throw foreign(tensor.name);
    names.add(own?.[3] ?? common?.[1] ?? '');
    const id = own === null ? '' : `${own[1]} ${own[2] === 'attention_adapters' ? 'mh' : 'output'}`;
    const group = own === null ? shared : (groups.get(id) ?? new Map<string, SafetensorsTensor>());
    if (own !== null) groups.set(id, group);
    const name = own?.[4] ?? common?.[2] ?? '';
    const other = group.get(name);
    if (other !== undefined) throw twice(other.name, tensor.name);
    group.set(name, tensor);
  }
  refuseSeveral(names);
  const places = expectedPlaces(config, model);
  for (const id of groups.keys()) if (!places.has(id)) throw misplaced(id);
  refuseOthers(shared, sharedNames(config), 'the shared parameters');
  return [...places].map((id) =>
    bottleneckOf(id, groups.get(id) ?? new Map<string, SafetensorsTensor>(), shared, config),
  );
}

function expectedPlaces(config: AdapterHubConfig, model: ModelConfig): Set<string> {
  const layers = model.layers.map((_, layer) => layer).filter((layer) => !config.leaveOut.has(layer));
  const kinds = [...(config.attention ? ['mh'] : []), ...(config.output ? ['output'] : [])];
  return new Set(layers.flatMap((layer) => kinds.map((kind) => `${layer} ${kind}`)));
}

function bottleneckOf(id: string, group: Group, shared: Group, config: AdapterHubConfig): Bottleneck {
  const [layer, place] = id.split(' ') as [string, Bottleneck['place']];
  const path = `layers.${layer}.${place}_adapter`;
  refuseOthers(group, ownNames(config), path);
  const find = (from: Group, name: string): SafetensorsTensor => {
    const tensor = from.get(name);
    if (tensor !== undefined) return tensor;
    throw wrongTensor(
      `${quoteName(path)} has no ${name}`,
      'The file is incomplete, or its config belongs to another adapter; download or save both again.',
    );
  };
  const tensor = (name: string): SafetensorsTensor => find(group, name);
  const width = config.phm ? (config.width ?? 0) : (tensor(`${config.downName}.weight`).shape[0] ?? 0);
  if (config.phm && config.width === undefined) {
    throw refused(
      'reduction_factor',
      'no single number',
      'Train a PHM adapter with one reduction_factor for all layers.',
    );
  }
  return { layer: Number(layer), place, path, width, tensor, shared: (name) => find(shared, name) };
}

/** Names of a bottleneck's own tensors under this config. */
function ownNames({ normBefore, downName, scaling, phm }: AdapterHubConfig): string[] {
  const both = (module: string): string[] => [`${module}.weight`, `${module}.bias`];
  const phmNames = (module: string): string[] =>
    phm === undefined ? both(module) : phmShapes(phm, 1, 1, false).map(([name]) => `${module}.${name}`);
  return [
    ...phmNames(downName),
    ...phmNames('adapter_up'),
    ...(normBefore ? [...both('adapter_norm_before'), ...both('adapter_down.0')] : []),
    ...(scaling === 'number' ? [] : ['scaling']),
  ];
}

function sharedNames({ phm }: AdapterHubConfig): string[] {
  if (phm === undefined) return [];
  const weights = phmShapes(phm, 1, 1, true).map(([name]) => name);
  return weights.flatMap((name) =>
    name.startsWith('W') ? [name.replace('W', 'W_down'), name.replace('W', 'W_up')] : [name],
  );
}

/** Shapes of everything that will be read. */
export function checkWidths(
  bottleneck: Bottleneck,
  config: AdapterHubConfig,
  { hiddenSize }: ModelConfig,
  limits: AdapterLimits,
): void {
  const { width, path, tensor, shared } = bottleneck;
  if (width > limits.maxRank) {
    const problem = `its bottleneck ${quoteName(path)} has width ${width}, at most ${limits.maxRank} is allowed`;
    throw wrongTensor(problem, 'Raise --max-lora-rank.');
  }
  if (config.width !== undefined && config.width !== width) {
    const problem = `${quoteName(path)} has width ${width}, reduction_factor gives ${config.width}`;
    throw wrongTensor(problem, 'Config and tensors do not belong together; save them again together.');
  }
  if (config.phm === undefined) {
    checkShape(tensor(`${config.downName}.weight`), [width, hiddenSize]);
    checkShape(tensor(`${config.downName}.bias`), [width]);
    checkShape(tensor('adapter_up.weight'), [hiddenSize, width]);
    checkShape(tensor('adapter_up.bias'), [hiddenSize]);
  } else {
    const { dim } = config.phm;
    if (width % dim !== 0 || hiddenSize % dim !== 0) {
      throw refused('phm_dim', `${dim}, which does not divide ${width} and ${hiddenSize}`, 'Save the adapter again.');
    }
    const sides = [
      ['down', config.downName, hiddenSize, width],
      ['up', 'adapter_up', width, hiddenSize],
    ] as const;
    for (const [side, module, from, to] of sides) {
      for (const [name, shape] of phmShapes(config.phm, from, to, false))
        checkShape(tensor(`${module}.${name}`), shape);
      for (const [name, shape] of phmShapes(config.phm, from, to, true)) {
        checkShape(shared(name.replace('W', `W_${side}`)), shape);
      }
    }
  }
  if (config.normBefore) {
    for (const part of ['weight', 'bias']) checkShape(tensor(`adapter_norm_before.${part}`), [hiddenSize]);
  }
  if (config.scaling !== 'number') checkShape(tensor('scaling'), [config.scaling === 'learned' ? 1 : hiddenSize]);
}

function refuseSeveral(names: ReadonlySet<string>): void {
  if (names.size === 1) return;
  const problem =
    names.size === 0
      ? 'it holds no tensors, so it would be the base under another name'
      : `it holds several adapters (${[...names].slice(0, 4).join(', ')}), and their order is not in the file`;
  throw wrongTensor(problem, 'Save one adapter with save_adapter().');
}

function refuseOthers(group: Group, known: readonly string[], where: string): void {
  for (const [name, tensor] of group) {
    if (known.includes(name)) continue;
    throw wrongTensor(
      `${quoteName(tensor.name)} is no tensor that ${where} has under its config`,
      'Config and tensors do not belong together; save them again together.',
    );
  }
}

function misplaced(id: string): Error {
  const [layer, place] = id.split(' ');
  return refused(
    'leave_out',
    `(or mh_adapter, output_adapter) at odds with the tensors: layer ${layer} has a ${place}_adapter`,
    'It was trained for another base, or config and tensors do not belong together; save them again together.',
  );
}

function twice(first: string, second: string): Error {
  return wrongTensor(`${quoteName(first)} and ${quoteName(second)} are the same tensor`, 'Save the adapter again.');
}

function foreign(name: string): Error {
  return wrongTensor(
    `${quoteName(name)} is no tensor of a bottleneck adapter of AdapterHub`,
    'Save the adapter alone with save_adapter(), without head, fusion and embeddings.',
  );
}
