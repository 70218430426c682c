/** The build option for CUDA and the gate over what nvcc's assembler says, without a GPU or a toolkit. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';

interface Kernel {
  readonly name: string;
  readonly target: string;
  readonly registers: number;
  readonly spills: number;
  readonly stack: number;
}
interface CudaCheck {
  readonly MOST_REGISTERS: number;
  readonly nvccFlags: (gyp?: string) => string[];
  readonly parsePtxas: (text: string) => Kernel[];
  readonly problemOf: (kernel: Kernel) => string | undefined;
}
interface BuildAddon {
  readonly chosenBackend: (environment: NodeJS.ProcessEnv) => { cudaHome?: string; missing?: boolean };
}

async function script(name: string): Promise<unknown> {
  return import(pathToFileURL(join(process.cwd(), 'scripts', name)).href);
}
const check = (await script('cuda-check.mjs')) as CudaCheck;
const build = (await script('build-addon.mjs')) as BuildAddon;

/** What nvcc 13.0 printed for two kernels, the second of which was made to spill. */
const PRINTED = `ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3addPf' for 'sm_80'
ptxas info    : Function properties for _Z3addPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 392 bytes cmem[0]
ptxas info    : Compile time = 1.0 ms
ptxas info    : Compiling entry function '_Z4tilePf' for 'sm_90a'
ptxas info    : Function properties for _Z4tilePf
    40 bytes stack frame, 36 bytes spill stores, 60 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 40 bytes cumulative stack size
`;

test('reads registers, spills and stack of every kernel and target', () => {
  assert.deepEqual(check.parsePtxas(PRINTED), [
    { name: '_Z3addPf', target: 'sm_80', registers: 12, spills: 0, stack: 0 },
    { name: '_Z4tilePf', target: 'sm_90a', registers: 255, spills: 96, stack: 40 },
  ]);
});

test('a kernel that spills or takes too many registers is named with the mend', () => {
  const [good, spilling] = check.parsePtxas(PRINTED);
  assert.ok(good && spilling);
  assert.equal(check.problemOf(good), undefined);
  assert.match(check.problemOf(spilling) ?? '', /_Z4tilePf spills 96 bytes on sm_90a; expected none/);
  const wide = { ...good, registers: check.MOST_REGISTERS + 1 };
  assert.match(check.problemOf(wide) ?? '', /_Z3addPf takes \d+ registers on sm_80; expected at most/);
});

test('what is checked is what the addon is built with', () => {
  const flags = check.nvccFlags();
  for (const target of ['sm_80', 'sm_89', 'sm_90a', 'compute_90']) {
    assert.ok(
      flags.some((flag) => flag.endsWith(`code=${target}`)),
      target,
    );
  }
  assert.throws(() => check.nvccFlags('{}'), /nvcc_flags/);
});

test('MANYFOLD_BUILD: cpu unless cuda is asked for, which takes the toolkit that it is told of', () => {
  assert.deepEqual(build.chosenBackend({}), {});
  assert.deepEqual(build.chosenBackend({ MANYFOLD_BUILD: 'cpu', CUDA_HOME: '/anywhere' }), {});
  assert.throws(() => build.chosenBackend({ MANYFOLD_BUILD: 'rocm' }), /'rocm'; expected 'cpu' or 'cuda'/);
  const home = mkdtempSync(join(tmpdir(), 'cuda-home-'));
  try {
    mkdirSync(join(home, 'bin'));
    writeFileSync(join(home, 'bin', 'nvcc'), '');
    const wrapped = build.chosenBackend({ MANYFOLD_BUILD: 'cuda', CUDA_HOME: home });
    assert.notEqual(wrapped.cudaHome, home, 'a compiler without its headers is no toolkit');
    mkdirSync(join(home, 'include'));
    writeFileSync(join(home, 'include', 'cuda_runtime.h'), '');
    assert.deepEqual(build.chosenBackend({ MANYFOLD_BUILD: 'cuda', CUDA_HOME: home }), { cudaHome: home });
    const onPath = build.chosenBackend({ MANYFOLD_BUILD: 'cuda', PATH: `/nowhere:${join(home, 'bin')}` });
    assert.deepEqual(onPath, { cudaHome: home });
  } finally {
    rmSync(home, { recursive: true, force: true });
  }
});
