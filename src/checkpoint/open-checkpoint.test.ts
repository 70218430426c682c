import assert from 'node:assert/strict';
import { cp, mkdtemp, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, beforeEach, test } from 'node:test';

import { SITES } from '../core/model-config.js';
import type { Checkpoint } from './checkpoint.js';
import { openCheckpoint } from './open-checkpoint.js';
import { ggufBytes, text, texts, uint32 } from './testing/container-bytes.js';

/** Tiny models that tools/oracle wrote; see the README there. */
const MODELS = 'test/goldens/models';
const GGUF_TYPES: Readonly<Record<string, string>> = {
  'llama-gqa': 'Q4_0',
  'llama3-bias': 'BF16',
  'llama-yarn': 'F32',
  'qwen2-window': 'Q8_0',
  qwen3: 'Q8_0',
  gemma3: 'Q8_0',
};

let root = '';
let folder = '';
let made = 0;
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-checkpoint-'));
});
beforeEach(async () => {
  made += 1;
  folder = path.join(root, String(made));
  await cp(path.join(MODELS, 'llama-gqa'), folder, { recursive: true });
});
after(() => rm(root, { recursive: true }));

const edit = async (name: string, change: (value: Record<string, unknown>) => void): Promise<void> => {
  const file = path.join(folder, name);
  const value = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
  change(value);
  await writeFile(file, JSON.stringify(value));
};

/** Sites in a fixed order, without what the formats rightly differ in. */
const sites = ({ weights }: Checkpoint): string[] =>
  weights.map(({ layer, site, part, rows, cols }) => `${layer} ${site} ${part} ${rows} ${cols}`).sort();

for (const [name, type] of Object.entries(GGUF_TYPES)) {
  test(`folder and GGUF file of one model agree: ${name}`, async () => {
    const huggingFace = await openCheckpoint(path.join(MODELS, name));
    const gguf = await openCheckpoint(path.join(MODELS, name, 'gguf', `${type}.gguf`));
    assert.deepEqual([huggingFace.format, gguf.format, gguf.fileDtype], ['huggingface', 'gguf', type.toLowerCase()]);
    assert.deepEqual(sites(gguf), sites(huggingFace));
    const { ropes, normEps, layers, attnScale, ...same } = huggingFace.config;
    const { ropes: ggufRopes, normEps: ggufEps, layers: ggufLayers, attnScale: _scale, ...ggufSame } = gguf.config;
    assert.deepEqual(ggufSame, same);
    assert.equal(ggufEps, Math.fround(normEps));
    // GGUF cannot hold Qwen's windows, and the writer leaves them out.
    if (name !== 'qwen2-window') assert.deepEqual(ggufLayers, layers);
    for (const [i, { invFreq, scale }] of ropes.entries()) {
      assert.equal(ggufRopes[i]?.scale, scale);
      invFreq.forEach((value, j) => assert.ok(Math.abs((ggufRopes[i]?.invFreq[j] ?? 0) / value - 1) < 3e-7));
    }
    assert.ok(attnScale > 0 && huggingFace.fingerprint !== gguf.fingerprint);
  });
}

test('a folder gives text, ends, files and a fingerprint that follows the bytes', async () => {
  const first = await openCheckpoint(folder);
  assert.equal(first.path, path.resolve(folder));
  assert.deepEqual(first.files, [path.join(folder, 'model.safetensors')]);
  assert.equal(first.fileDtype, 'bf16');
  assert.ok(first.text.kind === 'huggingface' && first.text.tokenizerJson.startsWith('{'));
  assert.ok(first.text.kind === 'huggingface' && typeof first.text.chatTemplate === 'string');
  assert.match(first.fingerprint, /^[0-9a-f]{64}$/);
  assert.equal((await openCheckpoint(folder)).fingerprint, first.fingerprint);
  const weights = await readFile(path.join(folder, 'model.safetensors'));
  weights[weights.length - 1] = (weights[weights.length - 1] ?? 0) ^ 1;
  await writeFile(path.join(folder, 'model.safetensors'), weights);
  const changed = await openCheckpoint(folder);
  assert.notEqual(changed.fingerprint, first.fingerprint);
  await edit('config.json', (config) => {
    config['rms_norm_eps'] = 1e-4;
  });
  assert.notEqual((await openCheckpoint(folder)).fingerprint, changed.fingerprint);
});

