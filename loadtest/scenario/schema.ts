/**
 * Scenario files as written: the one table of keys, defaults and meanings. Times are in seconds, latencies of the SLO in
 * milliseconds, both said by the key. scenario.ts turns the parsed file into what the runner takes.
 */
import { z } from 'zod';
import { count, field, nonNegative, oneOf, positive, share, text, wholeNumber, yesOrNo } from './fields.js';

export const DIALECTS = ['manyfold', 'vllm', 'lorax', 'llama-server', 'openai'] as const;
export type DialectName = (typeof DIALECTS)[number];
export const ROUTES = ['chat', 'completions', 'generate'] as const;
export type Route = (typeof ROUTES)[number];

const MAX_TOKENS = 1_000_000;
const tokens = (what: string, example: string) => count(what, example, MAX_TOKENS);

/** `100` is short for `{ kind: fixed, value: 100 }`. */
const TokenLengths = field(
  z.union([
    tokens('tokens', '100'),
    z.discriminatedUnion('kind', [
      z.strictObject({ kind: z.literal('fixed'), value: tokens('tokens', '100') }),
      z.strictObject({ kind: z.literal('uniform'), min: tokens('tokens', '10'), max: tokens('tokens', '200') }),
      z.strictObject({
        kind: z.literal('normal'),
        mean: positive('tokens', '200'),
        deviation: nonNegative('standard deviation in tokens', '50'),
        min: tokens('tokens', '1').default(1),
        max: tokens('tokens', '4096').default(MAX_TOKENS),
      }),
      z.strictObject({
        kind: z.literal('lognormal'),
        median: positive('tokens', '200'),
        sigma: nonNegative('standard deviation of the logarithm', '0.8'),
        min: tokens('tokens', '1').default(1),
        max: tokens('tokens', '4096').default(MAX_TOKENS),
      }),
      z.strictObject({
        kind: z.literal('file'),
        file: text('a text file with one number of tokens a line', 'lengths.txt'),
      }),
    ]),
  ]),
  'a number of tokens or a distribution',
  '{ kind: lognormal, median: 200, sigma: 0.8, max: 2000 }',
);

/** Seconds between an answer and the user's next request; `2` is short for fixed. */
const ThinkTime = field(
  z.union([
    nonNegative('seconds', '2'),
    z.discriminatedUnion('kind', [
      z.strictObject({ kind: z.literal('fixed'), value: nonNegative('seconds', '2') }),
      z.strictObject({ kind: z.literal('uniform'), min: nonNegative('seconds', '1'), max: positive('seconds', '5') }),
      z.strictObject({
        kind: z.literal('lognormal'),
        median: positive('seconds', '2'),
        sigma: nonNegative('standard deviation of the logarithm', '0.8'),
        min: nonNegative('seconds', '0').default(0),
        max: positive('seconds', '60').default(3600),
      }),
    ]),
  ]),
  'seconds or a distribution',
  '{ kind: uniform, min: 1, max: 5 }',
);

const end = {
  duration: positive('seconds', '60').optional(),
  requests: count('requests', '500').optional(),
};
const rate = positive('requests a second', '10');

const Arrivals = field(
  z.discriminatedUnion('kind', [
    z.strictObject({ kind: z.literal('poisson'), rate, ...end }),
    z.strictObject({ kind: z.literal('constant'), rate, ...end }),
    z.strictObject({
      kind: z.literal('bursts'),
      size: count('requests of one burst', '20', 100_000),
      every: positive('seconds from burst to burst', '5'),
      spread: nonNegative('seconds over which a burst is scattered', '0.5').default(0),
      ...end,
    }),
    z.strictObject({
      kind: z.literal('ramp'),
      from: nonNegative('requests a second at the begin', '1'),
      to: nonNegative('requests a second at the end', '20'),
      duration: positive('seconds', '60'),
    }),
    z.strictObject({
      kind: z.literal('trace'),
      file: text('a JSONL file, relative to the scenario', 'trace.jsonl'),
      speed: positive('2 plays it back twice as fast', '1').default(1),
      ...end,
    }),
    z.strictObject({
      kind: z.literal('closed'),
      concurrency: count('users, each with one request at a time', '16', 100_000),
      'think-time': ThinkTime.default(0),
      ...end,
    }),
  ]),
  'a mapping with a kind: poisson, constant, bursts, ramp, trace or closed',
  '{ kind: poisson, rate: 10, duration: 60 }',
);

const names = field(
  z.array(z.string().trim().min(1).max(512)).min(1).max(100_000),
  'a list of adapter names',
  '[tenant-a, tenant-b]',
);
/** Exactly one of names, prefix with count, and from-server. */
const pool = {
  names: names.optional(),
  prefix: text('names are the prefix and a number from 0', 'tenant-').optional(),
  count: count('how many names, with prefix; or how many of the server’s', '64', 100_000).optional(),
  'from-server': yesOrNo('the adapters that /v1/models lists').optional(),
  'base-share': share('part of the requests that go to the base model', '0.1').default(0),
};

