import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { ManyfoldError } from '../../src/core/errors.js';
import { planWorkload } from '../workload/plan.js';
import { readScenario } from './read-scenario.js';
import type { Scenario } from './scenario.js';

function read(yaml: string, files: Readonly<Record<string, string>> = {}): Scenario {
  return readScenario('dir/s.yaml', (path) => {
    const text = path === 'dir/s.yaml' ? yaml : files[path];
    if (text === undefined) throw new Error('no such file');
    return text;
  });
}

function messageOf(yaml: string, files: Readonly<Record<string, string>> = {}): string {
  try {
    read(yaml, files);
  } catch (error) {
    assert.ok(error instanceof ManyfoldError && error.code === 'invalid_config', String(error));
    return error.message;
  }
  return assert.fail(`was accepted: ${yaml}`);
}

const GOOD = 'name: s\narrivals: { kind: poisson, rate: 2, duration: 10 }\n';

describe('a scenario file', () => {
  test('needs a name and arrivals; all else has a default', () => {
    const scenario = read(GOOD);
    assert.equal(scenario.target.url, 'http://127.0.0.1:8000');
    assert.equal(scenario.target.metricsUrl, 'http://127.0.0.1:8000/metrics');
    assert.deepEqual(scenario.arrivals, {
      kind: 'poisson',
      ratePerSecond: 2,
      end: { durationSeconds: 10, requests: undefined },
    });
    assert.deepEqual(scenario.adapters.popularity, { kind: 'none' });
    assert.equal(scenario.limits.totalMs, 600_000);
    assert.equal(scenario.text, GOOD);
    assert.ok(Object.isFrozen(scenario) && Object.isFrozen(scenario.limits));
  });

  test('is overridden by the command line; the metrics follow the address', () => {
    const yaml = `${GOOD}target: { metrics: 'http://127.0.0.1:9/m' }\n`;
    assert.equal(read(yaml).target.metricsUrl, 'http://127.0.0.1:9/m');
    const scenario = readScenario('s.yaml', () => yaml, { url: 'http://127.0.0.1:1/base/', seed: 9 });
    assert.equal(scenario.target.url, 'http://127.0.0.1:1/base');
    assert.equal(scenario.target.metricsUrl, 'http://127.0.0.1:1/base/metrics');
    assert.equal(scenario.seed, 9);
  });

  test('takes another dialect, and checks the rest of the file against it', () => {
    const dialectOf = (yaml: string, dialect: 'llama-server' | 'vllm'): unknown =>
      readScenario('s.yaml', () => yaml, { dialect }).target.dialect;
    assert.equal(dialectOf(GOOD, 'llama-server'), 'llama-server');
    const lorax = `${GOOD}target: { dialect: lorax, route: generate }\n`;
    assert.throws(() => dialectOf(lorax, 'vllm'), /generate is a route of LoRAX, and the dialect is vllm/);
  });

  test('takes another rate or number of users where it has one', () => {
    const closed = 'name: s\narrivals: { kind: closed, concurrency: 2, duration: 1 }\n';
    const arrivalsOf = (yaml: string, overrides: object): unknown => readScenario('s', () => yaml, overrides).arrivals;
    assert.match(JSON.stringify(arrivalsOf(GOOD, { rate: 7 })), /"ratePerSecond":7/);
    assert.match(JSON.stringify(arrivalsOf(closed, { concurrency: 9 })), /"concurrency":9/);
    assert.throws(() => arrivalsOf(closed, { rate: 7 }), /--rate sets the rate of poisson or constant/);
    assert.throws(() => arrivalsOf(GOOD, { concurrency: 7 }), /--concurrency sets the users of a closed loop/);
  });

  test('may name files beside it', () => {
    const yaml = `${GOOD}prompt: { file: p.jsonl, tokens: { kind: file, file: l.txt } }\n`;
    const files = { 'dir/p.jsonl': '"one"\n{"prompt": "two", "x": 1}\n', 'dir/l.txt': '5\n\n7\n' };
    const { prompt } = read(yaml, files);
    assert.deepEqual(prompt.texts, ['one', 'two']);
    assert.deepEqual(prompt.tokens, { kind: 'samples', values: [5, 7] });
    assert.match(messageOf(yaml, { ...files, 'dir/l.txt': '5\nx\n' }), /l\.txt:2: got "x", expected a whole number/);
    assert.match(
      messageOf(yaml, { ...files, 'dir/p.jsonl': '"one"\ntwo\n' }),
      /p\.jsonl:2: got two, expected a JSON string/,
    );
    assert.match(messageOf(yaml), /dir\/\w\.\w+ cannot be read \(no such file\)\. Check the path/);
  });
});

