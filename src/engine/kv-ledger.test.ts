import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { KvLedger } from './kv-ledger.js';
import type { PageTable } from './kv-ledger.js';
import { pageKey } from './page-identity.js';
import type { PageOwner } from './page-identity.js';

/** Runs of consecutive page numbers. */
function runsOf(table: PageTable): number {
  const pages = table.pages.subarray(0, table.count);
  return pages.reduce((runs, page, i) => runs + (i > 0 && page === (pages[i - 1] ?? 0) + 1 ? 0 : 1), 0);
}

test('pages are taken for tokens, rolled back by tokens, and given back', () => {
  const ledger = new KvLedger(8, 16);
  const table = ledger.open();
  assert.ok(ledger.grow(table, 40, 40));
  assert.deepEqual([table.count, ledger.freePages], [3, 5]);
  assert.ok(ledger.grow(table, 48, 48));
  assert.equal(table.count, 3);
  for (const key of ['a', 'b', 'c']) ledger.seal(table, key);
  ledger.truncate(table, 33);
  assert.deepEqual([table.count, table.keys.length], [3, 2]);
  ledger.truncate(table, 16);
  assert.deepEqual([table.count, table.keys.length, ledger.freePages], [1, 1, 7]);
  ledger.truncate(table, 15);
  assert.deepEqual([table.count, table.keys.length], [1, 0]);
  assert.equal(ledger.grow(table, 8 * 16 + 1, 0), false);
  assert.equal(table.count, 1);
  assert.throws(() => {
    ledger.seal(table, 'd');
    ledger.seal(table, 'e');
  }, /no page for another key/);
  ledger.close(table);
  assert.throws(() => ledger.close(table), /closed twice/);
  ledger.assertConsistent();
});

test('sequences that grow together keep long runs while the pool has room', () => {
  const ledger = new KvLedger(1024, 16);
  const tables = Array.from({ length: 16 }, () => ledger.open());
  for (let tokens = 16; tokens <= 16 * 32; tokens += 16) {
    for (const table of tables) assert.ok(ledger.grow(table, tokens, tokens));
  }
  const runs = tables.map(runsOf);
  assert.equal(ledger.freePages, 512);
  assert.ok(Math.max(...runs) <= 5, `runs of 32 pages: ${runs.join(' ')}`);
  assert.ok(runs.reduce((sum, count) => sum + count, 0) <= 32, `runs of 32 pages: ${runs.join(' ')}`);
});

test('a prompt whose length is known is one run, chunk after chunk', () => {
  const ledger = new KvLedger(256, 16);
  const others = Array.from({ length: 4 }, () => ledger.open());
  const prompt = ledger.open();
  for (let tokens = 64; tokens <= 1024; tokens += 64) {
    assert.ok(ledger.grow(prompt, tokens, 1024));
    for (const other of others) assert.ok(ledger.grow(other, tokens / 4, tokens / 4));
  }
  assert.equal(runsOf(prompt), 1);
});

test('any order of growth, rollback and closing keeps the sum', () => {
  const action = fc.record({
    what: fc.constantFrom('open', 'grow', 'truncate', 'close'),
    which: fc.nat(5),
    tokens: fc.nat(120),
  });
  fc.assert(
    fc.property(fc.array(action, { maxLength: 80 }), fc.integer({ min: 1, max: 24 }), (actions, pages) => {
      const ledger = new KvLedger(pages, 8);
      const tables: PageTable[] = [];
      for (const { what, which, tokens } of actions) {
        const table = tables[which % Math.max(1, tables.length)];
        if (what === 'open') tables.push(ledger.open());
        if (table === undefined) continue;
        if (what === 'grow') {
          const fits = Math.ceil(tokens / 8) - table.count <= ledger.freePages;
          const before = table.count;
          assert.equal(ledger.grow(table, tokens, tokens * 2), fits);
          assert.equal(table.count, fits ? Math.max(before, Math.ceil(tokens / 8)) : before);
        }
        if (what === 'truncate') ledger.truncate(table, tokens);
        if (what === 'close') {
          ledger.close(table);
          tables.splice(tables.indexOf(table), 1);
        }
        ledger.assertConsistent();
      }
      for (const table of tables) ledger.close(table);
      assert.equal(ledger.freePages, pages);
    }),
    { numRuns: 500 },
  );
});

const BASE: PageOwner = { kind: 'base', fingerprint: 'f' };
const ADAPTER: PageOwner = { kind: 'adapter', version: 'f' };
const TOKENS = Int32Array.from({ length: 16 }, (_, i) => i);

function hex(parts: Partial<Parameters<typeof pageKey>[0]>): string {
  return pageKey({ parent: undefined, owner: BASE, salt: undefined, tokens: TOKENS, ...parts });
}

test('page keys differ in owner, salt, tokens and what comes before, and in nothing else', () => {
  const other = TOKENS.slice();
  other[15] = 99;
  const parent = '01'.repeat(32);
  const keys = [
    {},
    { owner: ADAPTER },
    { owner: { ...ADAPTER, activeFrom: 3 } },
    { owner: { ...ADAPTER, activeFrom: 4 } },
    { salt: 'f' },
    { salt: '' },
    { owner: ADAPTER, salt: 'f' },
    { tokens: other },
    { parent },
  ].map((parts) => hex(parts));
  assert.equal(new Set(keys).size, keys.length);
  assert.equal(hex({}), keys[0]);
  assert.equal(hex({ tokens: Int32Array.from([...TOKENS]) }), keys[0]);
  assert.equal(
    hex({ tokens: new Int32Array([5, ...TOKENS]).subarray(1) }),
    keys[0],
    'a view into a longer array is its own tokens',
  );
});

test('pages before an adapter begins to act are the base’s; later ones depend on what was before', () => {
  const first = pageKey({ parent: undefined, owner: BASE, salt: undefined, tokens: TOKENS });
  assert.equal(first, hex({}), 'shared with a request without the adapter');
  const adapterFirst = pageKey({ parent: undefined, owner: ADAPTER, salt: undefined, tokens: TOKENS });
  assert.notEqual(hex({ parent: first, owner: ADAPTER }), hex({ parent: adapterFirst, owner: ADAPTER }));
});
