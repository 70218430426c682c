/** What createEngine and dequantize refuse: options, models, tensors and files that do not fit. */
import assert from 'node:assert/strict';
import { appendFileSync, truncateSync, writeFileSync } from 'node:fs';
import { after, describe, test } from 'node:test';
import { SITES } from '../core/model-config.js';
import type { LoadOptions, WeightEntry } from './binding-types.js';
import { loadNative } from './load-binding.js';
import { refusal } from './testing/refusal.js';
import { MAX_ROWS, tinyModel, withFields } from './testing/tiny-engine.js';

const native = loadNative();

describe('createEngine', () => {
  const { options, remove } = tinyModel();
  after(remove);

  async function refused(fields: Record<string, unknown>, code: string, ...parts: string[]): Promise<void> {
    await assert.rejects(async () => native.createEngine(withFields(options, fields)), refusal(code, ...parts));
  }
  const withModel = (fields: Record<string, unknown>) => ({ model: withFields(options.model, fields) });
  const withWeight = (site: keyof typeof SITES, fields: Partial<Record<keyof WeightEntry, unknown>>) => ({
    weights: options.weights.map((entry) => (entry.site === SITES[site] ? withFields(entry, fields) : entry)),
  });

  test('wrong types of options', async () => {
    await assert.rejects(
      async () => native.createEngine(JSON.parse('null') as LoadOptions),
      refusal('invalid_argument'),
    );
    await refused({ dtype: 'f64' }, 'invalid_argument', 'dtype', "'f64'");
    await refused({ kvCacheDtype: 'int4' }, 'invalid_argument', 'kvCacheDtype', "'int4'", 'int8');
    await refused({ isa: 7 }, 'invalid_argument', 'isa', 'number 7');
    await refused({ isa: 'mmx' }, 'unavailable', 'isa', "'mmx'", 'scalar');
    await refused({ backend: 'tpu' }, 'invalid_argument', 'backend', "'tpu'");
    await refused({ files: 'x' }, 'invalid_argument', 'files', 'an array');
    await refused({ threads: 1.5 }, 'invalid_argument', 'threads', '1.5');
    await refused({ weights: [null] }, 'invalid_argument', 'weights[0]', 'null');
    const progress = JSON.parse('5') as () => void;
    await assert.rejects(async () => native.createEngine(options, progress), refusal('invalid_argument', 'onProgress'));
  });

  test('a backend that this build lacks', async () => {
    if (native.info().backends.includes('cuda')) return assert.ok(native.info().backends.includes('cpu'));
    await refused({ backend: 'cuda' }, 'unavailable', 'cuda');
  });

  test('sizes out of range', async () => {
    await refused({ kvPages: 0 }, 'invalid_argument', 'kvPages');
    await refused({ kvPages: 2 ** 31 - 1 }, 'out_of_memory', 'kvPages');
    await refused({ maxRows: 0 }, 'invalid_argument', 'maxRows');
    await refused({ maxEntries: MAX_ROWS + 1 }, 'invalid_argument', 'maxEntries');
    await refused({ threads: -1 }, 'invalid_argument', 'threads');
  });

  test('a model that does not hold together', async () => {
    await refused(withModel({ vocabSize: 0 }), 'invalid_argument', 'vocabSize');
    await refused(withModel({ numHeads: 3, numKvHeads: 2 }), 'invalid_argument', 'numKvHeads');
    await refused(withModel({ headDim: 7 }), 'invalid_argument', 'headDim');
    await refused(withModel({ attnScale: Number.NaN }), 'invalid_argument', 'attnScale');
    await refused(withModel({ layerRope: Int32Array.of(0, 1) }), 'invalid_argument', 'layerRope[1]');
    await refused(withModel({ layerRope: Int32Array.of(0) }), 'invalid_argument', 'layerRope');
    await refused(withModel({ ropeInvFreq: [new Float32Array(3)] }), 'invalid_argument', 'ropeInvFreq[0]');
    await refused(withModel({ layerWindow: new Float32Array(2) }), 'invalid_argument', 'layerWindow', 'Float32Array');
    await refused(withModel({ tiedHead: 1 }), 'invalid_argument', 'tiedHead');
    await refused(withModel({ activation: 2 }), 'invalid_argument', 'activation');
  });

  test('tensors that do not fit', async () => {
    await refused(withWeight('gate', { rows: 23 }), 'invalid_argument', 'layer 0 gate weight', '[24, 16]', '[23, 16]');
    await refused(withWeight('gate', { byteLength: 5 }), 'invalid_argument', 'layer 0 gate weight', '1536');
    await refused(withWeight('gate', { offset: 2 ** 53 }), 'invalid_argument', 'layer 0 gate weight');
    await refused(withWeight('gate', { offset: -1 }), 'invalid_argument', 'offset');
    await refused(withWeight('gate', { dtype: 'q4_k', byteLength: 144 }), 'invalid_argument', 'multiple of 256');
    await refused(withWeight('gate', { file: 1 }), 'invalid_argument', 'file');
    await refused(withWeight('gate', { site: SITES.up }), 'invalid_argument', 'layer 0 up', 'a second');
    await refused(withWeight('gate', { site: SITES.qNorm }), 'invalid_argument', 'qNorm');
    await refused(withWeight('gate', { site: SITES.attention }), 'invalid_argument', 'attention', 'no weight');
    await refused(withWeight('gate', { site: 19 }), 'invalid_argument', 'site');
    await refused(withWeight('gate', { layer: 2 }), 'invalid_argument', 'layer 2');
    await refused(withWeight('gate', { part: 'both' }), 'invalid_argument', 'part');
    await refused(withWeight('gate', { permutedHeads: 2 }), 'invalid_argument', 'permutedHeads');
    await refused(withWeight('q', { permutedHeads: 3 }), 'invalid_argument', 'permutedHeads');
    await refused(withWeight('q', { add: Number.POSITIVE_INFINITY }), 'invalid_argument', 'add');
    await refused({ weights: options.weights.slice(1) }, 'invalid_argument', 'embedding', 'found none');
    const head = withFields(options.weights[0] ?? {}, { site: SITES.head });
    await refused({ weights: [...options.weights, head] }, 'invalid_argument', 'head', 'tied');
  });

  test('files that cannot be read', async () => {
    await refused({ files: ['/nonexistent/x'] }, 'io', '/nonexistent/x');
    await refused({ files: ['/'] }, 'io', 'regular file');
  });

  test('a file that is too short, and values that are not finite', async () => {
    const broken = tinyModel();
    const [path = ''] = broken.options.files;
    truncateSync(path, 100);
    await assert.rejects(
      native.createEngine(broken.options),
      refusal('invalid_argument', 'embedding weight', 'only 100'),
    );
    writeFileSync(path, Buffer.alloc(100_000, 0xff));
    await assert.rejects(native.createEngine(broken.options), refusal('invalid_argument', 'embedding weight', 'NaN'));
    broken.remove();
  });

  test('progress comes in order and ends with all bytes; what it throws rejects the promise', async () => {
    const seen: [number, number][] = [];
    const engine = await native.createEngine(options, (done, total) => seen.push([done, total]));
    engine.dispose();
    const total = options.weights.reduce((sum, entry) => sum + entry.byteLength, 0);
    assert.deepEqual(seen.at(-1), [total, total]);
    assert.ok(seen.length <= 12);
    assert.deepEqual(
      [...seen].sort(([a], [b]) => a - b),
      seen,
    );
    const thrown = new Error('enough');
    const stop = () => {
      throw thrown;
    };
    await assert.rejects(native.createEngine(options, stop), (error) => error === thrown);
  });
});

test('dequantize wants whole blocks', () => {
  const bytes = new Uint8Array(34);
  assert.deepEqual(native.dequantize('q8_0', bytes, 32), new Float32Array(32));
  assert.throws(() => native.dequantize('q8_0', bytes, 31), refusal('invalid_argument', 'multiple of 32'));
  assert.throws(() => native.dequantize('q8_0', bytes, 64), refusal('invalid_argument', 'q8_0'));
  assert.throws(() => native.dequantize('q8_0', bytes, -1), refusal('invalid_argument', 'count'));
  assert.throws(
    () => native.dequantize(JSON.parse('"q3_k"') as 'q4_k', bytes, 32),
    refusal('invalid_argument', 'dtype'),
  );
});

test('a file that grows is still read by its ranges', async () => {
  const { options, remove } = tinyModel();
  appendFileSync(options.files[0] ?? '', Buffer.alloc(64));
  const engine = await native.createEngine(options);
  assert.equal(engine.info().isa, 'scalar');
  engine.dispose();
  remove();
});