describe('an error', () => {
  /** What is wrong, and what the message must say of it: key, what came, what was expected, the mend. */
  const cases: readonly (readonly [string, RegExp])[] = [
    ['nam: s\narrivals: { kind: poisson, rate: 2, duration: 1 }', /line 1: nam: unknown key\. Did you mean name\?/],
    [`${GOOD}sede: 4`, /line 3: sede: unknown key\. Did you mean seed\?/],
    [`${GOOD}zzz: 4`, /line 3: zzz: unknown key\. Delete it, or use one of name, description, seed/],
    [
      'name: s',
      /arrivals: is missing, expected a mapping with a kind: poisson.*Write for example arrivals: \{ kind: poisson/,
    ],
    [
      'name: s\narrivals: { kind: poison, rate: 1, duration: 1 }',
      /line 2: arrivals\.kind: got "poison", expected one of poisson, constant.*Did you mean poisson\?/,
    ],
    [
      'name: s\narrivals:\n  kind: poisson\n  rate: fast\n  duration: 1',
      /line 4: arrivals\.rate: got "fast", expected a number above 0 \(requests a second\)\. Write for example rate: 10\./,
    ],
    ['name: s\narrivals: { kind: poisson, rate: 0, duration: 1 }', /arrivals\.rate: got 0, expected a number above 0/],
    ['name: s\narrivals: { kind: poisson, duration: 1 }', /arrivals\.rate: is missing, expected a number above 0/],
    [
      'name: s\narrivals: { kind: poisson, rates: 2, rate: 1, duration: 1 }',
      /line 2: arrivals\.rates: unknown key\. Did you mean rate\?/,
    ],
    ['name: s\narrivals: { kind: poisson, rate: 1 }', /arrivals: nothing says when the run ends\. Add duration: 60/],
    [`${GOOD}adapters: { kind: zipf }`, /adapters: nothing says which adapters there are\. Give one of names/],
    [`${GOOD}adapters: { kind: zipf, prefix: a }`, /adapters: prefix needs to know how many/],
    [`${GOOD}adapters: { kind: zipf, names: [a], from-server: true }`, /given in more than one way/],
    [
      `${GOOD}adapters: { kind: weighted, weights: { a: -1 } }`,
      /adapters\.weights\.a: got -1, expected a mapping of adapter names to numbers above 0/,
    ],
    [`${GOOD}adapters: { kind: zipf, names: [a, 3] }`, /adapters\.names\.1: got 3, expected a list of adapter names/],
    [`${GOOD}prompt: { tokens: many }`, /prompt\.tokens: got "many", expected a number of tokens or a distribution/],
    [
      `${GOOD}prompt: { tokens: { kind: uniform, mni: 1, max: 2 } }`,
      /prompt\.tokens\.min: is missing[\s\S]*prompt\.tokens\.mni: unknown key\. Did you mean min\?/,
    ],
    [
      `${GOOD}prompt: { tokens: { kind: uniform, min: 5, max: 2 } }`,
      /prompt\.tokens: min 5 is above max 2\. Swap them/,
    ],
    [`${GOOD}output: { tokens: { kind: gauss } }`, /output\.tokens\.kind: got "gauss", expected one of fixed, uniform/],
    [
      `${GOOD}target: { dialect: vlm }`,
      /target\.dialect: got "vlm", expected one of manyfold, vllm.*Did you mean vllm\?/,
    ],
    [`${GOOD}target: { url: 'ftp://x' }`, /target\.url: got "ftp:\/\/x", expected an http or https address/],
    [`${GOOD}target: { url: 'http://u:p@127.0.0.1' }`, /holds a user, password, query/],
    [`${GOOD}target: { dialect: vllm, route: generate }`, /generate is a route of LoRAX/],
    [`${GOOD}target: { dialect: openai }`, /output\.ignore-eos: the plain OpenAI API has no such field/],
    [`${GOOD}limits: 5`, /line 3: limits: got 5, expected a mapping/],
    ['- a', /the file: got \["a"\]/],
    ['a: [', /is not YAML: .*Mend that line/],
    ['name: s\nname: t\n', /is not YAML: Map keys must be unique/],
    ['', /the file: got null/],
  ];
  for (const [yaml, pattern] of cases) {
    test(`names the key and the mend: ${JSON.stringify(yaml.slice(0, 90))}`, () => {
      assert.match(messageOf(yaml), pattern);
    });
  }

  test('tells all problems at once', () => {
    const message = messageOf('name: ""\narrivals: { kind: poisson, rate: -1, duration: 1 }\nsede: 1');
    assert.match(message, /name: got ""/);
    assert.match(message, /arrivals\.rate: got -1/);
    assert.match(message, /sede: unknown key/);
  });
});

test('every scenario that we ship can be read and planned', () => {
  const folder = 'loadtest/scenarios';
  const paths = readdirSync(folder).filter((name) => name.endsWith('.yaml'));
  assert.ok(paths.length >= 5);
  for (const name of paths) {
    const scenario = readScenario(join(folder, name), (path) => readFileSync(path, 'utf8'));
    const { measured } = planWorkload(scenario, ['a', 'b', 'c']);
    assert.ok(measured.loop === 'closed' || measured.requests.length > 10, name);
    assert.equal(`${scenario.name}.yaml`, name);
  }
});
