/**
 * The composition root: the only place that makes concrete things and wires them. `serve.ts` runs what it returns; tests
 * and benchmarks compose the same way, so that they measure and check what users run.
 */
import { readFile, realpath } from 'node:fs/promises';
import path from 'node:path';
import { AdapterRegistry } from '../adapters/registry.js';
import { DEFAULT_ADAPTER_LIMITS } from '../adapters/adapter-folder.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import type { Checkpoint } from '../checkpoint/checkpoint.js';
import { isLoopback } from '../config/checks.js';
import type { ResolvedConfig } from '../config/resolved-config.js';
import type { Clock } from '../core/clock.js';
import { ManyfoldError, toPlainError } from '../core/errors.js';
import { createInProcessEngine } from '../engine/in-process-engine.js';
import type { EnginePort } from '../engine/port.js';
import type { NativeBinding, NativeEngine } from '../native/binding-types.js';
import { loadNative } from '../native/load-binding.js';
import { toNativeModel } from '../native/native-model.js';
import { createApp, type App } from '../server/app.js';
import { LOOPBACK_HOSTS } from '../server/host-check.js';
import { systemEntropy } from '../service/entropy.js';
import { createService, type Service } from '../service/service.js';
import { createMetrics } from '../telemetry/metrics.js';
import type { Logger } from '../telemetry/log.js';
import type { Telemetry } from '../telemetry/request-record.js';
import { createTemplateRenderer } from '../text/chat-template.js';
import { createTextModel } from '../text/text-model.js';
import { TextRegistry } from '../text/text-registry.js';
import { demoAdapterFolder } from './demo-adapters.js';
import { enginePlan, type EnginePlan } from './engine-plan.js';
import { serviceTextModels } from './text-models.js';
import { packageVersion } from './version.js';

export interface ComposeOptions {
  readonly config: ResolvedConfig;
  /** Path of the model's file or folder; already on this machine. */
  readonly modelPath: string;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Bytes of weights done, and in all. */
  readonly onProgress?: (done: number, total: number) => void;
}

export interface Composition {
  readonly config: ResolvedConfig;
  readonly checkpoint: Checkpoint;
  readonly plan: EnginePlan;
  readonly native: NativeEngine;
  readonly engine: EnginePort;
  readonly registry: AdapterRegistry;
  readonly service: Service;
  readonly telemetry: Telemetry;
  readonly app: App;
  /** Cancels what runs and frees everything. The server must have been drained. */
  close(): Promise<void>;
}

export async function compose(options: ComposeOptions): Promise<Composition> {
  const { config, clock, logger } = options;
  const checkpoint = await openCheckpoint(options.modelPath);
  const binding = loadNative();
  const plan = enginePlan(config.engine, checkpoint, binding.info());
  const renderer = createTemplateRenderer({ clock });
  const native = await createNative(binding, checkpoint, plan, options);
  try {
    const chatTemplate = await chatTemplateFile(config.model.chatTemplateFile);
    const text = await createTextModel({
      source: checkpoint.text,
      renderer,
      ...(chatTemplate === undefined ? {} : { chatTemplate }),
    });
    const limits = { ...DEFAULT_ADAPTER_LIMITS, maxRank: config.adapters.maxRank };
    const engine = createInProcessEngine({
      native,
      model: checkpoint.config,
      baseFingerprint: checkpoint.fingerprint,
      eosTokenIds: checkpoint.eosTokenIds,
      dtype: plan.native.dtype,
      limits: plan.engine,
      adapterLimits: limits,
      clock,
    });
    const base = {
      servedNames: servedNames(config, checkpoint),
      root: checkpoint.path,
      createdSeconds: clock.unixSeconds(),
    };
    const root = await adapterRoot(config.adapters.directory ?? demoAdapterFolder(config));
    const registry = new AdapterRegistry({
      root,
      reservedNames: base.servedNames,
      baseFingerprint: checkpoint.fingerprint,
      limits,
      clock,
    });
    const service = createService({
      engine,
      texts: serviceTextModels(new TextRegistry(checkpoint.fingerprint, text), root),
      adapters: registry,
      base,
      defaults: checkpoint.generation,
      eosTokenIds: checkpoint.eosTokenIds,
      limits: config.server.limits,
      maxLora: config.engine.maxNumSeqs,
      entropy: seeded(config),
      clock,
      logger,
    });
    await serveAdapters(config, registry, service);
    const telemetry = makeTelemetry(service, engine, clock, logger);
    const app = makeApp(config, service, telemetry);
    const close = async (): Promise<void> => {
      await engine.close();
      await renderer.close();
    };
    return { config, checkpoint, plan, native, engine, registry, service, telemetry, app, close };
  } catch (error) {
    native.dispose();
    await renderer.close();
    throw error;
  }
}

