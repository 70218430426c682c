/** The rules that cross files: who imports whom, banned words, lengths, dead files, the code map. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { check } from './tidy/check.js';
import type { Failure, SourceFile } from './tidy/check.js';

const SKIPPED = /^(node_modules|dist|dist-.*|build|\.git|\.cache|\.venv|data|goldens|__pycache__|out)$/;
const CHECKED = /\.(ts|js|mjs|cpp|h|cu|cuh|py|sh|md|gyp|gypi|ya?ml)$|(^|\/)(Dockerfile|Makefile|run)$/;

/** Tests run with the repository's root as working directory. */
function listRepository(folder = ''): { files: string[]; folders: string[] } {
  const found = { files: [] as string[], folders: [] as string[] };
  for (const entry of readdirSync(join(process.cwd(), folder), { withFileTypes: true })) {
    const path = folder === '' ? entry.name : `${folder}/${entry.name}`;
    if (SKIPPED.test(entry.name)) continue;
    if (entry.isDirectory()) {
      const inner = listRepository(path);
      if (inner.files.length > 0) found.folders.push(path);
      found.folders.push(...inner.folders);
      found.files.push(...inner.files);
    } else if (entry.isFile()) {
      found.files.push(path);
    }
  }
  return found;
}

function format({ path, line, problem, instead }: Failure): string {
  return `${path}:${line}: ${problem}. Instead: ${instead}.`;
}

test('the repository keeps its rules', () => {
  const { files, folders } = listRepository();
  const read = (path: string): SourceFile => ({ path, text: readFileSync(join(process.cwd(), path), 'utf8') });
  const sources = files.filter((path) => CHECKED.test(path)).map(read);
  assert.ok(
    sources.some(({ path }) => path === 'src/core/errors.ts'),
    'started in the root of the repository',
  );
  const failures = check(sources, folders).map(format);
  assert.deepEqual(failures, [], `\n${failures.join('\n')}\n`);
});

/** Problems found in one file, tests of dead files left out. */
function problems(path: string, text: string): string[] {
  return check([{ path, text }])
    .filter(({ problem }) => problem !== 'nobody imports it' && problem !== 'not part of the build')
    .map(({ line, problem }) => `${line}: ${problem}`);
}

test('imports point down', () => {
  assert.deepEqual(problems('src/engine/a.ts', "import { x } from '../core/ids.js';\n"), []);
  assert.deepEqual(problems('src/engine/a.ts', "import { x } from './b.js';\nimport '../text/stop.js';\n"), [
    '2: engine imports src/text/stop',
  ]);
  assert.deepEqual(problems('src/core/a.ts', "export { x } from '../config/options.js';\n"), [
    '1: core imports src/config/options',
  ]);
  assert.deepEqual(problems('src/server/a.ts', "const x = await import('../engine/port.js');\n"), [
    '1: server imports src/engine/port',
  ]);
  assert.deepEqual(problems('src/checkpoint/a.ts', "import type { x } from '../native/binding-types.js';\n"), []);
  assert.deepEqual(problems('src/checkpoint/a.ts', "import { x } from '../native/load-binding.js';\n"), [
    '1: checkpoint imports src/native/load-binding',
  ]);
  assert.deepEqual(problems('src/cli/a.ts', "import { x } from '../server/app.js';\n"), []);
  assert.deepEqual(problems('src/service/a.ts', "import { x } from '../cli/serve.js';\n"), [
    '1: service imports src/cli/serve',
  ]);
  assert.deepEqual(problems('src/novel/a.ts', "import { x } from '../core/ids.js';\n"), ['1: src/novel has no row']);
});

test('the load generator knows no server from inside', () => {
  assert.deepEqual(
    problems('loadtest/run/a.ts', "import { x } from '../../src/core/clock.js';\nimport './b.js';\n"),
    [],
  );
  assert.deepEqual(problems('loadtest/run/a.ts', "import { x } from '../../src/server/app.js';\n"), [
    '1: loadtest imports src/server/app',
  ]);
});

test('packages stay in their folder', () => {
  assert.deepEqual(problems('src/engine/a.ts', "import { Hono } from 'hono/tiny';\n"), ['1: engine imports hono/tiny']);
  assert.deepEqual(problems('src/telemetry/a.ts', "import { trace } from '@opentelemetry/api';\n"), []);
});

test('includes point down', () => {
  assert.deepEqual(problems('native/model/a.cpp', '#include "core/backend.h"\n#include "cpu/cpu_backend.h"\n'), [
    '2: model includes cpu/cpu_backend.h',
  ]);
  assert.deepEqual(problems('native/cpu/kernels/a.cpp', '#include "../../model/forward.h"\n'), [
    '1: cpu includes model/forward.h',
  ]);
  assert.deepEqual(problems('native/addon/a.cpp', '#include "cpu/cpu_backend.h"\n#include <napi.h>\n'), []);
  assert.deepEqual(problems('native/addon/a.cpp', '#include "cpu/thread_pool.h"\n'), [
    '1: addon includes cpu/thread_pool.h',
  ]);
  assert.deepEqual(problems('native/core/a.h', '#include <napi.h>\n#include <immintrin.h>\n'), [
    '1: <napi.h>',
    '2: <immintrin.h>',
  ]);
  assert.deepEqual(problems('native/cpu/isa/avx2.cpp', '#include <immintrin.h>\n'), []);
});

