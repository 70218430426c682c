/** What the tests of bit identity share: everything alone, and comparisons of all rows. */
import assert from 'node:assert/strict';
import type { NativeCounters } from '../../src/native/binding-types.js';
import { assertSameBits, forcedLogits, type TestEngine } from './engine.js';
import type { TestSequence } from './plan.js';

export interface Prepared {
  readonly test: TestEngine;
  /** The sequences of the case, new ones at each call. */
  readonly make: () => TestSequence[];
}

/** Every sequence alone, in whole chunks: what all other ways must repeat. */
export async function alone({ test: engine, make }: Prepared): Promise<Float32Array[][]> {
  const expected: Float32Array[][] = [];
  for (const sequence of make()) expected.push(...(await forcedLogits(engine, [sequence])));
  return expected;
}

/** The same rows of the same sequences, bit for bit. */
export function assertSame(found: readonly Float32Array[][], expected: readonly Float32Array[][], what: string): void {
  assert.equal(found.length, expected.length);
  expected.forEach((rows, i) => {
    assert.equal(found[i]?.length, rows.length, `${what}: rows of sequence ${i}`);
    rows.forEach((row, position) => {
      assertSameBits(found[i]?.[position] ?? new Float32Array(0), row, `${what}: sequence ${i}, position ${position}`);
    });
  });
}

/** What `run` added to the backend's counters. */
export async function counted(engine: TestEngine, run: () => Promise<void>): Promise<NativeCounters> {
  const before = engine.engine.counters();
  await run();
  const after = engine.engine.counters();
  const difference = (key: keyof NativeCounters): number => after[key] - before[key];
  return {
    steps: difference('steps'),
    rows: difference('rows'),
    baseLinearReads: difference('baseLinearReads'),
    baseBytesRead: difference('baseBytesRead'),
    termReads: difference('termReads'),
    termBytesRead: difference('termBytesRead'),
    singleRowTiles: difference('singleRowTiles'),
    multiRowTiles: difference('multiRowTiles'),
  };
}
