/** The numbers that TypeScript and C++ both write down must be equal; the headers' text is the witness. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { SITES } from '../core/model-config.js';
import { DTYPES } from './binding-types.js';
import { loadNative } from './load-binding.js';

function header(name: string): string {
  return readFileSync(join(process.cwd(), 'native', 'core', name), 'utf8');
}

/** `kName = number,` lines of an enum as `name → number`, the name without its k and with a small first letter. */
function enumerators(text: string, enumName: string): Map<string, number> {
  const body = new RegExp(`enum class ${enumName}[^{]*\\{([^}]*)\\}`).exec(text)?.[1] ?? '';
  const lines = [...body.matchAll(/k(\w+) = (\d+)/g)];
  return new Map(
    lines.map(([, name = '', number]) => [name.slice(0, 1).toLowerCase() + name.slice(1), Number(number)]),
  );
}

test('site numbers are those of native/core/site.h', () => {
  assert.deepEqual(Object.fromEntries(enumerators(header('site.h'), 'Site')), SITES);
});

test('site names in native messages are those of SITES', () => {
  const names = /kNames\[kSiteCount\] = \{([^}]*)\}/.exec(header('site.h'))?.[1] ?? '';
  const found = [...names.matchAll(/"(\w+)"/g)].map(([, name]) => name);
  assert.deepEqual(found, Object.keys(SITES));
});

test('dtype numbers are those of native/core/dtype.h', () => {
  const native = [...enumerators(header('dtype.h'), 'Dtype')].map(([name, number]) => [name.toLowerCase(), number]);
  assert.deepEqual(Object.fromEntries(native), DTYPES);
});

test('every field of NativePlan is one of native/core/step.h', () => {
  const types = readFileSync(join(process.cwd(), 'src', 'native', 'binding-types.ts'), 'utf8');
  const body = /interface NativePlan \{([\s\S]*?)\n\}/.exec(types)?.[1] ?? '';
  const fields = [...body.matchAll(/readonly (\w+):/g)].map(([, name = '']) => name);
  const snake = fields.map((name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)).sort();
  const struct = /struct StepPlan \{([\s\S]*?)\n {2}int32_t rows\(\)/.exec(header('step.h'))?.[1] ?? '';
  const declared = struct.replace(/\/\/.*/g, '').replace(/std::span<[^>]*>|int32_t/g, ' ');
  const native = [...declared.matchAll(/\b([a-z]\w*)\b/g)].map(([, name]) => name).sort();
  assert.deepEqual(native, snake);
});

test('info tells what this build and machine can do', () => {
  const info = loadNative().info();
  const version: unknown = JSON.parse(readFileSync(join(process.cwd(), 'package.json'), 'utf8'));
  assert.ok(typeof version === 'object' && version !== null && 'version' in version);
  assert.equal(info.version, version.version);
  assert.ok(info.backends.includes('cpu'));
  assert.equal(info.isas.at(-1), 'scalar');
  assert.equal(info.pageTokens, 16);
  assert.ok(info.cores >= 1);
});