test('banned words', () => {
  const found = (text: string, path = 'src/engine/a.ts'): string[] => problems(path, `${text}\n`);
  assert.deepEqual(found("console.log('x');"), ['1: console']);
  assert.deepEqual(found("const x = '// console.log is only text here';"), []);
  assert.deepEqual(found('const x = process.env;'), ['1: process.env']);
  assert.deepEqual(found('const x = process.env;', 'src/config/environment.ts'), []);
  assert.deepEqual(found('const x = Date.now() + performance.now();'), ['1: Date.now', '1: performance.now']);
  assert.deepEqual(found('const x = new Date();\nconst y = new Date(0);'), ['1: new Date()']);
  assert.deepEqual(found('let x: any;'), ['1: any']);
  assert.deepEqual(found('// any word\nconst any = 1;'), []);
  assert.deepEqual(found('const x = y as unknown as string;'), ['1: as unknown as']);
  assert.deepEqual(found('export default function f() {}'), ['1: a default export']);
  assert.deepEqual(found("test.skip('x', () => {});"), ['1: test.skip']);
  assert.deepEqual(found("test('x', { skip: true }, () => {});"), ['1: a test with skip']);
  assert.deepEqual(found('const options = { skip: 1 };'), []);
  const leftover = ['TO', 'DO'].join('');
  assert.deepEqual(found(`// ${leftover}: later`), ['1: a leftover note']);
  assert.deepEqual(found(`# ${leftover}`, 'scripts/x.sh'), ['1: a leftover note']);
  assert.deepEqual(found(`const x = 'https://${['pypi', 'org'].join('.')}/simple';`), [
    '1: the host of a package registry',
  ]);
  assert.deepEqual(found(`const x = '${['', 'home', 'me'].join('/')}';`), ['1: an absolute path of one machine']);
  assert.deepEqual(found("import { x } from '../root/x.js'; const y = `${a}/tmp/b`;", 'scripts/a.js'), []);
});

test('commented-out code', () => {
  for (const line of [
    '// const x = 1;',
    '  // call(it);',
    "// import { x } from 'y';",
    '// if (x) {',
    '// }',
    '// });',
  ]) {
    assert.deepEqual(problems('src/core/a.ts', `${line}\n`), ['1: commented-out code'], line);
  }
  for (const line of [
    '// Two things may happen here;',
    '// Shape [rows, cols] (row-major).',
    '// Rounded to bf16 when asked (what the backend multiplies with);',
    'const x = 1; // units',
    '/// x = 1.',
  ]) {
    assert.deepEqual(problems('src/core/a.ts', `${line}\n`), [], line);
  }
});

test('lengths', () => {
  const body = '  call();\n'.repeat(70);
  assert.deepEqual(problems('src/core/a.ts', `const first = 1;\nfunction long() {\n${body}}\n`), [
    '2: src/core/a.ts#long has 72 lines, over 70',
  ]);
  assert.deepEqual(problems('src/core/a.test.ts', `test('slow', () => {\n${body}});\n`), [
    '1: src/core/a.test.ts#slow has 72 lines, over 70',
  ]);
  assert.deepEqual(problems('src/core/a.test.ts', `describe('all', () => {\n${body}});\n`), []);
  assert.deepEqual(problems('src/core/a.ts', 'call();\n'.repeat(401)), ['1: src/core/a.ts has 401 lines, over 400']);
  assert.deepEqual(
    problems('native/core/a.cpp', `namespace x {\n\nint long_one(int a) {\n${body}}\n\n}  // namespace x\n`),
    ['3: native/core/a.cpp#long_one has 72 lines, over 70'],
  );
  assert.deepEqual(
    problems(
      'native/core/a.cpp',
      `namespace x {\n${'int f(int a) {\n  return a;\n}\n\n'.repeat(30)}}  // namespace x\n`,
    ),
    [],
  );
  assert.deepEqual(problems('src/config/options.ts', 'call();\n'), [
    "1: LONG has 'src/config/options.ts', which is short now",
  ]);
});

test('dead files', () => {
  const dead = (...files: SourceFile[]): string[] => check(files).map(({ path, problem }) => `${path}: ${problem}`);
  const used = { path: 'src/core/used.ts', text: '' };
  const user = { path: 'src/core/x.test.ts', text: "import './used.js';\n" };
  assert.deepEqual(dead(used, user), []);
  assert.deepEqual(dead(used), ['src/core/used.ts: nobody imports it']);
  const starts = { path: 'src/core/x.test.ts', text: "new Worker(new URL('./used.js', import.meta.url));\n" };
  assert.deepEqual(dead(used, starts), []);
  const header = { path: 'native/core/a.h', text: '' };
  assert.deepEqual(dead(header), ['native/core/a.h: nobody imports it']);
  const gyp = { path: 'native/binding.gyp', text: '{ "sources": ["core/a.cpp"] }' };
  const sources = ['a', 'b'].map((name) => ({ path: `native/core/${name}.cpp`, text: '' }));
  assert.deepEqual(dead(gyp, ...sources), ['native/core/b.cpp: not part of the build']);
});

test('the code map', () => {
  const page = { path: 'ARCHITECTURE.md', text: '| `src/core` | words |\n| `src/gone`, `test` | `lost` |\n' };
  const found = check([page], ['src', 'src/core', 'src/new', 'src/new/inner', 'test']).map(
    ({ line, problem }) => `${line}: ${problem}`,
  );
  assert.deepEqual(found, [
    '2: the folder src/gone does not exist',
    '1: the folder src/new is missing from the code map',
  ]);
});
