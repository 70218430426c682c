/**
 * Fuzz targets of whole files and folders on disk: adapter folders, GGUF adapters, pickles and the converters of pickles. What a
 * converter writes must load like any other adapter, or be refused like one.
 */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { openAdapterFolder } from '../../src/adapters/adapter-folder.js';
import type { AdapterFolder } from '../../src/adapters/adapter-folder.js';
import { compileAdapter } from '../../src/adapters/compile-adapter.js';
import { convertComposableSft } from '../../src/adapters/convert/composable-sft.js';
import type { Conversion } from '../../src/adapters/convert/converted-folder.js';
import { convertAdapterHub, convertPeftPickle } from '../../src/adapters/convert/peft-pickle.js';
import { adapterVersion } from '../../src/adapters/version.js';
import { openStoredZip } from '../../src/checkpoint/stored-zip.js';
import { openTorchFile } from '../../src/checkpoint/torch-file.js';
import { zipBytes } from '../../src/checkpoint/testing/zip.js';
import { TorchTensor } from '../../src/checkpoint/pickle-globals.js';
import type { PickleValue } from '../../src/checkpoint/pickle-globals.js';
import { CONFIG, goldenFolder, goldenSeed, MODEL, modelOf, TENSOR_FILES } from './adapter-input.js';
import { checkedCompile, LIMITS, openBase } from './adapter-rules.js';
import type { FuzzInput, FuzzTarget } from './harness.js';
import { mutateAdapter, mutateFiles } from './mutate-adapter.js';
import { mutate, pick, pickFrom } from './mutate.js';
import type { Random } from './mutate.js';
import { composedPickle } from './pickles.js';

const BASE_FINGERPRINT = 'base';
/** Members of a zip are inputs of their own, so that mutations reach what is in them. */
const MEMBER = 'zip/';

