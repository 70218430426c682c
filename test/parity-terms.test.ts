/**
 * Hand-built terms of every kind and codec (lowrank, rowcol, sparse, blockdiag, diag, override, prefix, bottleneck) and
 * base rows in one batch, against the float64 reference of tools/oracle, on the scalar tier and the best one.
 */
import assert from 'node:assert/strict';
import path from 'node:path';
import { describe, test } from 'node:test';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import {
  assertSameBits,
  forcedLogits,
  loadTermSet,
  openTestEngine,
  testedIsas,
  type TestEngine,
} from './support/engine.js';
import { GOLDENS, LOGIT_TOLERANCE, rowError } from './support/goldens.js';
import { NO_TERMS, TestSequence } from './support/plan.js';
import { readTermGoldens, type TermSequence } from './support/term-goldens.js';

async function open(model: string, isa: string): Promise<TestEngine> {
  return openTestEngine(await openCheckpoint(path.join(GOLDENS, 'models', model)), { isa });
}

async function sequencesOf(engine: TestEngine, goldens: readonly TermSequence[]): Promise<TestSequence[]> {
  const sequences: TestSequence[] = [];
  for (const { tokens, terms, gates, embeddings } of goldens) {
    const loaded = terms.length === 0 ? NO_TERMS : await loadTermSet(engine.engine, { terms });
    sequences.push(new TestSequence(tokens, { terms: loaded, embeddings, ...(gates === undefined ? {} : { gates }) }));
  }
  return sequences;
}

for (const model of ['llama3-bias', 'gemma3']) {
  for (const isa of testedIsas()) {
    describe(`terms of every kind on ${model}, ${isa}`, () => {
      const goldens = readTermGoldens(model);

      test('one mixed batch equals the float64 reference', async () => {
        const engine = await open(model, isa);
        const steps: number[] = [];
        const logits = await forcedLogits(engine, await sequencesOf(engine, goldens), {
          chunk: 6,
          afterStep: (rows) => steps.push(rows),
        });
        assert.ok((steps[0] ?? 0) >= 5 * goldens.length, 'the first step held rows of every set');
        goldens.forEach((golden, i) => {
          golden.rows.forEach((row, position) => {
            const error = rowError(logits[i]?.[position] ?? new Float32Array(0), row);
            const what = `${golden.name}, position ${position}: off by ${error.toExponential(2)} of max|logit|`;
            assert.ok(error <= LOGIT_TOLERANCE, what);
          });
        });
        engine.engine.dispose();
      });

      test('alone, each gives the same bits as in the batch', async () => {
        const engine = await open(model, isa);
        const together = await forcedLogits(engine, await sequencesOf(engine, goldens), { chunk: 6 });
        for (const [i, golden] of goldens.entries()) {
          const [alone = []] = await forcedLogits(engine, await sequencesOf(engine, [golden]));
          alone.forEach((row, position) => {
            assertSameBits(row, together[i]?.[position] ?? new Float32Array(0), `${golden.name}, position ${position}`);
          });
        }
        engine.engine.dispose();
      });
    });
  }
}