async function createNative(
  binding: NativeBinding,
  checkpoint: Checkpoint,
  plan: EnginePlan,
  { config, onProgress }: ComposeOptions,
): Promise<NativeEngine> {
  const { config: model, files, weights } = checkpoint;
  try {
    return await binding.createEngine({ model: toNativeModel(model), files, weights, ...plan.native }, onProgress);
  } catch (thrown) {
    throw loadFailure(thrown, config);
  }
}

/** What native code refuses while it loads is a setting or a file that the user can change. */
function loadFailure(thrown: unknown, { engine }: ResolvedConfig): ManyfoldError {
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  const code = thrown instanceof Error && 'code' in thrown ? thrown.code : undefined;
  if (code === 'unavailable' && engine.backend !== 'cpu') {
    return new ManyfoldError('invalid_config', message, { param: 'backend', cause: thrown });
  }
  if (code === 'unavailable') {
    return new ManyfoldError(
      'invalid_config',
      `${message}. Choose another --isa, or leave it out (it is ${engine.isa}).`,
      {
        param: 'isa',
        cause: thrown,
      },
    );
  }
  const mend =
    code === 'out_of_memory' ? 'Lower --kv-bytes, or use a machine with more memory' : 'Fetch the model again';
  return new ManyfoldError('invalid_model', `The model could not be loaded: ${message}. ${mend}.`, { cause: thrown });
}

/** Its real path, so that links inside can be told from links that leave it. */
async function adapterRoot(directory: string | undefined): Promise<string | undefined> {
  if (directory === undefined) return undefined;
  try {
    return await realpath(directory);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ManyfoldError(
      'invalid_config',
      `--adapter-dir: ${directory} cannot be read (${reason}). Check the path.`,
      {
        param: 'adapter-dir',
        cause,
      },
    );
  }
}

async function chatTemplateFile(file: string | undefined): Promise<string | undefined> {
  if (file === undefined) return undefined;
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ManyfoldError('invalid_config', `--chat-template: ${file} cannot be read (${reason}). Check the path.`, {
      cause,
    });
  }
}

/** The names given, or the name of the model's file or folder. */
function servedNames(config: ResolvedConfig, checkpoint: Checkpoint): readonly [string, ...string[]] {
  const [first, ...others] = config.model.servedModelNames;
  if (first !== undefined) return [first, ...others];
  const asked = config.model.model;
  const file = path.basename(checkpoint.path);
  const isPath = asked === undefined || file === path.basename(asked);
  return [isPath ? file.replace(/(?:[.-](?:[QF]\d\w*|BF16|IQ\d\w*))?\.gguf$/i, '') : asked];
}

/** With --seed every request that brings no seed of its own gets that one. */
function seeded({ engine: { seed } }: ResolvedConfig): typeof systemEntropy {
  return seed === undefined ? systemEntropy : { ...systemEntropy, seed: () => seed };
}

/** Those of the flags must all load; those of the folder may fail and are then listed with the reason. */
async function serveAdapters(config: ResolvedConfig, registry: AdapterRegistry, service: Service): Promise<void> {
  const failures: string[] = [];
  for (const { name, path: directory } of config.adapters.modules) {
    try {
      await service.manageAdapters.serve(await registry.inspectAnywhere(registry.checkName(name), directory));
    } catch (error) {
      failures.push(`  ${name}=${directory}: ${toPlainError(error).message}`);
    }
  }
  if (failures.length > 0) {
    const count = failures.length === 1 ? 'One adapter' : `${failures.length} adapters`;
    throw new ManyfoldError('invalid_config', `${count} of --adapter cannot be served:\n${failures.join('\n')}`, {
      param: 'adapter',
    });
  }
  for (const { name, directory } of await registry.scan()) {
    if (registry.resolve(name) !== undefined) continue;
    try {
      await service.manageAdapters.serve(await registry.inspect(registry.checkName(name), name));
    } catch (error) {
      registry.refuse(name, directory, error);
    }
  }
}

function makeTelemetry(service: Service, engine: EnginePort, clock: Clock, logger: Logger): Telemetry {
  const { info } = engine;
  const metrics = createMetrics(
    {
      modelName: service.models.base.servedNames[0],
      pageTokens: info.pageTokens,
      kvPages: info.kvPages,
      engine: () => engine.stats(),
      adapters: () => service.adapterSnapshot(),
    },
    clock,
  );
  return { logger, metrics, clock };
}

function makeApp(config: ResolvedConfig, service: Service, telemetry: Telemetry): App {
  const apiKeys = config.server.apiKeys.map((key) => key.reveal());
  // A web page may reach a loopback server without a key through a name of its own; the Host check stops that.
  const guarded = isLoopback(config.server.host) && apiKeys.length === 0;
  return createApp(
    { service, telemetry, version: packageVersion(), apiKeys },
    {
      runtimeLora: config.server.enableRuntimeLora,
      ...(guarded ? { allowedHosts: [...LOOPBACK_HOSTS, config.server.host] } : {}),
    },
  );
}
