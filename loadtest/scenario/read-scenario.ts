/** Reads a scenario file: YAML → checked fields → {@link Scenario}. Every problem of the file is told at once. */
import { dirname, join } from 'node:path';
import { LineCounter, parseDocument } from 'yaml';
import { ManyfoldError } from '../../src/core/errors.js';
import type { AdapterPopularity } from '../workload/adapter-choice.js';
import type { End } from '../workload/arrivals.js';
import type { Distribution } from '../workload/lengths.js';
import { parseTrace } from '../workload/trace-file.js';
import { explainIssues } from './explain.js';
import { parseLengths, parsePrompts } from './length-files.js';
import { ScenarioFile } from './schema.js';
import type { DialectName, LengthFields, ScenarioFields, ThinkTimeFields } from './schema.js';
import type { AdapterPool, Arrivals, Scenario, Target } from './scenario.js';
import { checkTogether } from './together.js';

/** Content of a text file; throws when it cannot be read. */
export type ReadText = (path: string) => string;

/** What the command line may set over the file. */
export interface ScenarioOverrides {
  readonly url?: string;
  /** The same load for a server of another kind. */
  readonly dialect?: DialectName;
  readonly seed?: number;
  /** Requests a second of a poisson or constant scenario. */
  readonly rate?: number;
  /** Users of a closed one. */
  readonly concurrency?: number;
}

/** Throws 'invalid_config' with every problem of the file, a line each. */
export function readScenario(path: string, readText: ReadText, overrides: ScenarioOverrides = {}): Scenario {
  const text = readFile(path, readText);
  const fields = parseFields(text, path, overrides.dialect);
  const read = (file: string): string => readFile(file.startsWith('/') ? file : join(dirname(path), file), readText);
  return deepFreeze({
    name: fields.name,
    description: fields.description,
    seed: overrides.seed ?? fields.seed,
    target: toTarget(fields.target, overrides.url),
    arrivals: override(toArrivals(fields.arrivals, read), overrides),
    warmup: fields.warmup,
    adapters: toAdapters(fields.adapters),
    prompt: {
      tokens: toLengths(fields.prompt.tokens, read),
      prefix:
        fields.prompt['shared-prefix'] === undefined
          ? undefined
          : { tokens: fields.prompt['shared-prefix'].tokens, groups: fields.prompt['shared-prefix'].groups },
      texts: fields.prompt.file === undefined ? undefined : parsePrompts(read(fields.prompt.file), fields.prompt.file),
    },
    output: {
      tokens: toLengths(fields.output.tokens, read),
      ignoreEos: fields.output['ignore-eos'],
      temperature: fields.output.temperature,
    },
    slo: {
      ttftMs: fields.slo['ttft-ms'] ?? null,
      tpotMs: fields.slo['tpot-ms'] ?? null,
      itlP99Ms: fields.slo['itl-p99-ms'] ?? null,
      e2eMs: fields.slo['e2e-ms'] ?? null,
    },
    ...toSettings(fields),
    text,
    path,
  });
}

function toSettings({ limits, report }: ScenarioFields): Pick<Scenario, 'limits' | 'report'> {
  return {
    limits: {
      connectMs: limits['connect-timeout'] * 1000,
      firstTokenMs: limits['first-token-timeout'] * 1000,
      idleMs: limits['idle-timeout'] * 1000,
      totalMs: limits['total-timeout'] * 1000,
      drainMs: limits.drain * 1000,
      maxInFlight: limits['max-in-flight'],
    },
    report: {
      bucketMs: report['bucket-seconds'] * 1000,
      metricsIntervalMs: report['metrics-interval'] * 1000,
      recordPieces: report['record-pieces'],
    },
  };
}

function readFile(path: string, readText: ReadText): string {
  try {
    return readText(path);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ManyfoldError('invalid_config', `${path} cannot be read (${reason}). Check the path.`, { cause: error });
  }
}

function parseFields(text: string, path: string, dialect: DialectName | undefined): ScenarioFields {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: true });
  const [broken] = document.errors;
  if (broken !== undefined) {
    const reason = broken.message.split('\n')[0] ?? '';
    throw new ManyfoldError('invalid_config', `${path} is not YAML: ${reason.replace(/:$/, '')}. Mend that line.`);
  }
  const input: unknown = document.toJS({ maxAliasCount: 100 });
  const locate = (key: readonly PropertyKey[]): string | undefined => {
    for (let depth = key.length; depth > 0; depth--) {
      const node: unknown = document.getIn(key.slice(0, depth), true);
      const range = typeof node === 'object' && node !== null && 'range' in node ? node.range : undefined;
      if (Array.isArray(range)) return `line ${lines.linePos(range[0] as number).line}`;
    }
    return undefined;
  };
  const result = ScenarioFile.safeParse(input);
  const fields = result.success ? withDialect(result.data, dialect) : undefined;
  const problems = result.success ? [] : explainIssues(ScenarioFile, input, result.error, locate);
  if (fields !== undefined) problems.push(...checkTogether(fields));
  if (fields !== undefined && problems.length === 0) return fields;
  throw new ManyfoldError('invalid_config', [`${path} cannot be run:`, ...problems].join('\n  '));
}

