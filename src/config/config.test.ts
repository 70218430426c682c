import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { ManyfoldError } from '../core/errors.js';
import { formatByteSize, parseByteSize } from './byte-size.js';
import { isLoopback } from './checks.js';
import { describeOptions, printConfig } from './describe.js';
import { loadConfig } from './load-config.js';
import type { LoadOptions } from './load-config.js';
import { envOf, flagOf, OPTION_KEYS, optionOf, SECTIONS } from './options.js';
import type { ResolvedConfig } from './resolved-config.js';
import { closest, editDistance } from './suggest.js';

interface Given {
  readonly argv?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly files?: Readonly<Record<string, string>>;
  readonly options?: LoadOptions;
}

function load({ argv = [], env = {}, files = {}, options = {} }: Given): ResolvedConfig {
  const readFile = (path: string): string => {
    const content = files[path];
    if (content === undefined) throw new Error('no such file');
    return content;
  };
  return loadConfig(argv, { HOME: '/h/me', ...env }, readFile, options);
}

function refusal(given: Given): string {
  try {
    load(given);
  } catch (error) {
    assert.ok(error instanceof ManyfoldError);
    assert.equal(error.code, 'invalid_config');
    return error.message;
  }
  return assert.fail('expected a refusal');
}

test('defaults: a loopback server of the built-in model', () => {
  const config = load({});
  assert.equal(config.model.model, undefined);
  assert.equal(config.model.dtype, 'bf16');
  assert.equal(config.server.host, '127.0.0.1');
  assert.equal(config.server.port, 8000);
  assert.equal(config.server.shutdownTimeoutMs, 30_000);
  assert.equal(config.engine.kvBytes, 2 ** 30);
  assert.equal(config.engine.maxModelLen, undefined);
  assert.equal(config.model.cacheDir, '/h/me/.cache/manyfold');
  assert.deepEqual(config.server.apiKeys, []);
  assert.deepEqual(config.adapters, { modules: [], directory: undefined, maxRank: 512 });
  for (const key of OPTION_KEYS) assert.equal(config.origins[key].kind, 'default');
});

test('precedence: flag over environment over file over default, with origins', () => {
  const files = { 'm.yaml': '# ours\nport: 1\nthreads: 1\nmax-queue: 1\n' };
  const env = { MANYFOLD_PORT: '2', MANYFOLD_THREADS: '2' };
  const config = load({ argv: ['--config', 'm.yaml', '--port=3'], env, files });
  assert.equal(config.server.port, 3);
  assert.equal(config.engine.threads, 2);
  assert.equal(config.engine.maxQueue, 1);
  assert.deepEqual(config.origins.port, { kind: 'flag', name: '--port' });
  assert.deepEqual(config.origins.threads, { kind: 'env', name: 'MANYFOLD_THREADS' });
  assert.deepEqual(config.origins.maxQueue, { kind: 'file', name: 'm.yaml:4' });
  assert.equal(config.origins.dtype.kind, 'default');
});

test('MANYFOLD_CONFIG names the file, --config wins over it', () => {
  const files = { 'a.yaml': 'port: 1', 'b.yaml': 'port: 2' };
  assert.equal(load({ env: { MANYFOLD_CONFIG: 'a.yaml' }, files }).server.port, 1);
  assert.equal(load({ argv: ['--config=b.yaml'], env: { MANYFOLD_CONFIG: 'a.yaml' }, files }).server.port, 2);
});

test('the result is frozen all the way down', () => {
  const config = load({ argv: ['--adapter', 'a=./a'] });
  assert.throws(() => Object.assign(config.server, { port: 1 }), TypeError);
  assert.throws(() => Object.assign(config.adapters.modules, { 0: 1 }), TypeError);
  assert.throws(() => Object.assign(config.origins.port, { kind: 'env' }), TypeError);
});