test('shards are read through the index, whose names may not lead out of the folder', async () => {
  await rm(folder, { recursive: true });
  await cp(path.join(MODELS, 'llama3-bias'), folder, { recursive: true });
  const { files, weights, config } = await openCheckpoint(folder);
  assert.equal(files.length, 2);
  assert.deepEqual([...new Set(weights.map(({ file }) => file))].sort(), [0, 1]);
  assert.equal(weights.filter(({ part }) => part === 'bias').length, 14);
  assert.equal(config.tiedHead, false);
  const original = await readFile(path.join(folder, 'model.safetensors.index.json'), 'utf8');
  const first = path.basename(files[0] ?? '');
  const second = path.basename(files[1] ?? '');
  const cases: readonly (readonly [string, RegExp])[] = [
    [
      original.replace(first, `../${first}`),
      /is in "\.\.\/model-00001-of-00002\.safetensors", expected the plain name/,
    ],
    [original.replace(first, second), /holds tensor ".*", which the index puts into model-0000/],
    [
      original.replace('"weight_map": {', `"weight_map": {"extra": "${second}",`),
      /tensor "extra" is not in model-00002/,
    ],
    [
      original.replaceAll(/"lm_head\.weight": "[^"]*",/g, ''),
      /holds tensor "lm_head\.weight", which the index puts into no shard/,
    ],
    ['{}', /expected an object weight_map/],
    [
      original.replace('"weight_map": {', `"weight_map": {"lm_head.weight": "${first}",`),
      /found the key "lm_head\.weight" twice/,
    ],
  ];
  for (const [json, message] of cases) {
    await writeFile(path.join(folder, 'model.safetensors.index.json'), json);
    await assert.rejects(openCheckpoint(folder), { code: 'invalid_model', message });
  }
  await writeFile(path.join(folder, 'model.safetensors.index.json'), original);
  await rm(path.join(folder, second));
  await assert.rejects(openCheckpoint(folder), /model-00002-of-00002\.safetensors cannot be read/);
});

test('sampling defaults and ends come from generation_config.json as they stand', async () => {
  const settings = {
    do_sample: false,
    temperature: 0.6,
    top_k: 20,
    top_p: 0.95,
    min_p: 0,
    repetition_penalty: 1.05,
    max_new_tokens: 512,
    eos_token_id: [5, 2],
    _from_model_config: true,
  };
  await writeFile(path.join(folder, 'generation_config.json'), JSON.stringify(settings));
  const { generation, eosTokenIds } = await openCheckpoint(folder);
  assert.deepEqual(generation, {
    temperature: 0.6,
    topK: 20,
    topP: 0.95,
    minP: 0,
    repetitionPenalty: 1.05,
    maxNewTokens: 512,
  });
  assert.deepEqual(eosTokenIds, [2, 5]);
  await writeFile(path.join(folder, 'generation_config.json'), '{"top_k": -1, "temperature": null}');
  assert.deepEqual((await openCheckpoint(folder)).generation, { topK: 0 });
  const wrong: readonly (readonly [string, RegExp])[] = [
    ['{"temperature": -1}', /generation_config\.json: temperature is -1/],
    ['{"top_p": 1.5}', /generation_config\.json: topP is 1\.5/],
    ['{"top_k": 2.5}', /topK is 2\.5, expected a whole number/],
    ['{"min_p": "x"}', /min_p is "x"/],
    ['{"eos_token_id": 320}', /eos_token_id is 320, expected 0 to 319/],
    ['[]', /generation_config\.json: expected a JSON object/],
  ];
  for (const [json, message] of wrong) {
    await writeFile(path.join(folder, 'generation_config.json'), json);
    await assert.rejects(openCheckpoint(folder), { code: 'invalid_model', message });
  }
});

test('the chat template is found where each generation of tools puts it', async () => {
  const template = async (): Promise<string | undefined> => (await openCheckpoint(folder)).text.chatTemplate;
  const set = (value: unknown): Promise<void> =>
    edit('tokenizer_config.json', (config) => {
      config['chat_template'] = value;
    });
  await set('one');
  assert.equal(await template(), 'one');
  await set([
    { name: 'tool_use', template: 'tools' },
    { name: 'default', template: 'two' },
  ]);
  assert.equal(await template(), 'two');
  await set([{ name: 'tool_use', template: 'tools' }]);
  assert.equal(await template(), undefined);
  await set(7);
  await assert.rejects(openCheckpoint(folder), /chat_template is neither a string nor a list/);
  await writeFile(path.join(folder, 'chat_template.json'), '{"chat_template": "three"}');
  assert.equal(await template(), 'three');
  await writeFile(path.join(folder, 'chat_template.jinja'), 'four');
  assert.equal(await template(), 'four');
});

