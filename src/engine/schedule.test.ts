import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { entriesOf, schedule } from './schedule.js';
import type { Plan, Schedulable, ScheduleBudget } from './schedule.js';

const BUDGET: ScheduleBudget = { maxRows: 16, maxEntries: 8, maxRunning: 4, maxChunk: 8, pageTokens: 4 };

/** A sequence whose known tokens are all wanted and whose last row samples. */
function sequence(arrival: number, length: number, computed: number, others: Partial<Schedulable> = {}): Schedulable {
  return {
    arrival,
    length,
    computed,
    goal: length,
    samples: true,
    scoreFrom: 0,
    scoreTo: 0,
    pages: Math.ceil(computed / 4),
    idlePages: 0,
    ...others,
  };
}

function summary(plan: Plan<Schedulable>): { chunks: [number, number][]; preempted: number[]; admitted: number[] } {
  return {
    chunks: plan.chunks.map((chunk) => [chunk.sequence.arrival, chunk.count]),
    preempted: plan.preempted.map(({ arrival }) => arrival),
    admitted: plan.admitted.map(({ arrival }) => arrival),
  };
}

test('decoding rows come first, then running prompts, then the queue, all in order of arrival', () => {
  const running = [sequence(1, 30, 8), sequence(2, 10, 9), sequence(3, 12, 11)];
  const plan = schedule({ running, waiting: [sequence(4, 9, 0), sequence(5, 9, 0)], freePages: 50 }, BUDGET);
  assert.deepEqual(summary(plan), {
    chunks: [
      [1, 8],
      [2, 1],
      [3, 1],
      [4, 6],
    ],
    preempted: [],
    admitted: [4],
  });
});

test('the head of the queue is not overtaken by one that would fit', () => {
  const plan = schedule(
    { running: [sequence(1, 10, 9)], waiting: [sequence(2, 40, 0), sequence(3, 2, 0)], freePages: 5 },
    BUDGET,
  );
  assert.deepEqual(summary(plan).admitted, []);
});

test('a sequence alone is admitted whatever the reserve', () => {
  const plan = schedule({ running: [], waiting: [sequence(2, 40, 0), sequence(3, 2, 0)], freePages: 10 }, BUDGET);
  assert.deepEqual(summary(plan), { chunks: [[2, 8]], preempted: [], admitted: [2] });
});

test('without a free page the newest gives way, as often as needed, and nobody is admitted', () => {
  const running = [sequence(1, 9, 8), sequence(2, 9, 8), sequence(3, 6, 5), sequence(4, 7, 6)];
  const plan = schedule({ running, waiting: [sequence(5, 1, 0)], freePages: 0 }, BUDGET);
  assert.deepEqual(summary(plan), {
    chunks: [
      [1, 1],
      [2, 1],
      [3, 1],
    ],
    preempted: [4],
    admitted: [],
  });
});

test('rows of a victim that was already planned are given back', () => {
  const running = [sequence(1, 9, 4), sequence(2, 6, 5)];
  const plan = schedule({ running, waiting: [], freePages: 0 }, { ...BUDGET, maxRows: 2 });
  assert.deepEqual(summary(plan), { chunks: [[1, 2]], preempted: [2], admitted: [] });
});

test('the newest stands still rather than give up its own work', () => {
  const plan = schedule({ running: [sequence(1, 7, 6), sequence(2, 9, 8)], waiting: [], freePages: 0 }, BUDGET);
  assert.deepEqual(summary(plan), { chunks: [[1, 1]], preempted: [], admitted: [] });
});

test('scored prompt rows are bounded by the entries of a step', () => {
  const scored = sequence(1, 20, 0, { scoreTo: 19 });
  const plan = schedule({ running: [], waiting: [scored], freePages: 10 }, { ...BUDGET, maxEntries: 5 });
  assert.deepEqual(summary(plan).chunks, [[1, 5]]);
  assert.equal(entriesOf({ ...scored, scoreFrom: 3 }, 0, 5), 2);
  assert.equal(entriesOf(scored, 15, 20), 5);
  const replay = sequence(1, 20, 0, { scoreFrom: 19, scoreTo: 19 });
  assert.deepEqual(
    summary(schedule({ running: [], waiting: [replay], freePages: 10 }, { ...BUDGET, maxEntries: 1, maxChunk: 64 }))
      .chunks,
    [[1, 16]],
  );
});

test('every plan keeps the budget, changes nothing, and lets the oldest advance', () => {
  const one = fc.record({ length: fc.integer({ min: 1, max: 40 }), computed: fc.nat(39), scored: fc.boolean() });
  const state = fc.record({
    running: fc.array(one, { maxLength: 6 }),
    waiting: fc.array(one, { maxLength: 6 }),
    free: fc.nat(20),
  });
  const sizes = fc.record({
    maxRows: fc.integer({ min: 6, max: 40 }),
    maxEntries: fc.integer({ min: 6, max: 40 }),
    maxChunk: fc.constantFrom(1, 7, 64),
  });
  fc.assert(
    fc.property(state, sizes, (given, size) => {
      const budget = { ...size, maxRunning: 6, pageTokens: 4 };
      const running = given.running.map(({ length, computed, scored }, i) =>
        Object.freeze(sequence(i, length, Math.min(computed, length - 1), scored ? { scoreTo: length - 1 } : {})),
      );
      const waiting = given.waiting.map(({ length }, i) => Object.freeze(sequence(10 + i, length, 0)));
      const held = running.reduce((sum, { pages }) => sum + pages, 0);
      // As the engine promises: the pool holds the longest sequence.
      const freePages = Math.max(given.free, 10 - held);
      const before = Object.freeze({ running: Object.freeze(running), waiting: Object.freeze(waiting), freePages });
      const plan = schedule(before, budget);

      const entries = plan.chunks.reduce(
        (sum, { sequence: s, count }) => sum + entriesOf(s, s.computed, s.computed + count),
        0,
      );
      const rows = plan.chunks.reduce((sum, { count }) => sum + count, 0);
      const freed = plan.preempted.reduce((sum, { pages }) => sum + pages, 0);
      const taken = plan.chunks.reduce(
        (sum, { sequence: s, count }) => sum + Math.max(0, Math.ceil((s.computed + count) / 4) - s.pages),
        0,
      );
      assert.ok(rows <= budget.maxRows && entries <= budget.maxEntries, 'rows and entries');
      assert.ok(taken <= freePages + freed, 'pages');
      assert.ok(
        plan.chunks.every(
          ({ sequence: s, count }) => count >= 1 && count <= budget.maxChunk && s.computed + count <= s.goal,
        ),
      );
      assert.ok(running.length - plan.preempted.length + plan.admitted.length <= budget.maxRunning);
      assert.deepEqual(plan.preempted, running.slice(running.length - plan.preempted.length).reverse());
      assert.deepEqual(plan.admitted, waiting.slice(0, plan.admitted.length));
      assert.ok(plan.chunks.every(({ sequence: s }) => !plan.preempted.includes(s)));
      const oldest = running[0] ?? waiting[0];
      if (oldest !== undefined)
        assert.ok(
          plan.chunks.some(({ sequence: s }) => s === oldest),
          'the oldest advances',
        );
      assert.deepEqual(schedule(before, budget), plan, 'the same state gives the same plan');
    }),
    { numRuns: 2000 },
  );
});
