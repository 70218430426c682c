/**
 * The default model in float32 against transformers: 64 prompts × 64 greedy tokens, logits at every prompt position and
 * 32 generated ones of some, and two LoRAs in the same mixed batch.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { dense } from '../src/adapters/testing/base.js';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import type { TermSet } from '../src/core/terms.js';
import { defaultModelPath } from './support/default-model.js';
import { forcedLogits, generateGreedy, loadTermSet, openTestEngine, type TestEngine } from './support/engine.js';
import { checkForced, checkGreedy, GOLDENS, readGoldens, type GoldenCase } from './support/goldens.js';
import { NO_TERMS, TestSequence, type LoadedTerms } from './support/plan.js';
import { recipeLora, type RecipeLora } from './support/recipe-lora.js';

const STEM = path.join(GOLDENS, 'smollm2', 'goldens');

interface RecipeHead {
  readonly lora: RecipeLora & { readonly sha256: Readonly<Record<string, string>> };
}

function hashOf(set: TermSet): string {
  const hash = createHash('sha256');
  for (const term of set.terms) {
    assert.ok(term.kind === 'lowrank');
    for (const { data } of [dense(term.a), dense(term.b)])
      hash.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return hash.digest('hex');
}

describe('SmolLM2-135M-Instruct in float32', () => {
  const goldens = readGoldens(STEM);
  const { lora } = JSON.parse(readFileSync(`${STEM}.json`, 'utf8')) as RecipeHead;
  const loaded = new Map<number, LoadedTerms>();
  let engine: TestEngine;

  before(async () => {
    const checkpoint = await openCheckpoint(await defaultModelPath());
    engine = await openTestEngine(checkpoint, { threads: 0, kvPages: 1024, maxRows: 256 });
    for (const [seed, sha256] of Object.entries(lora.sha256)) {
      const set = recipeLora(checkpoint.config, Number(seed), lora);
      assert.equal(hashOf(set), sha256, 'the recipe gives the adapter of the goldens');
      loaded.set(Number(seed), await loadTermSet(engine.engine, set));
    }
  });
  after(() => {
    engine.engine.dispose();
  });

  const sequence = (golden: GoldenCase, forced: boolean): TestSequence => {
    const terms = golden.seed == null ? NO_TERMS : loaded.get(golden.seed);
    assert.ok(terms !== undefined, 'the LoRA is loaded');
    return new TestSequence(forced ? [...golden.prompt, ...golden.greedy.slice(0, 32)] : golden.prompt, { terms });
  };
  const nameOf = (golden: GoldenCase): string =>
    `${golden.seed ?? 'base'}: ${JSON.stringify(golden.text ?? golden.user)}`;

  test('logits, base and LoRA rows in one batch', async () => {
    const cases = goldens.cases.filter(({ offset }) => offset !== undefined);
    assert.ok(cases.length >= 10 && cases.some(({ seed }) => seed != null));
    const logits = await forcedLogits(
      engine,
      cases.map((golden) => sequence(golden, true)),
      { chunk: 16 },
    );
    cases.forEach((golden, i) => {
      checkForced(goldens, golden, logits[i] ?? [], nameOf(golden));
    });
  });

  test('64 greedy tokens of 64 prompts, and of prompts under two LoRAs, in one batch', async () => {
    assert.equal(goldens.cases.filter(({ seed }) => seed == null).length, 64);
    const made = await generateGreedy(
      engine,
      goldens.cases.map((golden) => sequence(golden, false)),
      64,
    );
    goldens.cases.forEach((golden, i) => {
      checkGreedy(golden, made[i] ?? [], nameOf(golden));
    });
  });
});