test('a path that holds no model is refused with the mend', async () => {
  const empty = path.join(root, 'empty');
  await mkdir(empty);
  await assert.rejects(openCheckpoint(path.join(root, 'absent')), {
    code: 'invalid_model',
    message: /does not exist or cannot be read\. Check the path\./,
  });
  await assert.rejects(openCheckpoint(empty), /holds no config\.json and 0 GGUF files/);
  await assert.rejects(
    openCheckpoint(path.join(folder, 'config.json')),
    /is not a GGUF file.*give the folder that holds config\.json/,
  );
  await rename(path.join(folder, 'model.safetensors'), path.join(folder, 'pytorch_model.bin'));
  await assert.rejects(
    openCheckpoint(folder),
    /neither model\.safetensors nor .*Pickle files \(\.bin, \.pt\) are never read/,
  );
  await cp(path.join(folder, 'gguf', 'Q8_0.gguf'), path.join(empty, 'a.gguf'));
  assert.equal((await openCheckpoint(empty)).format, 'gguf');
  await cp(path.join(folder, 'gguf', 'Q8_0.gguf'), path.join(empty, 'b.gguf'));
  await assert.rejects(openCheckpoint(empty), /2 GGUF files, expected .* exactly one/);
});

test('a folder without tokenizer.json, or with a broken small file, is refused by name', async () => {
  await writeFile(path.join(folder, 'tokenizer_config.json'), '{"a": 1, "a": 2}');
  await assert.rejects(openCheckpoint(folder), /tokenizer_config\.json: found the key "a" twice/);
  await rm(path.join(folder, 'tokenizer.json'));
  await assert.rejects(openCheckpoint(folder), /has no tokenizer\.json.*save_pretrained/);
  await writeFile(path.join(folder, 'config.json'), '{"model_type": NaN}');
  await assert.rejects(openCheckpoint(folder), /config\.json: expected a JSON value at line 1/);
});

test('a GGUF file needs its embedding and its tokens', async () => {
  const file = path.join(folder, 'x.gguf');
  const head = [['general.architecture', text('llama')]] as const;
  await writeFile(file, ggufBytes({ metadata: head }));
  await assert.rejects(openCheckpoint(file), /The GGUF file has no tensor "token_embd\.weight"/);
  const tensors = [{ name: 'token_embd.weight', dims: [4, 2], type: 0, offset: 0 }];
  await writeFile(file, ggufBytes({ metadata: head, tensors, data: Buffer.alloc(32) }));
  await assert.rejects(openCheckpoint(file), /has 0 tokens in tokenizer\.ggml\.tokens, expected 1 to 2/);
  const tokens = ['tokenizer.ggml.tokens', texts(['a', 'b', 'c'])] as const;
  await writeFile(file, ggufBytes({ metadata: [...head, tokens], tensors, data: Buffer.alloc(32) }));
  await assert.rejects(openCheckpoint(file), /has 3 tokens in tokenizer\.ggml\.tokens, expected 1 to 2/);
  const ok = ['tokenizer.ggml.tokens', texts(['a', 'b'])] as const;
  const odd = [...tensors, { name: 'rope_freqs.weight', dims: [2], type: 1, offset: 32 }];
  await writeFile(file, ggufBytes({ metadata: [...head, ok], tensors: odd, data: Buffer.alloc(64) }));
  await assert.rejects(openCheckpoint(file), /"rope_freqs\.weight" of type f16, expected F32/);
  await writeFile(
    file,
    ggufBytes({ metadata: [...head, ok, ['llama.block_count', uint32(1)]], tensors, data: Buffer.alloc(32) }),
  );
  await assert.rejects(openCheckpoint(file), /"llama\.embedding_length" is missing/);
});

test('GGUF: ends of sequence, turn and message, and recommended sampling', async () => {
  const { eosTokenIds, weights, text: source } = await openCheckpoint(path.join(folder, 'gguf', 'Q8_0.gguf'));
  assert.deepEqual(eosTokenIds, [2]);
  assert.ok(source.kind === 'gguf' && Array.isArray(source.metadata.get('tokenizer.ggml.tokens')));
  assert.deepEqual(
    weights
      .filter(({ layer, permutedHeads }) => layer === 0 && permutedHeads > 0)
      .map(({ site, permutedHeads }) => [site, permutedHeads]),
    [
      [SITES.q, 4],
      [SITES.k, 2],
    ],
  );
});