function withDialect(fields: ScenarioFields, dialect: DialectName | undefined): ScenarioFields {
  return dialect === undefined ? fields : { ...fields, target: { ...fields.target, dialect } };
}

function toTarget(fields: ScenarioFields['target'], override: string | undefined): Target {
  const url = cleanUrl(override ?? fields.url);
  const { metrics } = fields;
  return {
    url,
    dialect: fields.dialect,
    route: fields.route ?? (fields.dialect === 'lorax' ? 'generate' : 'chat'),
    model: fields.model,
    // A server named on the command line has metrics of its own.
    metricsUrl:
      metrics === false ? undefined : metrics === true || override !== undefined ? `${url}/metrics` : cleanUrl(metrics),
    loraIds: fields['lora-ids'],
    adapterSource: fields['adapter-source'],
  };
}

function cleanUrl(text: string): string {
  if (!URL.canParse(text) || !/^https?:/.test(text)) {
    throw new ManyfoldError('invalid_config', `--url expects an address such as http://127.0.0.1:8000, not '${text}'.`);
  }
  const url = new URL(text);
  if (url.username !== '' || url.password !== '' || url.search !== '' || url.hash !== '') {
    throw new ManyfoldError(
      'invalid_config',
      'The address of the target holds a user, password, query or fragment, and reports store addresses. ' +
        'Give http(s)://host:port/path alone, and the key with --api-key or MANYFOLD_API_KEY.',
    );
  }
  return url.href.replace(/\/+$/, '');
}

function override(arrivals: Arrivals, { rate, concurrency }: ScenarioOverrides): Arrivals {
  if (rate !== undefined && arrivals.kind !== 'poisson' && arrivals.kind !== 'constant') {
    throw new ManyfoldError(
      'invalid_config',
      `--rate sets the rate of poisson or constant arrivals, and the scenario's are ${arrivals.kind}. Leave it out.`,
    );
  }
  if (concurrency !== undefined && arrivals.kind !== 'closed') {
    throw new ManyfoldError(
      'invalid_config',
      `--concurrency sets the users of a closed loop, and the scenario's arrivals are ${arrivals.kind}. Leave it out.`,
    );
  }
  if (arrivals.kind === 'closed') return { ...arrivals, concurrency: concurrency ?? arrivals.concurrency };
  return rate === undefined || !('ratePerSecond' in arrivals) ? arrivals : { ...arrivals, ratePerSecond: rate };
}

function toEnd({ duration, requests }: { duration?: number | undefined; requests?: number | undefined }): End {
  return { durationSeconds: duration, requests };
}

function toArrivals(fields: ScenarioFields['arrivals'], read: ReadText): Arrivals {
  switch (fields.kind) {
    case 'poisson':
    case 'constant':
      return { kind: fields.kind, ratePerSecond: fields.rate, end: toEnd(fields) };
    case 'bursts':
      return {
        kind: 'bursts',
        size: fields.size,
        everySeconds: fields.every,
        spreadSeconds: fields.spread,
        end: toEnd(fields),
      };
    case 'ramp':
      return { kind: 'ramp', fromPerSecond: fields.from, toPerSecond: fields.to, durationSeconds: fields.duration };
    case 'trace':
      return {
        kind: 'trace',
        lines: parseTrace(read(fields.file), fields.file),
        speed: fields.speed,
        end: toEnd(fields),
      };
    case 'closed':
      return {
        kind: 'closed',
        concurrency: fields.concurrency,
        thinkSeconds: toThinkTime(fields['think-time']),
        end: toEnd(fields),
      };
  }
}

function toThinkTime(fields: ThinkTimeFields): Distribution {
  return typeof fields === 'number' ? { kind: 'fixed', value: fields } : fields;
}

function toLengths(fields: LengthFields, read: ReadText): Distribution {
  if (typeof fields === 'number') return { kind: 'fixed', value: fields };
  if (fields.kind === 'file') return { kind: 'samples', values: parseLengths(read(fields.file), fields.file) };
  return fields;
}

function toAdapters(fields: ScenarioFields['adapters']): Scenario['adapters'] {
  if (fields.kind === 'none') {
    return { popularity: { kind: 'none' }, pool: { kind: 'names', names: [] }, baseShare: 0 };
  }
  const baseShare = fields['base-share'];
  if (fields.kind === 'weighted') {
    const popularity: AdapterPopularity = { kind: 'weighted', weights: Object.values(fields.weights) };
    return { popularity, pool: { kind: 'names', names: Object.keys(fields.weights) }, baseShare };
  }
  const popularity: AdapterPopularity =
    fields.kind === 'zipf' ? { kind: 'zipf', exponent: fields.exponent } : { kind: fields.kind };
  return { popularity, pool: toPool(fields), baseShare };
}

type PoolFields = Exclude<ScenarioFields['adapters'], { kind: 'none' } | { kind: 'weighted' }>;

function toPool({ names, prefix, count, 'from-server': fromServer }: PoolFields): AdapterPool {
  if (fromServer === true) return { kind: 'from-server', count };
  if (names !== undefined) return { kind: 'names', names };
  return { kind: 'names', names: Array.from({ length: count ?? 1 }, (_, index) => `${prefix ?? ''}${index}`) };
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}