test('every option: documented, and its example and default are accepted from all three sources', () => {
  for (const key of OPTION_KEYS) {
    const option = optionOf(key);
    assert.ok(option.description.length >= 40 && option.description.endsWith('.'), `${key}: description`);
    assert.ok(SECTIONS.includes(option.section), `${key}: section`);
    assert.ok(option.default !== undefined || (option.defaultText ?? '') !== '', `${key}: says its default`);
    const needs: Record<string, string> =
      key === 'enableRuntimeLora' ? { MANYFOLD_ADAPTER_DIR: './a' } : key === 'host' ? { MANYFOLD_API_KEY: 'k' } : {};
    const files = { 'api-keys.txt': 'k', './api-keys.txt': 'k' };
    const flag = `--${flagOf(key)}=${option.example}`;
    assert.equal(load({ argv: [flag], env: needs, files }).origins[key].kind, 'flag', flag);
    assert.equal(load({ env: { ...needs, [envOf(key)]: option.example }, files }).origins[key].kind, 'env', key);
    const yaml = { ...files, 'm.yaml': `${flagOf(key)}: ${option.example}` };
    const fromFile = load({ argv: ['--config', 'm.yaml'], env: needs, files: yaml });
    assert.equal(fromFile.origins[key].kind, 'file', key);
    assert.deepEqual(
      inspect(fromFile.values[key]),
      inspect(load({ argv: [flag], env: needs, files }).values[key]),
      `${key}: the same value from YAML and flag`,
    );
  }
});

test('help names every option, its variable and its default, in at most 100 columns', () => {
  const help = describeOptions();
  for (const key of OPTION_KEYS) {
    assert.ok(help.includes(`  --${flagOf(key)}`), key);
    assert.ok(help.includes(envOf(key)), key);
  }
  for (const line of help.split('\n')) assert.ok(line.length <= 100, line);
  assert.ok(!describeOptions(['port']).includes('--host'));
});

test('unknown names are refused with a suggestion, in every source', () => {
  assert.match(refusal({ argv: ['--max-num-seq', '4'] }), /no flag --max-num-seq\. Did you mean --max-num-seqs\?/);
  assert.match(refusal({ argv: ['--max_num_seqs=4'] }), /Did you mean --max-num-seqs\?/);
  assert.match(refusal({ argv: ['-p', '80'] }), /no flag -p\./);
  assert.match(refusal({ argv: ['--frobnicate'] }), /no flag --frobnicate\. See --help/);
  assert.match(refusal({ env: { MANYFOLD_PROT: '80' } }), /MANYFOLD_PROT\. Did you mean MANYFOLD_PORT\?/);
  const files = { 'm.yaml': 'port: 80\n\nmax_queues: 3\n' };
  assert.match(
    refusal({ argv: ['--config', 'm.yaml'], files }),
    /m\.yaml:3: .*'max_queues'\. Did you mean max-queue\?/,
  );
  assert.match(refusal({ argv: ['--config', 'n.yaml'], files: { 'n.yaml': 'config: x' } }), /no option 'config'/);
});

test('all mistakes are told at once', () => {
  const message = refusal({
    argv: ['--port', 'x', '--threads', '-1'],
    env: { MANYFOLD_ISAS: 'avx2', MANYFOLD_SEED: '1.5' },
  });
  assert.match(message, /has 4 mistakes/);
  for (const part of [/--port/, /--threads/, /MANYFOLD_ISAS/, /MANYFOLD_SEED/]) assert.match(message, part);
});

