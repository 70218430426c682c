import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { ManyfoldError } from '../../src/core/errors.js';
import { readScenario } from '../scenario/read-scenario.js';
import type { TracedRequest } from '../report/report-trace.js';
import { adapterChooser } from './adapter-choice.js';
import { arrivalTimes, askedSpanSeconds } from './arrivals.js';
import type { OpenArrivals } from './arrivals.js';
import { draw, drawTokens } from './lengths.js';
import type { Distribution } from './lengths.js';
import { planWorkload, promptOf, toReportTrace } from './plan.js';
import type { OpenWorkload, Workload } from './plan.js';
import { promptText } from './prompt-text.js';
import { derivedSeed, exponential, normal, pick, seededRandom } from './random.js';
import { parseTrace, traceText } from './trace-file.js';

const END = { durationSeconds: undefined, requests: undefined };

function mean(values: Iterable<number>): number {
  let sum = 0;
  let count = 0;
  for (const value of values) {
    sum += value;
    count++;
  }
  return sum / count;
}

function close(actual: number, expected: number, share: number): void {
  assert.ok(
    Math.abs(actual - expected) <= share * Math.abs(expected),
    `${actual} is not within ${share} of ${expected}`,
  );
}

function plan(yaml: string, names: readonly string[] = [], files: Readonly<Record<string, string>> = {}): Workload {
  return planWorkload(
    readScenario('s.yaml', (path) => files[path] ?? yaml),
    names,
  );
}

function openRequests(workload: Workload): readonly TracedRequest[] {
  return (workload.measured as OpenWorkload).requests;
}

describe('random numbers', () => {
  test('equal seeds give equal numbers, other seeds others', () => {
    const take = (seed: number): number[] => Array.from({ length: 5 }, seededRandom(seed));
    assert.deepEqual(take(7), take(7));
    assert.notDeepEqual(take(7), take(8));
    assert.notDeepEqual(take(7), take(7 + 2 ** 32), 'the upper bits of a seed count');
    assert.notEqual(derivedSeed(1, 'prompt', 3), derivedSeed(1, 'lengths', 3));
    assert.notEqual(derivedSeed(1, 'prompt', 3), derivedSeed(1, 'prompt', -3));
  });

  test('uniform, exponential, normal and pick have the moments that they should', () => {
    const random = seededRandom(1);
    const many = 200_000;
    close(mean(Array.from({ length: many }, random)), 0.5, 0.01);
    close(mean(Array.from({ length: many }, () => exponential(random))), 1, 0.02);
    const normals = Array.from({ length: many }, () => normal(random));
    assert.ok(Math.abs(mean(normals)) < 0.01);
    close(mean(normals.map((value) => value ** 2)), 1, 0.02);
    const counts = [0, 0, 0];
    for (let draws = 0; draws < 30_000; draws++) counts[pick(3, random)] = (counts[pick(3, random)] ?? 0) + 1;
    for (const count of counts) close(count, 10_000, 0.05);
  });

  test('neighbouring indices do not correlate', () => {
    const first = Array.from({ length: 50_000 }, (_, index) => seededRandom(derivedSeed(1, 'lengths', index))());
    close(mean(first), 0.5, 0.01);
    const products = first.slice(1).map((value, index) => (value - 0.5) * ((first[index] ?? 0) - 0.5));
    assert.ok(Math.abs(mean(products)) < 0.002);
  });
});

describe('arrivals', () => {
  const times = (arrivals: OpenArrivals): Float64Array => arrivalTimes(arrivals, seededRandom(3));

  test('poisson: rate, and gaps whose deviation is their mean', () => {
    const arrivals = times({ kind: 'poisson', ratePerSecond: 50, end: { ...END, durationSeconds: 400 } });
    close(arrivals.length, 20_000, 0.03);
    const gaps = arrivals.slice(1).map((at, index) => at - (arrivals[index] ?? 0));
    close(mean(gaps), 20, 0.03);
    close(Math.sqrt(mean(gaps.map((gap) => (gap - 20) ** 2))), 20, 0.05);
    assert.ok(gaps.every((gap) => gap >= 0));
  });

  test('constant: exact', () => {
    assert.deepEqual(
      [...times({ kind: 'constant', ratePerSecond: 4, end: { ...END, requests: 4 } })],
      [0, 250, 500, 750],
    );
    const byTime: OpenArrivals = { kind: 'constant', ratePerSecond: 4, end: { ...END, durationSeconds: 1 } };
    assert.equal(times(byTime).length, 4);
    assert.equal(askedSpanSeconds(byTime, times(byTime)), 1);
  });

  test('bursts: at once, or scattered within the spread', () => {
    const burst = { kind: 'bursts', size: 3, everySeconds: 2, end: { ...END, requests: 7 } } as const;
    assert.deepEqual([...times({ ...burst, spreadSeconds: 0 })], [0, 0, 0, 2000, 2000, 2000, 4000]);
    const spread = [...times({ ...burst, spreadSeconds: 0.5 })];
    assert.deepEqual(
      spread,
      spread.toSorted((left, right) => left - right),
    );
    assert.ok(spread.slice(0, 3).every((at) => at >= 0 && at < 500));
    assert.equal(askedSpanSeconds({ ...burst, spreadSeconds: 0 }, Float64Array.from(spread)), 6);
  });

  test('ramp: as many as the area under the line, denser at its end', () => {
    const arrivals = times({ kind: 'ramp', fromPerSecond: 0, toPerSecond: 100, durationSeconds: 200 });
    close(arrivals.length, 10_000, 0.05);
    const half = arrivals.filter((at) => at < 100_000).length;
    close(half, 2500, 0.1);
    const down = times({ kind: 'ramp', fromPerSecond: 100, toPerSecond: 0, durationSeconds: 200 });
    close(down.filter((at) => at < 100_000).length, 7500, 0.05);
    assert.ok(down.every((at) => at >= 0 && at <= 200_000));
  });
});

