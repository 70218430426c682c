import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { ManyfoldError } from '../core/errors.js';
import { DEFAULT_ADAPTER_LIMITS, isAdapterFolder, openAdapterFolder } from './adapter-folder.js';
import { resolveContained } from './contained-path.js';
import { ggufBytes } from './testing/gguf-file.js';
import { PLAIN_CONFIG, safetensorsBytes, writeAdapter } from './testing/peft-folder.js';
import { adapterVersion, canonicalJson } from './version.js';

let root = '';
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-folder-'));
});
after(() => rm(root, { recursive: true, force: true }));

const OPEN = { limits: DEFAULT_ADAPTER_LIMITS, keepTensors: true };

async function refusal(
  directory: string,
  options: Parameters<typeof openAdapterFolder>[1] = OPEN,
): Promise<ManyfoldError> {
  try {
    await (await openAdapterFolder(directory, options)).close();
  } catch (error) {
    assert.ok(error instanceof ManyfoldError, String(error));
    return error;
  }
  return assert.fail(`${directory} should have been refused`);
}

test('a folder gives its config and its tensors, the same bytes each time', async () => {
  const folder = await openAdapterFolder(await writeAdapter(path.join(root, 'good')), OPEN);
  assert.equal(folder.config['r'], 2);
  assert.equal(folder.tensors.size, 4);
  const name = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight';
  const bytes = await folder.read(name);
  assert.equal(bytes.byteLength, 2 * 8 * 4);
  assert.equal(await folder.read(name), bytes);
  await folder.close();
});

test('hostile and broken folders are refused with the file and the mend', async () => {
  const none = await refusal(path.join(root, 'absent'));
  assert.match(none.message, /holds no readable adapter_config\.json .*PEFT adapter folder/);

  const pickle = path.join(root, 'pickle');
  await mkdir(pickle);
  await writeFile(path.join(pickle, 'adapter_config.json'), JSON.stringify(PLAIN_CONFIG));
  await writeFile(path.join(pickle, 'adapter_model.bin'), 'PK');
  assert.match(
    (await refusal(pickle)).message,
    /adapter_model\.bin, a Python pickle.*manyfold adapters convert pickle/,
  );

  const configs: Record<string, string> = {
    duplicate: '{"r": 1, "r": 2}',
    list: '[1]',
    deep: '{"a":'.repeat(20) + '1' + '}'.repeat(20),
    nan: '{"r": NaN}',
    bom: '\ufeff{}',
    huge: `{"x": "${'x'.repeat(1_000_001)}"}`,
  };
  for (const [name, text] of Object.entries(configs)) {
    const directory = await writeAdapter(path.join(root, `config-${name}`));
    await writeFile(path.join(directory, 'adapter_config.json'), text);
    const error = await refusal(directory);
    assert.equal(error.code, 'invalid_adapter', name);
    assert.match(error.message, /adapter_config\.json/, name);
  }

  const cut = await writeAdapter(path.join(root, 'cut'));
  await truncate(path.join(cut, 'adapter_model.safetensors'), 300);
  assert.equal((await refusal(cut)).code, 'invalid_adapter');
});

test('a byte cap is checked on the header, before anything is read', async () => {
  const directory = await writeAdapter(path.join(root, 'large'));
  const error = await refusal(directory, { ...OPEN, limits: { ...DEFAULT_ADAPTER_LIMITS, maxBytes: 100 } });
  assert.match(error.message, /holds 224 bytes of tensors, at most 100 are allowed/);
});

test('a link that leaves the root is refused; one that the operator named is followed', async () => {
  const outside = await writeAdapter(path.join(root, 'outside', 'adapter'));
  const inside = path.join(root, 'store', 'linked');
  await mkdir(inside, { recursive: true });
  for (const name of ['adapter_config.json', 'adapter_model.safetensors']) {
    await symlink(path.join(outside, name), path.join(inside, name));
  }
  assert.equal((await refusal(inside, { ...OPEN, root: path.join(root, 'store') })).code, 'forbidden');
  await (await openAdapterFolder(inside, OPEN)).close();
});

test('paths of requests stay under the root', async () => {
  const store = path.join(root, 'paths');
  const adapter = await writeAdapter(path.join(store, 'team', 'support'));
  await mkdir(path.join(root, 'paths-old'), { recursive: true });
  await symlink(path.join(root, 'paths-old'), path.join(store, 'escape'));
  assert.equal(await resolveContained(store, 'team/support'), adapter);
  assert.equal(await resolveContained(store, adapter), adapter);
  const cases: [string, string][] = [
    ['..', 'forbidden'],
    ['../paths-old', 'forbidden'],
    ['team/../../paths-old', 'forbidden'],
    ['/etc', 'forbidden'],
    ['escape', 'forbidden'],
    ['', 'forbidden'],
    ['a\0b', 'forbidden'],
    ['team/missing', 'not_found'],
  ];
  for (const [given, code] of cases) {
    await assert.rejects(
      resolveContained(store, given),
      (error) => error instanceof ManyfoldError && error.code === code,
      given,
    );
  }
});

