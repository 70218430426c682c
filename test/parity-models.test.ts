/**
 * Every tiny model as a Hugging Face folder, in float32, against what transformers and peft answered: logits at every
 * prompt position and 32 generated ones, greedy tokens, base and adapters inside one mixed batch.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import {
  forcedLogits,
  generateGreedy,
  loadAdapterFolder,
  openTestEngine,
  testedIsas,
  type TestEngine,
} from './support/engine.js';
import { checkForced, checkGreedy, GOLDENS, readGoldens, type GoldenCase, type Goldens } from './support/goldens.js';
import { NO_TERMS, TestSequence, type LoadedTerms } from './support/plan.js';

const MODELS = path.join(GOLDENS, 'models');

function nameOf(golden: GoldenCase): string {
  return `${golden.adapter ?? 'base'}, ${golden.prompt.length} tokens`;
}

/** One sequence a case, prompt alone or with the golden tokens after it. */
function sequencesOf(goldens: Goldens, loaded: ReadonlyMap<string, LoadedTerms>, forced: boolean): TestSequence[] {
  return goldens.cases.map((golden) => {
    const terms = golden.adapter == null ? NO_TERMS : loaded.get(golden.adapter);
    assert.ok(terms !== undefined, `adapter ${golden.adapter} is loaded`);
    return new TestSequence(forced ? [...golden.prompt, ...golden.greedy] : golden.prompt, { terms });
  });
}

async function loadAdapters(engine: TestEngine, folder: string): Promise<Map<string, LoadedTerms>> {
  const loaded = new Map<string, LoadedTerms>();
  for (const name of readdirSync(path.join(folder, 'adapters'))) {
    loaded.set(name, await loadAdapterFolder(engine, path.join(folder, 'adapters', name)));
  }
  return loaded;
}

function checkModel(name: string, isa: string): void {
  describe(`${name}, ${isa}`, () => {
    const folder = path.join(MODELS, name);
    const goldens = readGoldens(path.join(folder, 'goldens'));
    let engine: TestEngine;
    let loaded: Map<string, LoadedTerms>;

    before(async () => {
      engine = await openTestEngine(await openCheckpoint(folder), { isa });
      loaded = await loadAdapters(engine, folder);
    });
    after(() => {
      engine.engine.dispose();
    });

    test('all adapters and the base in one batch give the logits of transformers and peft', async () => {
      let largest = 0;
      const sequences = sequencesOf(goldens, loaded, true);
      const logits = await forcedLogits(engine, sequences, {
        chunk: 7,
        afterStep: (rows) => {
          largest = Math.max(largest, rows);
        },
      });
      assert.ok(largest >= 5 * loaded.size, 'a step held rows of all of them');
      goldens.cases.forEach((golden, i) => {
        checkForced(goldens, golden, logits[i] ?? [], nameOf(golden));
      });
    });

    test('greedy generation gives the same 32 tokens', async () => {
      const made = await generateGreedy(engine, sequencesOf(goldens, loaded, false), 32);
      goldens.cases.forEach((golden, i) => {
        checkGreedy(golden, made[i] ?? [], nameOf(golden));
      });
    });
  });
}

for (const isa of testedIsas()) {
  for (const entry of readdirSync(MODELS, { withFileTypes: true })) {
    if (entry.isDirectory()) checkModel(entry.name, isa);
  }
}