/** Writes the files into a folder that is gone afterwards; members of a zip are put together to the file `zipName`. */
async function onDisk<T>(input: FuzzInput, zipName: string, run: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(path.join(tmpdir(), 'manyfold-fuzz-'));
  try {
    const adapter = path.join(folder, 'adapter');
    await mkdir(adapter);
    const members = [...input].filter(([name]) => name.startsWith(MEMBER));
    const zip = zipBytes(members.map(([name, data]) => ({ name: name.replace(MEMBER, 'archive/'), data })));
    const files = [...input].filter(([name]) => name !== MODEL && !name.startsWith(MEMBER));
    for (const [name, bytes] of members.length === 0 ? files : [...files, [zipName, zip] as const]) {
      await mkdir(path.dirname(path.join(adapter, name)), { recursive: true });
      await writeFile(path.join(adapter, name), bytes);
    }
    return await run(adapter);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** As the engine loads a published folder. */
async function loaded(folder: string, model: string): Promise<string> {
  const base = await openBase(model);
  const options = { limits: LIMITS, root: folder, keepTensors: true };
  const open = await openAdapterFolder(folder, options);
  const version = await adapterVersion(open, BASE_FINGERPRINT).finally(() => open.close());
  await compileAdapter({ version, directory: folder }, { ...base.context, baseFingerprint: BASE_FINGERPRINT });
  const again = await openAdapterFolder(folder, options);
  try {
    return await checkedCompile(await inMemory(again), model);
  } finally {
    await again.close();
  }
}

async function inMemory(folder: AdapterFolder): Promise<Parameters<typeof checkedCompile>[0]> {
  const kept = new Map<string, Uint8Array>();
  for (const name of folder.tensors.keys()) kept.set(name, await folder.read(name));
  const bytes = (name: string): Uint8Array => Uint8Array.from(kept.get(name) ?? []);
  return { config: folder.config, tensors: folder.tensors, bytes };
}

/** Now and then a file goes, or lies under another name. */
function mutateFolder(seed: FuzzInput, other: FuzzInput, random: Random): FuzzInput {
  const input = new Map(random() < 0.7 ? mutateAdapter(seed, other, random) : mutateFiles(seed, other, random));
  if (random() > 0.1) return input;
  const names = [...input.keys()].filter((name) => name !== MODEL);
  const name = names[pick(random, names.length)] ?? '';
  const bytes = input.get(name) ?? new Uint8Array(0);
  if (random() < 0.5) input.delete(name);
  const elsewhere = ['adapter_model.bin', ...TENSOR_FILES, 'adapter.gguf', 'initial_adapter/adapter_model.safetensors'];
  return input.set(pickFrom(random, [CONFIG, ...elsewhere, 'chat_template.jinja', 'tokenizer.json']), bytes);
}

/** With the factors that its training began with, in a folder inside. */
function pissaFolder(): FuzzInput {
  const seed = new Map(goldenSeed('llama-gqa/lora'));
  const config = Buffer.from(seed.get(CONFIG) ?? []).toString('utf8');
  seed.set(CONFIG, Buffer.from(config.replace('"init_lora_weights": true', '"init_lora_weights": "pissa"')));
  return seed.set(`initial_adapter/${TENSOR_FILES[0]}`, seed.get(TENSOR_FILES[0]) ?? new Uint8Array(0));
}

const adapterFolder: FuzzTarget = {
  name: 'adapter-folder',
  seeds: () => [
    ...['llama-gqa/lora', 'llama-gqa/mlx-lora', 'llama-gqa/vera', 'llama-gqa/prompt-tuning'].map(goldenSeed),
    pissaFolder(),
  ],
  codes: ['invalid_adapter', 'forbidden'],
  mutate: mutateFolder,
  run: (input) => onDisk(input, 'adapter_model.bin', (folder) => loaded(folder, modelOf(input))),
};

const ggufAdapter: FuzzTarget = {
  name: 'gguf-adapter',
  seeds: () => Promise.all(['llama-gqa/gguf-lora', 'gemma3/gguf-lora'].map((kind) => filesOf(kind, ['adapter.gguf']))),
  codes: ['invalid_adapter'],
  mutate: mutateFiles,
  run: (input) => onDisk(input, '', (folder) => loaded(folder, modelOf(input))),
};

const torchFile: FuzzTarget = {
  name: 'torch-file',
  seeds: async () => [
    await unzipped('llama-gqa/composable-sft', 'pytorch_diff.bin', []),
    await unzipped('llama-gqa/sft', 'adapter_model.bin', []),
    new Map([['adapter_model.bin', await readFile(path.join(goldenFolder('llama-gqa/sft'), 'adapter_model.bin'))]]),
  ],
  codes: ['invalid_adapter'],
  mutate: mutateTorchZip,
  run: (input) =>
    onDisk(input, 'adapter_model.bin', async (folder) => {
      const file = await openTorchFile(path.join(folder, 'adapter_model.bin'), 'adapter_model.bin');
      try {
        const tensors = tensorsIn(file.root);
        for (const tensor of tensors) await file.read(tensor);
        return tensors.length === 0 ? 'read, without tensors' : 'read';
      } finally {
        await file.close();
      }
    }),
};

/** Every tensor that the value holds, each object once: a pickle may hold itself. */
function tensorsIn(value: PickleValue, seen = new Set<unknown>()): TorchTensor[] {
  if (typeof value !== 'object' || value === null || seen.has(value)) return [];
  seen.add(value);
  if (value instanceof TorchTensor) return [value];
  if (value instanceof Map) return [...value.values()].flatMap((item) => tensorsIn(item, seen));
  return Array.isArray(value) ? value.flatMap((item: PickleValue) => tensorsIn(item, seen)) : [];
}

/** What lies beside the pickle in torch's zip matters little: mostly the pickle itself is changed. */
function mutateTorchZip(seed: FuzzInput, other: FuzzInput, random: Random): FuzzInput {
  const pickle = seed.get('zip/data.pkl');
  if (pickle === undefined || random() < 0.3) return mutateFiles(seed, other, random);
  return new Map([...seed, ['zip/data.pkl', mutate(pickle, other.get('zip/data.pkl') ?? pickle, random)]]);
}

function converter(
  name: string,
  file: string,
  seeds: FuzzTarget['seeds'],
  convert: (folder: string, out: string) => Promise<Conversion>,
): FuzzTarget {
  return {
    name,
    seeds,
    codes: ['invalid_adapter'],
    mutate: mutateTorchZip,
    run: (input) =>
      onDisk(input, file, async (folder) => {
        const { directory } = await convert(folder, path.join(folder, '..', 'out'));
        return loaded(directory, modelOf(input));
      }),
  };
}

const CONVERTERS: readonly FuzzTarget[] = [
  {
    ...converter(
      'convert-composable-sft',
      'pytorch_diff.bin',
      async () => [
        await unzipped('llama-gqa/composable-sft', 'pytorch_diff.bin', []),
        await unzipped('llama3-bias/composable-sft', 'pytorch_diff.bin', []),
      ],
      (folder, out) => convertComposableSft(path.join(folder, 'pytorch_diff.bin'), out),
    ),
    mutate: (seed, other, random) => (random() < 0.7 ? composedPickle(random) : mutateTorchZip(seed, other, random)),
  },
  converter(
    'convert-pickle',
    'adapter_model.bin',
    async () => [await unzipped('llama-gqa/sft', 'adapter_model.bin', [CONFIG])],
    convertPeftPickle,
  ),
  converter(
    'convert-adapterhub',
    'pytorch_adapter.bin',
    () =>
      ['llama-gqa/adapterhub-norm', 'llama-gqa/adapterhub-compacter'].map((kind) => {
        const { [TENSOR_FILES[0]]: tensors, ...others } = Object.fromEntries(goldenSeed(kind));
        return new Map([...Object.entries(others), ['adapter.safetensors', tensors ?? new Uint8Array(0)]]);
      }),
    convertAdapterHub,
  ),
];

export const FILE_TARGETS: readonly FuzzTarget[] = [adapterFolder, ggufAdapter, torchFile, ...CONVERTERS];

async function filesOf(golden: string, names: readonly string[]): Promise<FuzzInput> {
  const files = await Promise.all(
    names.map(async (name) => [name, await readFile(path.join(goldenFolder(golden), name))] as const),
  );
  return new Map<string, Uint8Array>([[MODEL, Buffer.from(golden.split('/')[0] ?? '')], ...files]);
}

/** The members of a golden's zip, and other files beside it. */
async function unzipped(golden: string, file: string, beside: readonly string[]): Promise<FuzzInput> {
  const zip = await openStoredZip(path.join(goldenFolder(golden), file));
  try {
    const members = new Map<string, Uint8Array>();
    for (const name of zip.sizes.keys()) {
      members.set(name.replace(/^[^/]+\//, 'zip/'), (await zip.read(name)) ?? new Uint8Array(0));
    }
    return new Map([...(await filesOf(golden, beside)), ...members]);
  } finally {
    await zip.close();
  }
}
