/** Reuse of KV pages between prompts: what is reused, what never is, and that answers do not depend on it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { KvLedger } from './kv-ledger.js';
import type { PageTable } from './kv-ledger.js';
import { closeClean, loadAdapter, makeHarness, prompt, request, run } from './testing/harness.js';
import type { Harness, Outcome } from './testing/harness.js';
import type { EngineRequest } from './port.js';

const LONG = prompt(40);

function cached({ last }: Outcome): number {
  return last.type === 'done' ? last.usage.cachedTokens : assert.fail(`it ended with ${last.type}`);
}

async function ask(
  { engine }: Harness,
  promptIds: readonly number[],
  others: Partial<EngineRequest> = {},
): Promise<Outcome> {
  return run(engine, request(promptIds, { maxTokens: 4 }, others));
}

test('a second prompt with the same beginning computes only the rest, and says so', async () => {
  const harness = makeHarness();
  const cold = await ask(harness, LONG);
  const rows = harness.native.rows;
  const warm = await ask(harness, LONG);
  assert.deepEqual(warm.tokens, cold.tokens);
  assert.deepEqual([cached(cold), cached(warm)], [0, 32]);
  assert.equal(harness.native.rows - rows, rows - 32);
  const longer = await ask(harness, [...LONG, ...cold.tokens, 1, 2, 3, 4, 5, 6]);
  assert.equal(cached(longer), 32, 'the last page of 40 + 3 tokens was not full');
  const fork = await ask(harness, [...LONG.slice(0, 20), ...prompt(20, 3)]);
  assert.equal(cached(fork), 16);
  const { prefixQueries, prefixHits } = harness.engine.stats();
  assert.deepEqual([prefixQueries, prefixHits], [40 + 40 + 50 + 40, 32 + 32 + 16]);
  await closeClean(harness);
});

test('a prompt of whole pages computes its last page, whose logits it needs', async () => {
  const harness = makeHarness();
  await ask(harness, LONG.slice(0, 32));
  assert.equal(cached(await ask(harness, LONG.slice(0, 32))), 16);
  assert.equal(cached(await ask(harness, LONG.slice(0, 33))), 32);
  await closeClean(harness);
});

test('nothing is shared between adapters, salts, or with the base', async () => {
  const harness = makeHarness();
  const one = await loadAdapter(harness.engine, 1);
  const two = await loadAdapter(harness.engine, 2);
  const ways: Partial<EngineRequest>[] = [
    {},
    { adapter: one },
    { adapter: two },
    { cacheSalt: 'a' },
    { cacheSalt: 'b', adapter: one },
  ];
  for (const way of ways) assert.equal(cached(await ask(harness, LONG, way)), 0);
  for (const way of ways) assert.equal(cached(await ask(harness, LONG, way)), 32);
  await closeClean(harness);
});

test('an adapter that is loaded again under its version finds its pages; another version does not', async () => {
  const harness = makeHarness();
  const adapter = await loadAdapter(harness.engine, 1);
  await ask(harness, LONG, { adapter });
  await harness.engine.release(adapter);
  await loadAdapter(harness.engine, 1);
  assert.equal(cached(await ask(harness, LONG, { adapter })), 32);
  await closeClean(harness);
});

test('an activated adapter shares what stands before its invocation with the base', async () => {
  const harness = makeHarness();
  const adapter = await loadAdapter(harness.engine, 6);
  const plain = prompt(30, 3).filter((id) => id !== 11 && id !== 12);
  const promptIds = [...plain.slice(0, 20), 11, 12, ...plain.slice(0, 4)];
  await ask(harness, promptIds);
  assert.equal(cached(await ask(harness, promptIds, { adapter })), 16);
  await closeClean(harness);
});

test('a prompt that wants its log-probabilities is computed whole', async () => {
  const harness = makeHarness();
  await ask(harness, LONG);
  const scored = await run(harness.engine, request(LONG, { maxTokens: 1, promptLogprobs: 0 }));
  assert.equal(cached(scored), 0);
  assert.ok(scored.events.some((event) => event.type === 'prompt_logprobs' && event.positions.length === 39));
  await closeClean(harness);
});

test('switched off, nothing is reused or remembered', async () => {
  const harness = makeHarness({ prefixCache: false });
  await ask(harness, LONG);
  assert.equal(cached(await ask(harness, LONG)), 0);
  assert.equal(harness.engine.stats().prefixHits, 0);
  await closeClean(harness);
});

test('a preempted sequence takes up what is left of its own pages', async () => {
  const sizes = { kvPages: 8, pageTokens: 4, maxModelLen: 32, maxChunk: 8 };
  const counted: number[] = [];
  for (const prefixCache of [false, true]) {
    const harness = makeHarness({ ...sizes, prefixCache });
    const outcomes = await Promise.all(
      [1, 2, 3].map((salt) => run(harness.engine, request(prompt(8, salt), { maxTokens: 20 }))),
    );
    for (const { tokens } of outcomes) assert.equal(tokens.length, 20);
    assert.ok(harness.engine.stats().preemptions > 0);
    counted.push(harness.native.rows);
    await closeClean(harness);
  }
  const [without = 0, withCache = 0] = counted;
  assert.ok(withCache <= without, `${withCache} rows with the cache, ${without} without`);
});

test('the least recently used pages are given up first, and never one that is held', () => {
  const ledger = new KvLedger(4, 4);
  const fill = (keys: readonly string[]): PageTable => {
    const table = ledger.open();
    assert.ok(ledger.grow(table, keys.length * 4, keys.length * 4));
    for (const key of keys) ledger.seal(table, key);
    return table;
  };
  ledger.close(fill(['a', 'b']));
  ledger.close(fill(['c']));
  assert.deepEqual(ledger.match(['a', 'b']), { pages: 2, idle: 2 });
  const held = ledger.open();
  ledger.adopt(held, ['a', 'b']);
  assert.deepEqual([ledger.freePages, ledger.idlePages], [2, 1]);
  const next = ledger.open();
  assert.equal(ledger.grow(next, 12, 12), false);
  assert.ok(ledger.grow(next, 8, 8));
  assert.deepEqual([ledger.match(['c']).pages, ledger.match(['a', 'b']).pages], [0, 2]);
  assert.throws(() => ledger.truncate(shared(ledger), 2), /rolled back into while others read it/);
  ledger.assertConsistent();
});

/** A second table that begins with page a. */
function shared(ledger: KvLedger): PageTable {
  const table = ledger.open();
  ledger.adopt(table, ['a']);
  return table;
}