test('a version is the content: bytes, config and base, and nothing else', async () => {
  async function versionOf(directory: string, base = 'b'): Promise<string> {
    const folder = await openAdapterFolder(directory, { ...OPEN, keepTensors: false });
    try {
      return await adapterVersion(folder, base);
    } finally {
      await folder.close();
    }
  }
  const original = await writeAdapter(path.join(root, 'v1'));
  const version = await versionOf(original);
  assert.match(version, /^sha256:[0-9a-f]{64}$/);
  assert.equal(await versionOf(await writeAdapter(path.join(root, 'v1-copy'))), version);
  assert.notEqual(await versionOf(original, 'other base'), version);
  assert.notEqual(await versionOf(await writeAdapter(path.join(root, 'v2'), { config: { lora_alpha: 5 } })), version);

  const [name, other] = ['base_model.model.a', 'base_model.model.b'];
  const swapped = [
    { [name]: [1, 2], [other]: [3, 4] },
    { [name]: [1, 3], [other]: [2, 4] },
  ].map(async (values, i) => {
    const tensors = Object.fromEntries(
      Object.entries(values).map(([key, v]) => [key, { dtype: 'F32', shape: [2], values: v } as const]),
    );
    return versionOf(await writeAdapter(path.join(root, `swap${i}`), { tensors }));
  });
  assert.equal(new Set(await Promise.all(swapped)).size, 2);

  const templated = await writeAdapter(path.join(root, 'v1-template'));
  await writeFile(path.join(templated, 'chat_template.jinja'), '{{ messages }}');
  assert.notEqual(await versionOf(templated), version, 'another chat template is another version');

  const moved = path.join(root, 'v1-moved');
  await rename(original, moved);
  assert.equal(await versionOf(moved), version);
});

test('canonical JSON does not depend on the order of keys', () => {
  assert.equal(canonicalJson({ b: [1, { d: null, c: 'x' }], a: true }), '{"a":true,"b":[1,{"c":"x","d":null}]}');
});

test('the tensor order of the file does not change the version', async () => {
  const a = { dtype: 'F32', shape: [1], values: [1] } as const;
  const b = { dtype: 'F32', shape: [1], values: [2] } as const;
  const versions: string[] = [];
  for (const tensors of [
    { a, b },
    { b, a },
  ]) {
    const directory = await writeAdapter(path.join(root, 'order'), { tensors });
    await writeFile(path.join(directory, 'adapter_model.safetensors'), safetensorsBytes(tensors));
    const folder = await openAdapterFolder(directory, OPEN);
    versions.push(await adapterVersion(folder, 'base'));
    await folder.close();
  }
  assert.equal(versions[0], versions[1]);
});

test('files of MLX-LM and llama.cpp, and initial adapters, are held to the same rules', async () => {
  const outside = path.join(root, 'outside-containers');
  const inside = path.join(root, 'inside-containers');
  await mkdir(outside, { recursive: true });
  await mkdir(path.join(inside, 'mlx'), { recursive: true });
  await mkdir(path.join(inside, 'gguf'));
  const tensors = safetensorsBytes({ x: { dtype: 'F32', shape: [4] } });
  await writeFile(path.join(outside, 'adapters.safetensors'), tensors);
  await writeFile(path.join(outside, 'a.gguf'), ggufBytes({}, { x: { shape: [4], values: [1, 2, 3, 4] } }));
  await writeFile(path.join(inside, 'mlx', 'adapter_config.json'), '{}');
  await symlink(path.join(outside, 'adapters.safetensors'), path.join(inside, 'mlx', 'adapters.safetensors'));
  await symlink(path.join(outside, 'a.gguf'), path.join(inside, 'gguf', 'a.gguf'));
  await writeAdapter(path.join(inside, 'peft'), { config: { init_lora_weights: 'pissa' } });
  await mkdir(path.join(outside, 'pissa_init'));
  await writeFile(path.join(outside, 'pissa_init', 'adapter_model.safetensors'), tensors);
  await symlink(path.join(outside, 'pissa_init'), path.join(inside, 'peft', 'pissa_init'));
  const names = { mlx: 'x', gguf: 'x', peft: 'pissa_init/x' };
  for (const [place, name] of Object.entries(names)) {
    const directory = path.join(inside, place);
    assert.equal((await refusal(directory, { ...OPEN, root: inside })).code, 'forbidden', place);
    const small = { limits: { ...DEFAULT_ADAPTER_LIMITS, maxBytes: 15 }, keepTensors: true };
    assert.match((await refusal(directory, small)).message, /bytes of tensors, at most 15 are allowed/);
    // Without a root the operator named the folder.
    const folder = await openAdapterFolder(directory, OPEN);
    assert.equal((await folder.read(name)).byteLength, 16, place);
    await folder.close();
  }
});

test('a folder is an adapter by its config or its only GGUF file', () => {
  assert.ok(isAdapterFolder(['adapter_config.json']) && isAdapterFolder(['a.gguf', 'README.md']));
  assert.ok(!isAdapterFolder(['a.gguf', 'b.gguf']) && !isAdapterFolder(['model.safetensors']));
});
