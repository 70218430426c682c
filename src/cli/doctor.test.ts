import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { MachineFacts } from './doctor.js';
import { doctorReport, readMachine } from './doctor.js';
import { loadNative } from '../native/load-binding.js';

const FACTS: MachineFacts = {
  cpu: 'Some Processor',
  memoryBytes: 2 ** 34,
  native: { version: '1.2.3', backends: ['cpu'], isas: ['avx2', 'scalar'], pageTokens: 16, cores: 4 },
  hugePages: 'always [madvise] never\n',
  gpus: [],
};

test('says what would be used and mends nothing on a good machine without a GPU', () => {
  const text = doctorReport(FACTS).join('\n');
  assert.match(text, /serve would use\s+the cpu backend, avx2, 4 threads$/m);
  assert.match(text, /huge pages\s+madvise/);
  assert.match(text, /no NVIDIA driver is loaded/);
  assert.doesNotMatch(text, /mend:/);
});

test('names the mend of huge pages that are off and of a processor without AVX2', () => {
  const native = { ...FACTS.native, isas: ['scalar'] };
  const text = doctorReport({ ...FACTS, native, hugePages: 'always madvise [never]' }).join('\n');
  assert.match(text, /mend: echo madvise > /);
  assert.match(text, /mend: use a processor with AVX2/);
});

test('a GPU that this build does not use comes with the command that builds for it', () => {
  const gpu = { ...FACTS, gpus: ['NVIDIA H100'], driver: 'NVRM version: 580.65' };
  assert.match(
    doctorReport(gpu).join('\n'),
    /mend: install the CUDA 13 toolkit, then MANYFOLD_BUILD=cuda npm run build/,
  );
  const native = { ...FACTS.native, backends: ['cpu', 'cuda'] };
  const built = doctorReport({ ...gpu, native, nvcc: 'release 13.0' }).join('\n');
  assert.match(built, /with --backend cuda the GPU/);
  assert.doesNotMatch(built, /mend:/);
});

test('reads this machine', () => {
  const native = loadNative().info();
  const facts = readMachine(native);
  assert.ok(facts.memoryBytes > 0);
  assert.ok(doctorReport(facts).length >= 9);
});
