/** A whole service over the fakes, with everything a test wants to look at. */
import type { EngineRequest } from '../../engine/port.js';
import { createLogger } from '../../telemetry/log.js';
import { createMetrics } from '../../telemetry/metrics.js';
import { RequestRecord } from '../../telemetry/request-record.js';
import type { Telemetry } from '../../telemetry/request-record.js';
import type { CompletionCommand } from '../commands.js';
import { DEFAULT_LIMITS } from '../limits.js';
import type { RequestLimits } from '../limits.js';
import type { Entropy } from '../ports.js';
import { createService } from '../service.js';
import type { Service, ServiceDeps } from '../service.js';
import { FakeAdapters } from './fake-adapters.js';
import { FakeEngine } from './fake-engine.js';
import type { FakeEngineOptions } from './fake-engine.js';
import { ManualClock } from './manual-clock.js';
import { TOY, toyIds, ToyTexts } from './toy-text.js';

export interface FixtureOptions extends Partial<Omit<FakeEngineOptions, 'answer'>> {
  /** Text to answer with, or ids for each request. */
  readonly answer?: string | ((request: EngineRequest) => readonly number[]);
  readonly limits?: Partial<RequestLimits>;
  readonly service?: Partial<ServiceDeps>;
}

export interface Fixture {
  readonly engine: FakeEngine;
  readonly adapters: FakeAdapters;
  readonly clock: ManualClock;
  readonly service: Service;
  readonly telemetry: Telemetry;
  /** Parsed log lines. */
  readonly log: Record<string, unknown>[];
  record(): RequestRecord;
}

export function makeFixture(options: FixtureOptions = {}): Fixture {
  const given = options.answer ?? 'Hello';
  const answer = typeof given === 'string' ? () => [...toyIds(given), TOY.eos] : given;
  const engine = new FakeEngine({ ...options, answer });
  const adapters = new FakeAdapters();
  const clock = new ManualClock();
  const log: Record<string, unknown>[] = [];
  const logger = createLogger({
    level: 'debug',
    destination: { write: (line) => void log.push(JSON.parse(line) as Record<string, unknown>) },
  });
  const service = createService({
    ...{ engine, adapters, clock, logger, texts: new ToyTexts(), entropy: countingEntropy() },
    base: { servedNames: ['toy', 'toy-alias'], root: 'models/toy', createdSeconds: 1_700_000_000 },
    defaults: {},
    eosTokenIds: [TOY.eos],
    limits: { ...DEFAULT_LIMITS, ...options.limits },
    maxLora: 4,
    ...options.service,
  });
  const metrics = createMetrics(
    {
      ...{ modelName: 'toy', pageTokens: engine.info.pageTokens, kvPages: engine.info.kvPages },
      engine: () => engine.stats(),
      adapters: () => service.adapterSnapshot(),
    },
    clock,
  );
  const telemetry: Telemetry = { logger, metrics, clock };
  const start = { id: 'test', method: 'POST', path: '/test', traceparent: undefined, tracestate: undefined };
  return { engine, adapters, clock, service, telemetry, log, record: () => new RequestRecord(telemetry, start) };
}

/** Ids count up, so that answers can be compared byte by byte. */
function countingEntropy(): Entropy {
  let count = 0;
  return {
    id: () => (count += 1).toString(16).padStart(32, '0'),
    seed: () => 1000 + (count += 1),
    jitter: () => 0,
  };
}

/** A completion of one prompt with every default. */
export function completion(prompt: string, changes: Partial<CompletionCommand> = {}): CompletionCommand {
  return {
    kind: 'completion',
    prompts: [prompt],
    addSpecialTokens: true,
    echo: false,
    sampling: {},
    output: OUTPUT,
    stream: false,
    ...changes,
  };
}

export const OUTPUT: CompletionCommand['output'] = {
  choices: 1,
  stops: [],
  includeStop: false,
  skipSpecialTokens: true,
  logprobsParam: 'logprobs',
  returnTokenIds: false,
};