const Adapters = field(
  z.discriminatedUnion('kind', [
    z.strictObject({ kind: z.literal('none') }),
    z.strictObject({ kind: z.literal('uniform'), ...pool }),
    z.strictObject({ kind: z.literal('zipf'), exponent: nonNegative('1 is Zipf’s law', '1.1').default(1), ...pool }),
    z.strictObject({ kind: z.literal('distinct'), ...pool }),
    z.strictObject({ kind: z.literal('identical'), ...pool }),
    z.strictObject({
      kind: z.literal('weighted'),
      weights: field(
        z.record(z.string().min(1), z.number().positive()).refine((value) => Object.keys(value).length > 0),
        'a mapping of adapter names to numbers above 0',
        '{ stable: 95, canary: 5 }',
      ),
      'base-share': pool['base-share'],
    }),
  ]),
  'a mapping with a kind: none, uniform, zipf, distinct, identical or weighted',
  '{ kind: zipf, prefix: tenant-, count: 64 }',
);

export const ScenarioFile = z.strictObject({
  name: text('a short name, shown in the report', 'chat-poisson'),
  description: text('a sentence', 'Many small tenants').optional(),
  seed: wholeNumber('equal seeds give equal requests', '1').default(1),
  target: field(
    z.strictObject({
      url: field(z.url({ protocol: /^https?$/ }), 'an http or https address', 'http://127.0.0.1:8000').default(
        'http://127.0.0.1:8000',
      ),
      dialect: oneOf(DIALECTS, 'how the server wants adapters to be named').default('manyfold'),
      route: oneOf(ROUTES, 'generate is LoRAX’s own route').optional(),
      model: text('name of the base model; left out: the first one of /v1/models', 'my-model').optional(),
      metrics: field(
        z.union([z.boolean(), z.url({ protocol: /^https?$/ })]),
        'true, false or the address of the metrics',
        'true',
      ).default(true),
      'lora-ids': field(
        z.record(z.string().min(1), z.int().min(0)),
        'llama-server: adapter names with their ids; left out: asked of /lora-adapters',
        '{ tenant-a: 0 }',
      ).optional(),
      'adapter-source': text('LoRAX: where adapters come from', 'local').optional(),
    }),
    'a mapping',
    '{ url: http://127.0.0.1:8000, dialect: vllm }',
  ).prefault({}),
  arrivals: Arrivals,
  warmup: field(
    z.strictObject({
      requests: wholeNumber('sent before the measured ones and not counted', '10').default(0),
      concurrency: count('warm-up requests in flight at once', '4', 10_000).default(4),
    }),
    'a mapping',
    '{ requests: 10 }',
  ).prefault({}),
  adapters: Adapters.default({ kind: 'none' }),
  prompt: field(
    z.strictObject({
      tokens: TokenLengths.default(100),
      'shared-prefix': field(
        z.strictObject({
          tokens: tokens('tokens that begin every prompt of a group, on top of its own', '500'),
          groups: count('how many different prefixes; one an adapter when left out', '4', 100_000).optional(),
        }),
        'a mapping',
        '{ tokens: 500 }',
      ).optional(),
      file: text('prompts of your own: one JSON string or {"prompt": …} a line', 'prompts.jsonl').optional(),
    }),
    'a mapping',
    '{ tokens: 200 }',
  ).prefault({}),
  output: field(
    z.strictObject({
      tokens: TokenLengths.default(64),
      'ignore-eos': yesOrNo('go on to the asked length whatever the model says; not for openai').default(true),
      temperature: nonNegative('0 always takes the most likely token', '0').default(0),
    }),
    'a mapping',
    '{ tokens: 64 }',
  ).prefault({}),
  slo: field(
    z.strictObject({
      'ttft-ms': positive('milliseconds', '500').optional(),
      'tpot-ms': positive('milliseconds', '50').optional(),
      'itl-p99-ms': positive('milliseconds', '200').optional(),
      'e2e-ms': positive('milliseconds', '10000').optional(),
    }),
    'a mapping',
    '{ ttft-ms: 500, tpot-ms: 50 }',
  ).prefault({}),
  limits: field(
    z.strictObject({
      'connect-timeout': positive('seconds', '10').default(10),
      'first-token-timeout': positive('seconds', '120').default(120),
      'idle-timeout': positive('seconds between two pieces', '60').default(60),
      'total-timeout': positive('seconds', '600').default(600),
      drain: nonNegative('seconds that the last requests get after the schedule is over', '120').default(120),
      'max-in-flight': count('requests in flight at once; more wait, and the wait counts', '4096', 100_000).default(
        4096,
      ),
    }),
    'a mapping',
    '{ total-timeout: 300 }',
  ).prefault({}),
  report: field(
    z.strictObject({
      'bucket-seconds': positive('width of a slice of the time line', '1').default(1),
      'metrics-interval': positive('seconds between two reads of /metrics', '1').default(1),
      'record-pieces': yesOrNo('keep the arrival time of every token').default(false),
    }),
    'a mapping',
    '{ bucket-seconds: 1 }',
  ).prefault({}),
});

export type ScenarioFields = z.output<typeof ScenarioFile>;
export type LengthFields = ScenarioFields['prompt']['tokens'];
export type ThinkTimeFields = Extract<ScenarioFields['arrivals'], { kind: 'closed' }>['think-time'];
