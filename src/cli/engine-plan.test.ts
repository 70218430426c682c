import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DTYPES } from '../native/binding-types.js';
import { ownDtype } from './engine-plan.js';

test("--dtype auto is the file's own class, and bf16 where there are no kernels for it", () => {
  const own = Object.keys(DTYPES).map((name) => [name, ownDtype(name)]);
  assert.deepEqual(Object.fromEntries(own), {
    f32: 'bf16',
    f16: 'bf16',
    bf16: 'bf16',
    q8_0: 'int8',
    q4_0: 'q4',
    q4_1: 'q4',
    q5_0: 'bf16',
    q5_1: 'bf16',
    q4_k: 'q4',
    q5_k: 'bf16',
    q6_k: 'bf16',
  });
});
