/**
 * Every adapter kind, compiled from its folder as users have it: all kinds of one model and base rows in one mixed batch,
 * against the logits of the method's own library, and then each alone with the same bits.
 */
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import type { TermSet } from '../src/core/terms.js';
import {
  compileFolder,
  forcedLogits,
  loadTermSet,
  openTestEngine,
  testedIsas,
  type TestEngine,
} from './support/engine.js';
import { GOLDENS, LOGIT_TOLERANCE } from './support/goldens.js';
import { alone, assertSame } from './support/identity.js';
import {
  kindRowError,
  kindSequence,
  modelsWithKinds,
  readKindGoldens,
  softPromptRows,
  type KindGolden,
} from './support/kind-goldens.js';
import { TestSequence, type LoadedTerms } from './support/plan.js';

interface LoadedKind {
  readonly golden: KindGolden;
  readonly set: TermSet;
  readonly terms: LoadedTerms;
}

/** A kind that cannot be compiled or loaded fails its own test alone, with its own error. */
async function loadKind(engine: TestEngine, golden: KindGolden): Promise<LoadedKind | Error> {
  try {
    const set = await compileFolder(engine, golden.directory);
    return { golden, set, terms: await loadTermSet(engine.engine, set) };
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

/** One sequence a kind, in their order, and two of the base. */
function sequencesOf(kinds: readonly LoadedKind[]): TestSequence[] {
  const adapted = kinds.map(({ golden, set, terms }) => kindSequence(golden.prompt, set, terms));
  const prompt = kinds[0]?.golden.prompt ?? [];
  return [...adapted, new TestSequence(prompt), new TestSequence(prompt.slice(3))];
}

function checkModel(model: string, isa: string): void {
  describe(`adapter kinds on ${model}, ${isa}`, () => {
    let engine: TestEngine;
    const goldens = readKindGoldens(model);
    const kinds: LoadedKind[] = [];
    const failures = new Map<KindGolden, Error>();
    let together: Float32Array[][];

    before(async () => {
      engine = await openTestEngine(await openCheckpoint(path.join(GOLDENS, 'models', model)), { isa });
      for (const golden of goldens) {
        const loaded = await loadKind(engine, golden);
        if (loaded instanceof Error) failures.set(golden, loaded);
        else kinds.push(loaded);
      }
      together = await forcedLogits(engine, sequencesOf(kinds), { chunk: 4 });
    });
    after(() => {
      engine.engine.dispose();
    });

    for (const golden of goldens) {
      test(`${golden.kind} equals its library in the mixed batch`, () => {
        const failure = failures.get(golden);
        if (failure !== undefined) throw failure;
        const index = kinds.findIndex((kind) => kind.golden === golden);
        const { set } = kinds[index] ?? assert.fail('the kind is loaded');
        const rows = (together[index] ?? []).slice(softPromptRows(set));
        assert.equal(rows.length, golden.rows.length);
        golden.rows.forEach((row, position) => {
          const error = kindRowError(rows[position] ?? new Float32Array(0), row, golden.stride);
          assert.ok(error <= LOGIT_TOLERANCE, `position ${position} is off by ${error.toExponential(2)} of max|logit|`);
        });
      });
    }

    test('each alone gives the bits of the mixed batch', async () => {
      assertSame(together, await alone({ test: engine, make: () => sequencesOf(kinds) }), 'alone');
    });
  });
}

for (const isa of testedIsas()) for (const model of modelsWithKinds()) checkModel(model, isa);