describe('lengths', () => {
  const many = (distribution: Distribution): number[] => {
    const random = seededRandom(5);
    return Array.from({ length: 50_000 }, () => drawTokens(distribution, random));
  };

  test('each distribution has its centre and keeps its limits', () => {
    assert.deepEqual(new Set(many({ kind: 'fixed', value: 9 })), new Set([9]));
    const uniform = many({ kind: 'uniform', min: 2, max: 5 });
    for (const value of [2, 3, 4, 5]) close(uniform.filter((one) => one === value).length, 12_500, 0.05);
    const normals = many({ kind: 'normal', mean: 100, deviation: 20, min: 80, max: 1000 });
    assert.ok(normals.every((value) => value >= 80));
    const lognormal = many({ kind: 'lognormal', median: 200, sigma: 0.8, min: 1, max: 100_000 });
    close(lognormal.toSorted((left, right) => left - right)[25_000] ?? 0, 200, 0.02);
    close(mean(lognormal), 200 * Math.exp(0.32), 0.03);
    assert.deepEqual(new Set(many({ kind: 'samples', values: [3, 8] })), new Set([3, 8]));
  });

  test('limits that leave nothing are still kept', () => {
    const value = draw({ kind: 'normal', mean: 0, deviation: 1, min: 50, max: 60 }, seededRandom(1));
    assert.equal(value, 50);
  });
});

describe('adapter popularity', () => {
  const names = ['a', 'b', 'c', 'd'];
  const count = (choose: ReturnType<typeof adapterChooser>): Record<string, number> => {
    const counts: Record<string, number> = {};
    for (let index = 0; index < 40_000; index++) {
      const name = choose(index, seededRandom(derivedSeed(1, 'adapters', index))) ?? 'base';
      counts[name] = (counts[name] ?? 0) + 1;
    }
    return counts;
  };

  test('uniform, Zipf, weighted, distinct, identical, none, and a share for the base', () => {
    for (const value of Object.values(count(adapterChooser({ kind: 'uniform' }, names, 0)))) close(value, 10_000, 0.05);
    const zipf = count(adapterChooser({ kind: 'zipf', exponent: 1 }, names, 0));
    const unit = 40_000 / (1 + 1 / 2 + 1 / 3 + 1 / 4);
    for (const [rank, name] of names.entries()) close(zipf[name] ?? 0, unit / (rank + 1), 0.05);
    const weighted = count(adapterChooser({ kind: 'weighted', weights: [95, 0, 0, 5] }, names, 0));
    close(weighted['a'] ?? 0, 38_000, 0.02);
    assert.equal(weighted['b'], undefined);
    assert.deepEqual(count(adapterChooser({ kind: 'distinct' }, names, 0)), {
      a: 10_000,
      b: 10_000,
      c: 10_000,
      d: 10_000,
    });
    assert.deepEqual(count(adapterChooser({ kind: 'identical' }, names, 0)), { a: 40_000 });
    assert.deepEqual(count(adapterChooser({ kind: 'none' }, names, 0)), { base: 40_000 });
    close(count(adapterChooser({ kind: 'identical' }, names, 0.25))['base'] ?? 0, 10_000, 0.05);
  });
});

const OPEN = `name: s
seed: 11
arrivals: { kind: poisson, rate: 20, requests: 200 }
adapters: { kind: zipf, prefix: t-, count: 8 }
prompt: { tokens: { kind: lognormal, median: 40, sigma: 0.5 } }
output: { tokens: { kind: uniform, min: 4, max: 16 } }
`;
const NAMES = Array.from({ length: 8 }, (_, index) => `t-${index}`);

