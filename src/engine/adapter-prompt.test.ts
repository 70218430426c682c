/** Soft prompts and activated adapters, by what they make of plans and of answers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { NativePlan } from '../native/binding-types.js';
import { closeClean, loadAdapter, makeHarness, prompt, request, run, version } from './testing/harness.js';
import type { Harness } from './testing/harness.js';

const SOFT = 5;
const SOFT_ROWS = 3;
const ACTIVATED = 6;
const INVOCATION = [11, 12];

interface Row {
  readonly position: number;
  readonly token: number;
  readonly adapted: boolean;
}

/** Every row that the harness computes, in order. */
function watchRows({ native }: Harness): Row[] {
  const rows: Row[] = [];
  native.beforeStep = (plan: NativePlan) => {
    plan.rowPosition.forEach((position, r) => {
      rows.push({ position, token: plan.rowToken[r] ?? 0, adapted: (plan.rowTerms[r] ?? -1) >= 0 });
    });
  };
  return rows;
}

test('rows of a soft prompt come first, by value, and count as no tokens', async () => {
  const harness = makeHarness({ maxChunk: 2 });
  const rows = watchRows(harness);
  const adapter = await loadAdapter(harness.engine, SOFT);
  const { last, tokens } = await run(harness.engine, request(prompt(4), { maxTokens: 2 }, { adapter }));
  assert.equal(tokens.length, 2);
  assert.deepEqual(last.type === 'done' && last.usage, { promptTokens: 4, completionTokens: 2, cachedTokens: 0 });
  assert.deepEqual(
    rows.map(({ position }) => position),
    [0, 1, 2, 3, 4, 5, 6, 7],
  );
  assert.deepEqual(
    rows.map(({ token }) => token < 0),
    [true, true, true, false, false, false, false, false],
  );
  assert.ok(rows.every(({ adapted }) => adapted));
  await closeClean(harness);
});

test('the prompt of a soft prompt is scored from its second token on', async () => {
  const harness = makeHarness();
  const adapter = await loadAdapter(harness.engine, SOFT);
  const sampling = { maxTokens: 0, promptLogprobs: 0 };
  const { events, last } = await run(harness.engine, request(prompt(4), sampling, { adapter }));
  const scored = events.find((event) => event.type === 'prompt_logprobs');
  assert.equal(scored?.type === 'prompt_logprobs' && scored.positions.length, 3);
  assert.equal(last.type, 'done');
  const single = await run(harness.engine, request(prompt(1), sampling, { adapter }));
  assert.equal(single.last.type, 'done');
  await closeClean(harness);
});

test('a soft prompt takes room from the context', async () => {
  const harness = makeHarness({ maxModelLen: 10 });
  const adapter = await loadAdapter(harness.engine, SOFT);
  const fits = await run(harness.engine, request(prompt(6), { maxTokens: 9 }, { adapter }));
  assert.equal(fits.tokens.length, 10 - SOFT_ROWS - 6);
  const tooLong = await run(harness.engine, request(prompt(7), {}, { adapter }));
  assert.equal(tooLong.last.type === 'failed' && tooLong.last.error.code, 'context_length_exceeded');
  await closeClean(harness);
});

test('an activated adapter acts from the last occurrence of its invocation on', async () => {
  for (const maxChunk of [1, 3, 64]) {
    const harness = makeHarness({ maxChunk });
    const rows = watchRows(harness);
    const adapter = await loadAdapter(harness.engine, ACTIVATED);
    const promptIds = [1, ...INVOCATION, 2, 3, ...INVOCATION, 4];
    const { tokens } = await run(harness.engine, request(promptIds, { maxTokens: 3 }, { adapter }));
    assert.equal(tokens.length, 3);
    assert.deepEqual(
      rows.map(({ adapted }) => adapted),
      Array.from({ length: promptIds.length + 2 }, (_, i) => i >= 5),
    );
    await closeClean(harness);
  }
});

test('without its invocation an activated adapter is the base', async () => {
  const harness = makeHarness();
  const adapter = await loadAdapter(harness.engine, ACTIVATED);
  const base = await run(harness.engine, request(prompt(9), { maxTokens: 6 }));
  const inactive = await run(harness.engine, request(prompt(9), { maxTokens: 6 }, { adapter }));
  assert.deepEqual(inactive.tokens, base.tokens);
  const active = await run(harness.engine, request([...prompt(9), ...INVOCATION], { maxTokens: 6 }, { adapter }));
  const plain = await run(harness.engine, request([...prompt(9), ...INVOCATION], { maxTokens: 6 }));
  assert.notDeepEqual(active.tokens, plain.tokens);
  await closeClean(harness);
});

test('an interrupted sequence goes on with the same rows adapted', async () => {
  const harness = makeHarness();
  for (const number of [SOFT, ACTIVATED]) {
    const adapter = await loadAdapter(harness.engine, number);
    const promptIds = [...prompt(5), ...INVOCATION, 9];
    const whole = await run(harness.engine, request(promptIds, { maxTokens: 9 }, { adapter }));
    const emittedIds = whole.tokens.slice(0, 4);
    const rest = await run(harness.engine, request(promptIds, { maxTokens: 9 }, { adapter, emittedIds }));
    assert.deepEqual([...emittedIds, ...rest.tokens], whole.tokens, `adapter ${version(number)}`);
  }
  await closeClean(harness);
});
