/**
 * The configuration after all sources are joined and checked: frozen, and handed out in slices, so that no module sees
 * an option that is none of its business. Made by load-config.ts; the composition root passes the slices on.
 */
import type { AdapterModule } from './option-types.js';
import type { OptionKey, OptionValues } from './options.js';
import type { Secret } from './secret.js';
import type { Origin } from './sources.js';

export interface ModelSettings {
  /** A file, a folder or a hub id; undefined: the built-in default model. */
  readonly model: string | undefined;
  readonly dtype: 'auto' | 'f32' | 'bf16' | 'int8' | 'q4';
  readonly chatTemplateFile: string | undefined;
  /** Names in the API, the first is used in answers; empty: derived from the model. */
  readonly servedModelNames: readonly string[];
  /** Absolute or relative to the working directory; `~` is resolved. */
  readonly cacheDir: string;
  readonly hubEndpoint: string;
  readonly hubToken: Secret | undefined;
  readonly revision: string;
}

export interface EngineSettings {
  readonly dtype: 'auto' | 'f32' | 'bf16' | 'int8' | 'q4';
  /** Tokens; undefined: the model's own, cut to what the KV pool holds. */
  readonly maxModelLen: number | undefined;
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  readonly maxQueue: number;
  readonly kvBytes: number;
  readonly kvCacheDtype: 'auto' | 'int8';
  readonly prefixCache: boolean;
  /** 0: one for each core. */
  readonly threads: number;
  readonly backend: 'cpu' | 'cuda';
  readonly isa: string;
  /** Seed of requests that bring none; undefined: random. */
  readonly seed: number | undefined;
}

/** Bounds on what one request may ask; the names are those of src/service/limits.ts. */
export interface RequestLimits {
  readonly bodyBytes: number;
  readonly messages: number;
  readonly promptBytes: number;
  readonly prompts: number;
  readonly stops: number;
  readonly stopChars: number;
  readonly choices: number;
  readonly logitBias: number;
  readonly topLogprobs: number;
  readonly stopTokenIds: number;
  readonly tools: number;
  readonly cacheSaltChars: number;
}

export interface ServerSettings {
  readonly host: string;
  readonly port: number;
  /** Of --api-key and --api-key-file together; empty: no key is asked for. */
  readonly apiKeys: readonly Secret[];
  readonly shutdownTimeoutMs: number;
  /** From the first byte of a request to its last. */
  readonly receiveTimeoutMs: number;
  /** The load and unload routes exist. */
  readonly enableRuntimeLora: boolean;
  readonly limits: RequestLimits;
}

export interface AdapterSettings {
  /** To be loaded at the start; one that fails stops it. */
  readonly modules: readonly AdapterModule[];
  /** Folder of adapter folders; undefined: none. */
  readonly directory: string | undefined;
  readonly maxRank: number;
}

export interface LoggingSettings {
  readonly level: 'debug' | 'info' | 'warn' | 'error' | 'silent';
}

export interface ResolvedConfig {
  readonly model: ModelSettings;
  readonly engine: EngineSettings;
  readonly server: ServerSettings;
  readonly adapters: AdapterSettings;
  readonly logging: LoggingSettings;
  /** Where the value of each option comes from. */
  readonly origins: Readonly<Record<OptionKey, Origin>>;
  /** All values by option, for `config print`. */
  readonly values: OptionValues;
}

/** Seconds as written to the milliseconds that code uses. */
function toMs(seconds: number): number {
  return Math.round(seconds * 1000);
}

export function toSlices(values: OptionValues, apiKeys: readonly Secret[]): Omit<ResolvedConfig, 'origins' | 'values'> {
  return {
    model: {
      model: values.model,
      dtype: values.dtype,
      chatTemplateFile: values.chatTemplate,
      servedModelNames: values.servedModelName,
      cacheDir: values.cacheDir,
      hubEndpoint: values.hubEndpoint,
      hubToken: values.hubToken,
      revision: values.revision,
    },
    engine: {
      dtype: values.dtype,
      maxModelLen: values.maxModelLen,
      maxNumSeqs: values.maxNumSeqs,
      maxNumBatchedTokens: values.maxNumBatchedTokens,
      maxQueue: values.maxQueue,
      kvBytes: values.kvBytes,
      kvCacheDtype: values.kvCacheDtype,
      prefixCache: values.enablePrefixCaching,
      threads: values.threads,
      backend: values.backend,
      isa: values.isa,
      seed: values.seed,
    },
    server: {
      host: values.host,
      port: values.port,
      apiKeys,
      shutdownTimeoutMs: toMs(values.shutdownTimeout),
      enableRuntimeLora: values.enableRuntimeLora,
      receiveTimeoutMs: toMs(values.receiveTimeout),
      limits: toLimits(values),
    },
    adapters: { modules: values.adapter, directory: values.adapterDir, maxRank: values.maxLoraRank },
    logging: { level: values.logLevel },
  };
}

function toLimits(values: OptionValues): RequestLimits {
  return {
    bodyBytes: values.maxBodyBytes,
    messages: values.maxMessages,
    promptBytes: values.maxPromptBytes,
    prompts: values.maxPrompts,
    stops: values.maxStopStrings,
    stopChars: values.maxStopChars,
    choices: values.maxN,
    logitBias: values.maxLogitBias,
    topLogprobs: values.maxLogprobs,
    stopTokenIds: values.maxStopTokenIds,
    tools: values.maxTools,
    cacheSaltChars: values.maxCacheSaltChars,
  };
}

/** Freezes plain objects and arrays all the way down; class instances guard themselves. */
export function deepFreeze<T>(value: T): T {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return value;
  Object.values(value).forEach(deepFreeze);
  return Object.freeze(value);
}