describe('a planned workload', () => {
  test('is the same for the same seed, to the last byte of the prompts', () => {
    const [first, second] = [plan(OPEN, NAMES), plan(OPEN, NAMES)];
    assert.deepEqual(openRequests(first), openRequests(second));
    assert.deepEqual(openRequests(first).map(promptOf), openRequests(second).map(promptOf));
    const other = plan(OPEN.replace('seed: 11', 'seed: 12'), NAMES);
    const hash = (workload: Workload): string => toReportTrace(openRequests(workload)).sha256;
    assert.equal(hash(first), hash(second));
    assert.notEqual(hash(first), hash(other));
    // Pinned: a change of the generators must raise GENERATOR_VERSION, for old reports promise these bytes.
    assert.equal(promptText(1, 3), 'experience road tax');
  });

  test('moves no measured request when warm-up or the number of requests changes', () => {
    const base = openRequests(plan(OPEN, NAMES));
    const warmed = plan(`${OPEN}warmup: { requests: 9 }\n`, NAMES);
    assert.deepEqual(openRequests(warmed), base);
    assert.equal(warmed.warmup.length, 9);
    const shorter = openRequests(plan(OPEN.replace('requests: 200', 'requests: 50'), NAMES));
    assert.deepEqual(shorter, base.slice(0, 50));
  });

  test('survives a trip through a trace file', () => {
    const requests = openRequests(
      plan(`${OPEN}`.replace('prompt: {', 'prompt: { shared-prefix: { tokens: 12, groups: 2 },'), NAMES),
    );
    const replayed = plan('name: r\narrivals: { kind: trace, file: t.jsonl }\n', [], {
      't.jsonl': traceText(requests),
    });
    const first = requests[0]?.atMs ?? 0;
    assert.deepEqual(openRequests(replayed).map(promptOf), requests.map(promptOf));
    for (const [index, { atMs, ...rest }] of openRequests(replayed).entries()) {
      const { atMs: original, ...wanted } = requests[index] as TracedRequest;
      assert.deepEqual(rest, wanted);
      assert.ok(Math.abs((atMs ?? 0) - ((original ?? 0) - first)) < 0.01);
    }
  });

  test('plays traces at another speed, and public ones with the scenario’s adapters', () => {
    const lines = [0, 1000, 2000].map((at) => `{"timestamp": ${at}, "input_length": 5, "output_length": 2}`).join('\n');
    const yaml =
      'name: r\narrivals: { kind: trace, file: t.jsonl, speed: 2 }\nadapters: { kind: distinct, names: [a, b] }\n';
    const workload = plan(yaml, ['a', 'b'], { 't.jsonl': lines });
    assert.deepEqual(
      openRequests(workload).map(({ atMs }) => atMs),
      [0, 500, 1000],
    );
    assert.deepEqual(
      openRequests(workload).map(({ adapter }) => adapter),
      ['a', 'b', 'a'],
    );
    assert.equal((workload.measured as OpenWorkload).askedPerSecond, 2);
  });

  test('shares prefixes within a group, and only there', () => {
    const yaml = OPEN.replace('prompt: {', 'prompt: { shared-prefix: { tokens: 12 },');
    const starts = new Map<string, Set<string>>();
    for (const request of openRequests(plan(yaml, NAMES))) {
      const start = promptOf(request).split(' ').slice(0, 12).join(' ');
      starts.set(request.adapter ?? '', (starts.get(request.adapter ?? '') ?? new Set()).add(start));
      assert.equal(promptOf(request).split(' ').length, request.promptTokens);
    }
    assert.ok([...starts.values()].every((set) => set.size === 1));
    assert.equal(new Set([...starts.values()].flatMap((set) => [...set])).size, starts.size);
  });
});

describe('trace files', () => {
  const refuses = (line: string, pattern: RegExp): void => {
    assert.throws(
      () => parseTrace(`{"atMs": 0, "promptTokens": 1, "outputTokens": 1}\n${line}\n`, 't.jsonl'),
      (error) => error instanceof ManyfoldError && error.code === 'invalid_config' && pattern.test(error.message),
    );
  };

  test('say which line is wrong and how', () => {
    refuses('{', /t\.jsonl:2 is not JSON/);
    refuses('{"atMs": 0, "promptToken": 1, "outputTokens": 1}', /t\.jsonl:2: promptTokens/);
    refuses(
      '{"atMs": 0, "promptTokens": 1, "outputTokens": 1, "adaptor": "x"}',
      /unknown key 'adaptor'\. Did you mean adapter/,
    );
    refuses('{"atMs": 0, "promptTokens": 0, "outputTokens": 1}', /promptTokens: /);
    refuses('{"atMs": null, "promptTokens": 1, "outputTokens": 1}', /closed loop/);
    assert.throws(() => parseTrace('\n', 't.jsonl'), /holds no request/);
  });

  test('are put into the order of their times', () => {
    const line = (at: number): string => `{"atMs": ${at}, "promptTokens": 1, "outputTokens": 1}`;
    assert.deepEqual(
      parseTrace([line(5), line(1), line(3)].join('\n'), 't').map(({ atMs }) => atMs),
      [1, 3, 5],
    );
  });
});