test('a wrong value names what was expected, what came and how to write it there', () => {
  assert.equal(
    refusal({ argv: ['--port', '99999'] }),
    "--port expects a whole number of 0 to 65535, but got '99999'. Write it like this: --port 8080",
  );
  assert.match(refusal({ env: { MANYFOLD_PORT: 'x' } }), /^MANYFOLD_PORT expects .* MANYFOLD_PORT=8080$/);
  const files = { 'm.yaml': 'port: [1, 2]' };
  assert.match(refusal({ argv: ['--config', 'm.yaml'], files }), /^m\.yaml:1: port expects .* port: 8080$/);
  assert.match(refusal({ argv: ['--dtype', 'fp8'] }), /one of auto, f32, bf16, int8, q4/);
  assert.match(refusal({ argv: ['--kv-bytes', '2G'] }), /a bare K, M or G is ambiguous/);
  assert.match(refusal({ argv: ['--insecure-no-auth=maybe'] }), /true or false/);
  assert.match(refusal({ argv: ['--adapter', 'noequals'] }), /NAME=PATH/);
  assert.match(refusal({ argv: ['--adapter', 'a:b=./x'] }), /NAME is 1 to 128 characters/);
  assert.match(refusal({ argv: ['--hub-endpoint', 'ftp://hub'] }), /http:\/\/ or https:\/\//);
});

test('missing, empty and repeated values', () => {
  assert.match(refusal({ argv: ['--port'] }), /--port needs a value/);
  assert.match(refusal({ argv: ['--port', '--host', 'x'] }), /--port needs a value/);
  assert.match(refusal({ argv: ['--port='] }), /--port needs a value/);
  assert.match(refusal({ env: { MANYFOLD_API_KEY: '' } }), /MANYFOLD_API_KEY is empty/);
  assert.match(refusal({ argv: ['--config', 'm.yaml'], files: { 'm.yaml': 'port:' } }), /m\.yaml:1: port has no value/);
  assert.match(refusal({ argv: ['--port', '1', '--port', '2'] }), /--port is given twice/);
  assert.match(refusal({ argv: ['a.gguf', 'b.gguf'] }), /'b\.gguf' is not expected/);
});

test('a broken config file', () => {
  assert.match(refusal({ argv: ['--config', 'none.yaml'] }), /none\.yaml cannot be read: no such file/);
  assert.match(
    refusal({ argv: ['--config', 'm.yaml'], files: { 'm.yaml': 'port: 1\nport: 2' } }),
    /m\.yaml:2: .*unique/,
  );
  assert.match(refusal({ argv: ['--config', 'm.yaml'], files: { 'm.yaml': '- port' } }), /must be a mapping/);
  assert.match(refusal({ argv: ['--config', 'm.yaml'], files: { 'm.yaml': 'port: "1' } }), /m\.yaml:1: /);
  assert.equal(load({ argv: ['--config', 'm.yaml'], files: { 'm.yaml': '# nothing' } }).server.port, 8000);
});

test('the model as the first argument, and dtype spellings', () => {
  assert.equal(load({ argv: ['./m.gguf', '--port', '1'] }).model.model, './m.gguf');
  assert.match(refusal({ argv: ['./m.gguf', '--model', 'x'] }), /--model is given twice/);
  assert.equal(load({ argv: ['--dtype', 'bfloat16'] }).engine.dtype, 'bf16');
  assert.equal(load({ argv: ['--dtype', 'Float32'] }).model.dtype, 'f32');
});

test('adapters: flags, vLLM spellings, environment and YAML forms', () => {
  const expected = [
    { name: 'a', path: './a' },
    { name: 'b/c', path: '/x=y' },
  ];
  assert.deepEqual(load({ argv: ['--adapter', 'a=./a', '--adapter=b/c=/x=y'] }).adapters.modules, expected);
  assert.deepEqual(load({ argv: ['--lora-modules', 'a=./a', 'b/c=/x=y', '--port', '1'] }).adapters.modules, expected);
  const json = '{"name": "a", "path": "./a"}';
  assert.deepEqual(load({ argv: ['--lora-modules', json] }).adapters.modules, [expected[0]]);
  assert.deepEqual(load({ env: { MANYFOLD_ADAPTER: 'a=./a, b/c=/x=y' } }).adapters.modules, expected);
  for (const yaml of ['adapter: { a: ./a, b/c: /x=y }', 'adapter: [a=./a, { name: b/c, path: /x=y }]']) {
    assert.deepEqual(load({ argv: ['--config', 'm.yaml'], files: { 'm.yaml': yaml } }).adapters.modules, expected);
  }
  assert.match(refusal({ argv: ['--adapter', 'a=1', '--adapter', 'a=2'] }), /names 'a' twice/);
  assert.match(refusal({ argv: ['--adapter', 'a=1', '--served-model-name', 'a'] }), /both a --served-model-name/);
});

test('a list of a higher source replaces that of a lower one', () => {
  const files = { 'm.yaml': 'served-model-name: [a, b]' };
  const config = load({ argv: ['--config', 'm.yaml', '--served-model-name', 'c'], files });
  assert.deepEqual(config.model.servedModelNames, ['c']);
});

test('listening beyond this machine needs a key or a word', () => {
  assert.match(refusal({ argv: ['--host', '0.0.0.0'] }), /no API key is set.*--insecure-no-auth/);
  assert.match(refusal({ argv: ['--host', '::'] }), /no API key/);
  assert.equal(load({ argv: ['--host', '0.0.0.0', '--api-key', 'k'] }).server.apiKeys.length, 1);
  assert.equal(load({ argv: ['--host', '0.0.0.0', '--insecure-no-auth'] }).server.host, '0.0.0.0');
  assert.match(refusal({ argv: ['--api-key', 'k', '--insecure-no-auth'] }), /mean the opposite/);
  for (const host of ['localhost', '127.0.0.1', '127.9.9.9', '::1', '[::1]', '::ffff:127.0.0.1'])
    assert.ok(isLoopback(host));
  for (const host of ['0.0.0.0', '::', '128.0.0.1', '127.0.0.1.example.org', 'example.org'])
    assert.ok(!isLoopback(host));
});

test('key files', () => {
  const files = { keys: '# team\nfirst\n\n second \n', empty: '\n# none\n', bad: 'ok\nsp ace\n' };
  const { apiKeys } = load({ argv: ['--api-key-file', 'keys', '--api-key', 'zero'], files }).server;
  assert.deepEqual(
    apiKeys.map((key) => key.reveal()),
    ['zero', 'first', 'second'],
  );
  assert.match(refusal({ argv: ['--api-key-file', 'empty'], files }), /holds no key/);
  assert.match(refusal({ argv: ['--api-key-file', 'bad'], files }), /^bad:2: a key must be visible ASCII/);
  const missing = refusal({ argv: ['--api-key-file', 'none', '--host', '0.0.0.0'], files });
  assert.match(missing, /^--api-key-file none cannot be read/);
});

test('secrets are never shown', () => {
  const config = load({ argv: ['--api-key', 'hush-1', '--hub-token', 'hush-2'], env: { MANYFOLD_API_KEY: 'hush-3' } });
  const outputs = [
    inspect(config, { depth: 9 }),
    JSON.stringify(config),
    printConfig(config, { origins: true }),
    refusal({ argv: ['--api-key', 'hush 4', '--hub-token', 'hush 5'] }),
    refusal({ argv: ['--config', 'm.yaml'], files: { 'm.yaml': 'api-key: [{ hush: hush }]' } }),
    refusal({ argv: ['--api-key-file', 'f'], files: { f: 'hush hush' } }),
    String(config.model.hubToken),
  ];
  for (const output of outputs) assert.doesNotMatch(output, /hush/);
  assert.equal(config.model.hubToken?.reveal(), 'hush-2');
});

test("other tools' variables are honoured, ours win", () => {
  const runtime = { VLLM_ALLOW_RUNTIME_LORA_UPDATING: 'True', MANYFOLD_ADAPTER_DIR: './a' };
  assert.equal(load({ env: runtime }).server.enableRuntimeLora, true);
  const both = { HF_TOKEN: 'theirs', MANYFOLD_HUB_TOKEN: 'ours' };
  assert.equal(load({ env: both }).model.hubToken?.reveal(), 'ours');
  assert.equal(load({ env: { MANYFOLD_HUB_TOKEN: 'ours', HF_TOKEN: 'theirs' } }).model.hubToken?.reveal(), 'ours');
  assert.equal(load({ env: { HF_ENDPOINT: 'http://hub.test/' } }).model.hubEndpoint, 'http://hub.test');
  assert.equal(load({ env: { HF_TOKEN: '', VLLM_OTHER: 'x' } }).model.hubToken, undefined);
});

test('Kubernetes service links are recognised', () => {
  assert.match(refusal({ env: { MANYFOLD_PORT: 'tcp://10.0.0.1:80' } }), /enableServiceLinks: false/);
  assert.match(refusal({ env: { MANYFOLD_SERVICE_HOST: '10.0.0.1' } }), /enableServiceLinks: false/);
  assert.match(refusal({ env: { MANYFOLD_PORT_80_TCP_ADDR: '10.0.0.1' } }), /enableServiceLinks: false/);
});

test('options that need each other', () => {
  assert.match(refusal({ argv: ['--enable-runtime-lora'] }), /Add --adapter-dir DIR/);
  assert.match(
    refusal({ argv: ['--max-num-seqs', '32', '--max-num-batched-tokens', '16'] }),
    /less than --max-num-seqs 32/,
  );
});

test('a subcommand takes its own flags only, but shares environment and file', () => {
  const options: LoadOptions = { flags: ['model', 'revision'] };
  assert.match(refusal({ argv: ['--port', '1'], options }), /--port has no meaning for this command/);
  assert.match(refusal({ argv: ['stray'], options: { flags: ['port'] } }), /'stray' is not expected here/);
  assert.equal(load({ argv: ['x/y'], env: { MANYFOLD_PORT: '1' }, options }).server.port, 1);
});

test('~ is the home folder in every source', () => {
  const config = load({
    argv: ['--config', 'm.yaml'],
    env: { MANYFOLD_MODEL: '~/m.gguf' },
    files: { 'm.yaml': 'adapter: { a: ~/a }' },
  });
  assert.equal(config.model.model, '/h/me/m.gguf');
  assert.deepEqual(config.adapters.modules, [{ name: 'a', path: '/h/me/a' }]);
  assert.equal(load({ env: { XDG_CACHE_HOME: '/cache' } }).model.cacheDir, '/cache/manyfold');
});

test('byte sizes', () => {
  const good: readonly (readonly [string, number])[] = [
    ['0', 0],
    ['1024', 1024],
    ['2GiB', 2 ** 31],
    ['2gib', 2 ** 31],
    ['512 MiB', 2 ** 29],
    ['4MB', 4e6],
    ['1.5KiB', 1536],
    ['3Gi', 3 * 2 ** 30],
    ['7B', 7],
  ];
  for (const [text, bytes] of good) assert.equal(parseByteSize(text), bytes, text);
  for (const text of ['', 'GiB', '2G', '2K', '-1', '1e9', '2 G iB', '0x10', '99999999TiB', '1constructor']) {
    assert.equal(parseByteSize(text), undefined, text);
  }
  assert.deepEqual([2 ** 31, 1536, 1500, 3 * 2 ** 29].map(formatByteSize), ['2GiB', '1536', '1500', '1536MiB']);
});

test('printed configuration reads back to the same values', () => {
  const argv = ['--port', '9', '--kv-bytes', '2GiB', '--adapter', 'a=./a', '--served-model-name', 'x', '--seed', '7'];
  const first = load({ argv });
  const printed = printConfig(first, { origins: true });
  assert.match(printed, /^port: 9 +# --port$/m);
  assert.match(printed, /^# chat-template: the model's own template +# default$/m);
  const second = load({ argv: ['--config', 'p.yaml'], files: { 'p.yaml': printed } });
  assert.deepEqual(second.values, first.values);
});

test('suggestions', () => {
  assert.equal(editDistance('kitten', 'sitting'), 3);
  assert.equal(editDistance('prot', 'port'), 1);
  assert.equal(editDistance('', 'abc'), 3);
  assert.equal(closest('MAX_NUM_SEQ', ['max-num-seqs', 'max-queue']), 'max-num-seqs');
  assert.equal(closest('shutdown', ['shutdown-timeout']), 'shutdown-timeout');
  assert.equal(closest('zzzz', ['port', 'host']), undefined);
  assert.equal(closest('--', ['port']), undefined);
});
