/**
 * Row i is bit-identical to the request alone, whatever its neighbours, prefill chunking, KV placement, thread count, or
 * a preemption half way; base rows among adapter rows with every slot in use included. Each test asserts by counters
 * that its case happened.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import {
  assertSameBits,
  forcedLogits,
  loadAdapterFolder,
  openTestEngine,
  testedIsas,
  type DriveOptions,
  type TestEngineOptions,
} from './support/engine.js';
import { GOLDENS, readGoldens } from './support/goldens.js';
import { alone, assertSame, counted, type Prepared } from './support/identity.js';
import { NO_TERMS, PagePool, TestSequence, type LoadedTerms } from './support/plan.js';

/** Windows and many layers; biases and an untied head; f16 file with head_dim 40. */
const MODELS = ['gemma3', 'llama3-bias', 'mistral-window'];

/** The base, then every adapter, each with tokens of its own. */
async function prepare(model: string, options: TestEngineOptions): Promise<Prepared> {
  const folder = path.join(GOLDENS, 'models', model);
  const engine = await openTestEngine(await openCheckpoint(folder), options);
  const sets: LoadedTerms[] = [NO_TERMS];
  for (const name of readdirSync(path.join(folder, 'adapters'))) {
    sets.push(await loadAdapterFolder(engine, path.join(folder, 'adapters', name)));
  }
  const { cases } = readGoldens(path.join(folder, 'goldens'));
  const tokens = cases.map(({ prompt, greedy }) => [...prompt, ...greedy]);
  const make = (): TestSequence[] =>
    sets.map((terms, i) => new TestSequence(tokens[i % tokens.length] ?? [], { terms }));
  return { test: engine, make };
}

function totalRows(sequences: readonly TestSequence[]): number {
  return sequences.reduce((sum, { tokens }) => sum + tokens.length, 0);
}

function ceilSteps(sequences: readonly TestSequence[], chunk: number): number {
  return Math.max(...sequences.map(({ tokens }) => Math.ceil(tokens.length / chunk)));
}

for (const model of MODELS) {
  for (const isa of testedIsas()) {
    describe(`bits of ${model}, ${isa}`, () => {
      for (const dtype of ['f32', 'bf16', 'int8', 'q4'] as const) {
        test(`${dtype}: neighbours and chunking`, async () => {
          const prepared = await prepare(model, { isa, dtype });
          const expected = await alone(prepared);
          for (const chunk of [1, 7, 64]) {
            const sequences = prepared.make();
            const what = await counted(prepared.test, async () => {
              assertSame(await forcedLogits(prepared.test, sequences, { chunk }), expected, `chunk ${chunk}`);
            });
            assert.equal(what.steps, ceilSteps(sequences, chunk), 'all sequences shared their steps');
            assert.equal(what.rows, totalRows(sequences));
            assert.ok(what.termReads > 0, 'adapters were read');
          }
          prepared.test.engine.dispose();
        });

        test(`${dtype}: one-row and many-row kernels both ran`, async () => {
          const prepared = await prepare(model, { isa, dtype });
          const [first] = prepared.make();
          assert.ok(first !== undefined);
          const rows = await counted(prepared.test, async () => {
            await forcedLogits(prepared.test, [new TestSequence(first.tokens)], { chunk: 1 });
          });
          assert.ok(rows.singleRowTiles > 0 && rows.multiRowTiles === 0, 'one row a step takes the one-row kernel');
          const many = await counted(prepared.test, async () => {
            await forcedLogits(prepared.test, [new TestSequence(first.tokens)]);
          });
          assert.ok(many.multiRowTiles > 0, 'a chunk takes the many-row kernel');
          prepared.test.engine.dispose();
        });

        test(`${dtype}: KV placement`, async () => {
          const prepared = await prepare(model, { isa, dtype });
          const expected = await alone(prepared);
          const shuffled = new PagePool(prepared.test.kvPages, 12345);
          const ordered = new PagePool(prepared.test.kvPages);
          const [a, b] = [shuffled.take(), ordered.take()];
          assert.notEqual(a, b, 'the shuffled pool gives other pages');
          shuffled.give([a]);
          const found = await forcedLogits(prepared.test, prepared.make(), { chunk: 7, pool: shuffled });
          assertSame(found, expected, 'shuffled pages');
          prepared.test.engine.dispose();
        });

        // The scalar tier is the definition of each operation and has one thread.
        const threadCounts = isa === 'scalar' ? [1] : [1, 2];
        test(`${dtype}: ${threadCounts.length > 1 ? 'one thread and two' : 'the one thread of this tier'}`, async () => {
          const answers: Float32Array[][][] = [];
          for (const threads of threadCounts) {
            const prepared = await prepare(model, { isa, dtype, threads });
            assert.equal(prepared.test.engine.info().threads, threads);
            answers.push(await forcedLogits(prepared.test, prepared.make(), { chunk: 7 }));
            answers.push(await alone(prepared));
            prepared.test.engine.dispose();
          }
          for (const found of answers) assertSame(found, answers[0] ?? [], `threads ${threadCounts.join(' and ')}`);
        });

        test(`${dtype}: preemption half way, recomputed into other pages`, async () => {
          const prepared = await prepare(model, { isa, dtype });
          const expected = await alone(prepared);
          const sequences = prepared.make();
          assertSame(await forcedLogits(prepared.test, sequences, preemptions(sequences)), expected, 'preempted');
          prepared.test.engine.dispose();
        });
      }
    });
  }
}