test('any order of growth, sharing, rollback and closing keeps the sum', () => {
  const action = fc.record({
    what: fc.constantFrom('open', 'adopt', 'grow', 'seal', 'truncate', 'close'),
    which: fc.nat(5),
    size: fc.nat(10),
  });
  fc.assert(
    fc.property(fc.array(action, { maxLength: 100 }), fc.integer({ min: 1, max: 20 }), (actions, pages) => {
      const ledger = new KvLedger(pages, 8);
      const tables: PageTable[] = [];
      const chain = (which: number): string[] => Array.from({ length: 10 }, (_, i) => `${which % 2} ${i}`);
      for (const { what, which, size } of actions) {
        const table = tables[which % Math.max(1, tables.length)];
        if (what === 'open') tables.push(ledger.open());
        if (table === undefined) continue;
        if (what === 'adopt' && table.count === 0) {
          const keys = chain(which).slice(0, size);
          ledger.adopt(table, keys.slice(0, ledger.match(keys).pages));
        }
        if (what === 'grow') ledger.grow(table, size * 8, size * 8);
        if (what === 'seal' && table.keys.length < table.count)
          ledger.seal(table, chain(table.id)[table.keys.length] ?? 'x');
        if (what === 'truncate') ledger.truncate(table, size * 8);
        if (what === 'close') {
          ledger.close(table);
          tables.splice(tables.indexOf(table), 1);
        }
        ledger.assertConsistent();
      }
      for (const table of tables) ledger.close(table);
      assert.equal(ledger.freePages, pages);
      ledger.forgetIdle();
      assert.deepEqual([ledger.freePages, ledger.idlePages], [pages, 0]);
    }),
    { numRuns: 500 },
  );
});
