import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { parseAdapterVersion } from '../core/ids.js';
import type { AdapterVersion } from '../core/ids.js';
import type { CompiledAdapter } from './importer.js';
import { Residency, transition } from './residency.js';
import type { AdapterLease, ResidencyOptions, ResidencyState } from './residency.js';

function version(digit: number): AdapterVersion {
  return parseAdapterVersion(`sha256:${String(digit % 10).repeat(64)}`) ?? assert.fail('no version');
}

const EMPTY: CompiledAdapter = { terms: { terms: [] }, notes: [] };

/** Memory that counts, and a clock that stands still until told. */
class Host {
  nowMs = 0;
  compiles = 0;
  readonly held = new Set<number>();
  #next = 1;
  compile: () => Promise<CompiledAdapter> = async () => EMPTY;

  options(): ResidencyOptions {
    return {
      compile: () => {
        this.compiles += 1;
        return this.compile();
      },
      native: {
        loadTerms: async () => {
          this.held.add(this.#next);
          return this.#next++;
        },
        freeTerms: (handle) => assert.ok(this.held.delete(handle), `handle ${handle} was freed twice`),
      },
      clock: { nowMs: () => this.nowMs, unixSeconds: () => 0 },
      failureMs: 1000,
    };
  }
}

const V = { version: version(1), directory: '/a' };

test('many who ask at once cause one load; the memory goes with the last lease', async () => {
  const host = new Host();
  const residency = new Residency(host.options());
  assert.equal(residency.lease(V.version), undefined);
  await Promise.all([residency.load(V), residency.load(V), residency.load(V)]);
  await residency.load(V);
  assert.equal(host.compiles, 1);
  const first = residency.lease(V.version) ?? assert.fail('resident');
  const second = residency.lease(V.version) ?? assert.fail('resident');
  residency.release(V.version);
  assert.equal(residency.lease(V.version), undefined, 'a released version may not be leased any more');
  first.release();
  first.release();
  assert.equal(host.held.size, 1);
  residency.assertConsistent();
  second.release();
  assert.equal(host.held.size, 0);
  await residency.close();
});

test('a version that is loaded again while it retires is not read again', async () => {
  const host = new Host();
  const residency = new Residency(host.options());
  await residency.load(V);
  const lease = residency.lease(V.version);
  residency.release(V.version);
  await residency.load(V);
  lease?.release();
  assert.equal(host.compiles, 1);
  assert.equal(host.held.size, 1);
  await residency.close();
  assert.equal(host.held.size, 0);
});

test('a failed load tells all who wait, leaves nothing, and is remembered for a while', async () => {
  const host = new Host();
  const residency = new Residency(host.options());
  host.compile = () => Promise.reject(new Error('broken'));
  const results = await Promise.allSettled([residency.load(V), residency.load(V)]);
  assert.deepEqual(
    results.map(({ status }) => status),
    ['rejected', 'rejected'],
  );
  await assert.rejects(residency.load(V), /broken/);
  assert.equal(host.compiles, 1);
  host.nowMs = 1000;
  host.compile = async () => EMPTY;
  await residency.load(V);
  assert.equal(host.compiles, 2);
  await residency.close();
});

test('a version that is released while it loads is given back as soon as it is there', async () => {
  const host = new Host();
  const residency = new Residency(host.options());
  const loading = residency.load(V);
  residency.release(V.version);
  await assert.rejects(loading, /was unloaded while it was loading\. Load it again/);
  assert.equal(host.held.size, 0);
  const again = residency.load(V);
  residency.release(V.version);
  await Promise.all([again, residency.load(V)]);
  assert.equal(residency.list().length, 1);
  await residency.close();
  assert.equal(host.held.size, 0);
});

test('impossible events throw', () => {
  const states: ResidencyState[] = [{ at: 'absent' }, { at: 'failed', untilMs: 1 }, { at: 'resident', leases: 0 }];
  for (const state of states) {
    assert.throws(() => transition(state, { type: 'loaded' }), /bug/);
    assert.throws(() => transition(state, { type: 'unlease' }), /bug/);
  }
});

test('any order of loads, failures, leases and releases keeps the sums and leaks nothing', async () => {
  const step = fc.record({
    action: fc.constantFrom('load', 'fail', 'lease', 'unlease', 'release', 'wait', 'later'),
    adapter: fc.nat(2),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const host = new Host();
      const residency = new Residency(host.options());
      const leases: AdapterLease[] = [];
      const pending: Promise<unknown>[] = [];
      for (const { action, adapter } of steps) {
        const location = { version: version(adapter), directory: '/x' };
        host.compile = action === 'fail' ? () => Promise.reject(new Error('broken')) : async () => EMPTY;
        if (action === 'load' || action === 'fail')
          pending.push(residency.load(location).catch((error: unknown) => error));
        if (action === 'lease') leases.push(...[residency.lease(location.version) ?? []].flat());
        if (action === 'unlease') leases.pop()?.release();
        if (action === 'release') residency.release(location.version);
        if (action === 'wait') await Promise.all(pending.splice(0));
        if (action === 'later') host.nowMs += 600;
        residency.assertConsistent();
        for (const { adapter: held } of leases)
          assert.ok(host.held.has(held.handle), 'a leased version lost its memory');
      }
      for (const lease of leases) lease.release();
      await residency.close();
      assert.equal(host.held.size, 0);
    }),
    { numRuns: 300 },
  );
});
