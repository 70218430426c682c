/**
 * The rules of NativePlan (src/native/binding-types.ts), asserted on every step of the fake native engine, and one more
 * that only the engine can keep: a page that is written belongs to one sequence of a step.
 */
import assert from 'node:assert/strict';

import type { NativePlan } from '../../native/binding-types.js';

/** Hidden size of the fake model. */
export const HIDDEN = 4;

export interface PlanRules {
  readonly vocabSize: number;
  readonly kvPages: number;
  readonly pageTokens: number;
  readonly maxRows: number;
  readonly maxEntries: number;
  /** Positions that a loaded set's shared prefix takes; undefined when the handle is not loaded. */
  readonly prefixOf: (handle: number) => { readonly shared: number; readonly gated: boolean } | undefined;
}

export function checkPlan(plan: NativePlan, rules: PlanRules): void {
  checkRows(plan, rules);
  checkRuns(plan, rules);
  checkEntries(plan, rules);
}

function checkRows(plan: NativePlan, { vocabSize, maxRows }: PlanRules): void {
  const rows = plan.rowPosition.length;
  assert.ok(rows >= 1 && rows <= maxRows, `a step has ${rows} rows`);
  for (const column of [plan.rowSequence, plan.rowToken, plan.rowTerms, plan.rowGate])
    assert.equal(column.length, rows);
  const seen = new Set<number>();
  for (let r = 0; r < rows; r += 1) {
    const sequence = plan.rowSequence[r] ?? -1;
    const token = plan.rowToken[r] ?? vocabSize;
    assert.ok(token < vocabSize && (token >= 0 || -token * HIDDEN <= plan.embeddings.length), `token ${token}`);
    assert.ok((plan.rowTerms[r] ?? -2) >= -1 && (plan.rowTerms[r] ?? 0) < plan.termSets.length);
    if (r > 0 && plan.rowSequence[r - 1] === sequence) {
      assert.equal(plan.rowPosition[r], (plan.rowPosition[r - 1] ?? 0) + 1, 'rows of a sequence ascend one by one');
    } else {
      assert.ok(!seen.has(sequence), 'rows of a sequence stand together');
      seen.add(sequence);
    }
  }
  assert.equal(seen.size, plan.sequenceBase.length, 'every sequence has a row');
  assert.equal(new Set(plan.termSets).size, plan.termSets.length, 'a term set is named once');
}

function checkRuns(plan: NativePlan, { kvPages, pageTokens, prefixOf }: PlanRules): void {
  assert.equal(plan.sequenceRuns.length, plan.sequenceBase.length + 1);
  assert.equal(plan.sequenceRuns[0], 0);
  assert.equal(plan.sequenceRuns.at(-1), plan.runKind.length);
  for (const handle of plan.termSets) assert.ok(prefixOf(handle) !== undefined, `handle ${handle} is not loaded`);
  for (const page of plan.pages) assert.ok(page >= 0 && page < kvPages, `page ${page} is past the pool`);
  let pagesUsed = 0;
  for (let s = 0; s < plan.sequenceBase.length; s += 1) {
    let prefix = 0;
    for (let n = plan.sequenceRuns[s] ?? 0; n < (plan.sequenceRuns[s + 1] ?? 0); n += 1) {
      if (plan.runKind[n] === 0) {
        assert.equal(plan.runRef[n], pagesUsed);
        pagesUsed += Math.ceil((plan.runTokens[n] ?? 0) / pageTokens);
        continue;
      }
      const facts = prefixOf(plan.termSets[plan.runRef[n] ?? -1] ?? -1) ?? assert.fail('a prefix run names no set');
      assert.ok(plan.runKind[n] === 1 ? facts.shared > 0 : facts.gated, 'a prefix run names a set with such a prefix');
      if (plan.runKind[n] === 1) prefix += facts.shared;
    }
    assert.equal(plan.sequenceBase[s], prefix);
  }
  assert.equal(pagesUsed, plan.pages.length);
  checkWrites(plan, pageTokens);
}

/** A page that a row is written to belongs to one sequence; pages that are only read may be shared. */
function checkWrites(plan: NativePlan, pageTokens: number): void {
  const listed = new Map<number, number>();
  for (const page of plan.pages) listed.set(page, (listed.get(page) ?? 0) + 1);
  plan.rowPosition.forEach((position, r) => {
    const s = plan.rowSequence[r] ?? 0;
    for (let n = plan.sequenceRuns[s] ?? 0; n < (plan.sequenceRuns[s + 1] ?? 0); n += 1) {
      if (plan.runKind[n] !== 0) continue;
      const slot = position - (plan.sequenceBase[s] ?? 0);
      const page = plan.pages[(plan.runRef[n] ?? 0) + Math.floor(slot / pageTokens)] ?? -1;
      assert.equal(listed.get(page), 1, `row ${r} writes to page ${page}, which others list too`);
    }
  });
}

function checkEntries(plan: NativePlan, { vocabSize, maxEntries }: PlanRules): void {
  const entries = plan.entryRow.length;
  assert.ok(entries <= maxEntries, `a step has ${entries} entries`);
  assert.equal(new Set(plan.entryRow).size, entries, 'a row has at most one entry');
  const columns = [plan.entryTarget, plan.entryTopLogprobs, plan.entryMask];
  for (const column of columns) assert.equal(column.length, entries);
  assert.equal(plan.entryParams.length, entries * 8);
  assert.equal(plan.entrySeed.length, entries * 4);
  for (const [offsets, total] of [
    [plan.entryBias, plan.biasIds.length],
    [plan.entryHistory, plan.historyIds.length],
  ] as const) {
    assert.equal(offsets.length, entries + 1);
    assert.equal(offsets[0], 0);
    for (let e = 0; e < entries; e += 1) assert.ok((offsets[e + 1] ?? -1) >= (offsets[e] ?? 0));
    assert.equal(offsets.at(-1), total);
  }
  for (let e = 0; e < entries; e += 1) {
    const history = plan.historyIds.subarray(plan.entryHistory[e], plan.entryHistory[e + 1]);
    assert.equal(new Set(history).size, history.length, 'tokens of a history are distinct');
    const bias = plan.biasIds.subarray(plan.entryBias[e], plan.entryBias[e + 1]);
    assert.equal(new Set(bias).size, bias.length, 'tokens of a bias are distinct');
  }
  for (const id of [...plan.historyIds, ...plan.biasIds]) assert.ok(id >= 0 && id < vocabSize);
}