/** Drops every second sequence after two steps, and lets others take the pages before it starts again. */
function preemptions(sequences: readonly TestSequence[]): DriveOptions {
  let moved = 0;
  const old = new Map<TestSequence, readonly number[]>();
  return {
    chunk: 16,
    beforeStep: (step, pool) => {
      if (step === 2) {
        for (const sequence of sequences.filter((_, i) => i % 2 === 1)) {
          old.set(sequence, [...sequence.pages]);
          sequence.drop(pool);
        }
        assert.ok(
          old.size > 0 && [...old.values()].every((pages) => pages.length > 0),
          'sequences with pages were dropped',
        );
      }
      if (step === 3) {
        for (const [sequence, pages] of old) if (sequence.pages[0] !== pages[0]) moved++;
        assert.ok(moved > 0, 'a preempted sequence came back in other pages');
      }
    },
  };
}

describe('every slot in use', () => {
  for (const isa of testedIsas()) {
    test(`base rows among rows of 24 adapters answer as the base alone, ${isa}`, async () => {
      const folder = path.join(GOLDENS, 'models', 'llama-gqa');
      const engine = await openTestEngine(await openCheckpoint(folder), { isa, dtype: 'bf16', maxRows: 512 });
      const { cases } = readGoldens(path.join(folder, 'goldens'));
      const names = readdirSync(path.join(folder, 'adapters'));
      const sets: LoadedTerms[] = [];
      for (let i = 0; i < 24; i++)
        sets.push(await loadAdapterFolder(engine, path.join(folder, 'adapters', names[i % names.length] ?? '')));
      assert.equal(engine.engine.info().termSets, 24);

      const tokens = [...(cases[1]?.prompt ?? []), ...(cases[1]?.greedy ?? [])];
      const [expected = []] = await forcedLogits(engine, [new TestSequence(tokens)]);
      // Base, adapter, base, adapter, …, base: a base row beside each slot, first and last.
      const sequences = sets.flatMap((terms) => [new TestSequence(tokens), new TestSequence(tokens, { terms })]);
      sequences.push(new TestSequence(tokens));
      const handles = new Set<number>();
      const logits = await forcedLogits(engine, sequences, {
        chunk: 5,
        beforeStep: () => {
          for (const { terms } of sequences) handles.add(terms.handle);
        },
      });
      assert.equal(handles.size, 25, '24 sets and the base');
      let different = 0;
      sequences.forEach(({ terms }, i) => {
        if (terms.handle === 0) assertSame([logits[i] ?? []], [expected], `base sequence ${i}`);
        else if (!logits[i]?.[tokens.length - 1]?.every((v, j) => v === expected[tokens.length - 1]?.[j])) different++;
      });
      assert.equal(different, 24, 'every adapter answers otherwise than the base');
      engine.engine.dispose();
    });
  }
});

describe('an adapter that is invoked half way', () => {
  for (const isa of testedIsas()) {
    test(`rows before it are the base's, rows after it are not, ${isa}`, async () => {
      const folder = path.join(GOLDENS, 'models', 'llama-gqa');
      const engine = await openTestEngine(await openCheckpoint(folder), { isa });
      const terms = await loadAdapterFolder(engine, path.join(folder, 'adapters', 'all-r3-rslora'));
      const { cases } = readGoldens(path.join(folder, 'goldens'));
      const tokens = cases[3]?.prompt ?? [];
      const termsFrom = 21;
      // The same by rank gates: nothing of the adapter before, all of it from then on.
      const gates = tokens.map((_, i) => new Float32Array(3).fill(i < termsFrom ? 0 : 1));
      const [base = [], whole = [], invoked = [], gated = []] = await forcedLogits(
        engine,
        [
          new TestSequence(tokens),
          new TestSequence(tokens, { terms }),
          new TestSequence(tokens, { terms, termsFrom }),
          new TestSequence(tokens, { terms, gates }),
        ],
        { chunk: 13 },
      );
      assert.equal(tokens.length, 70);
      tokens.forEach((_, i) => {
        const row = invoked[i] ?? new Float32Array(0);
        if (i < termsFrom) assertSameBits(row, base[i] ?? new Float32Array(0), `position ${i}`);
        else assert.ok(difference(row, whole[i]) > 1e-3 && difference(row, base[i]) > 1e-3, `position ${i}`);
        assert.ok(difference(row, gated[i]) < 1e-4, `position ${i}: as by gates`);
      });
      engine.engine.dispose();
    });
  }
});

function difference(a: Float32Array, b: Float32Array | undefined): number {
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - (b?.[i] ?? Infinity))), 0);
}
