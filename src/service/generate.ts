/**
 * The use case of chat and completions: name → version, text → ids, checks, one engine sequence a choice, events out.
 * Called by the server's chat and completion routes.
 */
import type { GenerationDefaults } from '../checkpoint/checkpoint.js';
import type { Clock } from '../core/clock.js';
import { sequenceId } from '../core/ids.js';
import type { EnginePort, EngineRequest } from '../engine/port.js';
import type { RequestRecord } from '../telemetry/request-record.js';
import type { AdapterActivity } from './adapter-activity.js';
import { Choice } from './choice.js';
import type { GenerateCommand } from './commands.js';
import type { Generation } from './events.js';
import { GenerationRun } from './generation-run.js';
import type { Sequence } from './generation-run.js';
import type { Lifecycle } from './lifecycle.js';
import type { RequestLimits } from './limits.js';
import type { Entropy, TextModel, TextModels } from './ports.js';
import { checkOutput, invalid, preparePrompts } from './prepare.js';
import type { PreparedPrompt } from './prepare.js';
import type { QueueEstimate } from './queue-estimate.js';
import { atMost, resolveSampling } from './sampling.js';
import type { ModelTarget, ServedModels } from './served-models.js';
import type { VersionHolds } from './version-holds.js';

export interface GenerateDeps {
  readonly engine: EnginePort;
  readonly texts: TextModels;
  readonly models: ServedModels;
  readonly limits: RequestLimits;
  /** generation_config.json of the base. */
  readonly defaults: GenerationDefaults;
  /** The model's own end-of-sequence ids. */
  readonly eosTokenIds: readonly number[];
  readonly lifecycle: Lifecycle;
  readonly holds: VersionHolds;
  readonly activity: AdapterActivity;
  readonly estimate: QueueEstimate;
  readonly entropy: Entropy;
  readonly clock: Clock;
}

export interface GenerateContext {
  /** Aborted when the client goes away. */
  readonly signal: AbortSignal;
  readonly record: RequestRecord;
}

/** OpenAI's default of the completions API. */
const COMPLETION_MAX_TOKENS = 16;

/**
 * Resolves when the engine has accepted every sequence of the request; throws what can be answered with a status.
 * The caller reads the events to their end.
 */
export async function generate(
  deps: GenerateDeps,
  command: GenerateCommand,
  context: GenerateContext,
): Promise<Generation> {
  const shutdown = new AbortController();
  const permit = deps.lifecycle.enter((error) => shutdown.abort(error));
  let letGo: (() => void) | undefined;
  let leaveAdapter: (() => void) | undefined;
  const leave = (): void => {
    leaveAdapter?.();
    permit.leave();
  };
  try {
    refuseWhenFull(deps);
    const target = deps.models.resolve(command.model);
    letGo = deps.holds.take(target.version);
    const responseId = `${command.kind === 'chat' ? 'chatcmpl' : 'cmpl'}-${deps.entropy.id()}`;
    announce(command, target, responseId, context.record);
    const text = await deps.texts.lookup(target.version);
    const { limits, engine } = deps;
    checkCommand(command, limits);
    const prompts = await preparePrompts(command, { text, limits, info: engine.info });
    const sequences = expand(deps, command, { prompts, target, text, responseId });
    if (target.version !== undefined) leaveAdapter = deps.activity.enter(target.name);
    const signals = { client: context.signal, shutdown: shutdown.signal };
    const run = new GenerationRun(deps, { sequences, prompts, ...signals, record: context.record, leave });
    await run.start();
    return run.describe({ id: responseId, target, choicesPerPrompt: command.output.choices });
  } catch (error) {
    leave();
    throw error;
  } finally {
    letGo?.();
  }
}

/** Says no before any work is done for the request. */
function refuseWhenFull({ engine, lifecycle, estimate }: GenerateDeps): void {
  const { maxQueue, maxNumSeqs } = engine.info;
  const { running, waiting } = engine.stats();
  const most = maxNumSeqs + maxQueue;
  if (lifecycle.active > most || running + waiting >= most) throw estimate.overloaded();
}

function checkCommand(command: GenerateCommand, limits: RequestLimits): void {
  checkOutput(command.output, limits);
  atMost('cache_salt', command.cacheSalt?.length ?? 0, { limits, limit: 'cacheSaltChars', unit: 'characters' });
  if (command.stream && command.output.promptLogprobs !== undefined) {
    throw invalid('prompt_logprobs', "'prompt_logprobs' cannot be streamed. Send stream: false, or leave it out.");
  }
}

function announce(command: GenerateCommand, target: ModelTarget, responseId: string, record: RequestRecord): void {
  const { sampling, output } = command;
  record.generationStarted({
    operation: command.kind === 'chat' ? 'chat' : 'text_completion',
    responseId,
    model: target.name,
    adapterVersion: target.version,
    attributes: {
      'gen_ai.request.max_tokens': sampling.maxTokens,
      'gen_ai.request.temperature': sampling.temperature,
      'gen_ai.request.top_p': sampling.topP,
      'gen_ai.request.top_k': sampling.topK,
      'gen_ai.request.seed': sampling.seed,
      'gen_ai.request.stream': command.stream,
      'gen_ai.request.choice.count': output.choices === 1 ? undefined : output.choices,
    },
  });
}

interface Expansion {
  readonly prompts: readonly PreparedPrompt[];
  readonly target: ModelTarget;
  readonly text: TextModel;
  readonly responseId: string;
}

/** One sequence for every choice of every prompt; choice number = prompt · n + i, as OpenAI counts. */
function expand(deps: GenerateDeps, command: GenerateCommand, expansion: Expansion): Sequence[] {
  const total = expansion.prompts.length * command.output.choices;
  const { maxNumSeqs, maxQueue } = deps.engine.info;
  if (total > maxNumSeqs + maxQueue) {
    const message =
      `The request asks for ${total} sequences (prompts times n); ${maxNumSeqs} may run and ${maxQueue} wait. ` +
      'Split it, or start the server with a larger --max-queue.';
    throw invalid(command.kind === 'chat' ? 'n' : 'prompt', message);
  }
  return expansion.prompts.flatMap((prompt, index) => expandPrompt(deps, command, expansion, prompt, index));
}

function expandPrompt(
  deps: GenerateDeps,
  command: GenerateCommand,
  expansion: Expansion,
  prompt: PreparedPrompt,
  index: number,
): Sequence[] {
  const { output } = command;
  const { text, target, responseId } = expansion;
  const echo = command.kind === 'completion' && command.echo;
  const promptOnly = echo && command.sampling.maxTokens === 0;
  const resolved = resolveSampling(command.sampling, {
    defaults: deps.defaults,
    limits: deps.limits,
    vocabSize: deps.engine.info.vocabSize,
    maxModelLen: deps.engine.info.maxModelLen,
    promptTokens: prompt.ids.length,
    defaultMaxTokens: defaultMaxTokens(command, deps.defaults),
    endOfTurnIds: text.endOfTurnIds,
    randomSeed: () => deps.entropy.seed(),
    minMaxTokens: echo ? 0 : 1,
  });
  const promptLogprobs = most(output.promptLogprobs, echo ? output.logprobs : undefined);
  const askedStopIds = new Set(command.sampling.stopTokenIds ?? []);
  const stopIds = new Set([...resolved.stopTokenIds, ...deps.eosTokenIds]);
  return Array.from({ length: output.choices }, (_, choice) => {
    const id = sequenceId(`${responseId}-${index * output.choices + choice}`);
    const request: EngineRequest = {
      id,
      promptIds: prompt.ids,
      emittedIds: [],
      sampling: {
        ...resolved,
        maxTokens: promptOnly ? 1 : resolved.maxTokens,
        choice,
        ...(output.logprobs === undefined ? {} : { logprobs: output.logprobs }),
        ...(promptLogprobs === undefined ? {} : { promptLogprobs }),
      },
      ...(target.version === undefined ? {} : { adapter: target.version }),
      ...(command.cacheSalt === undefined ? {} : { cacheSalt: command.cacheSalt }),
    };
    const decoder = new Choice({
      ...output,
      id,
      text,
      promptIds: prompt.ids,
      echo: prompt.echo,
      promptOnly,
      minTokens: resolved.minTokens,
      stopIds,
      askedStopIds,
      logprobs: output.logprobs,
      promptLogprobs: output.promptLogprobs,
      returnIds: output.returnTokenIds,
    });
    return { request, choice: decoder, prompt: index };
  });
}

/** The chat API fills the context unless generation_config.json says otherwise; the completions API stops early. */
function defaultMaxTokens(command: GenerateCommand, defaults: GenerationDefaults): number {
  const limit = defaults.maxNewTokens ?? Infinity;
  return command.kind === 'chat' ? limit : Math.min(limit, COMPLETION_MAX_TOKENS);
}

function most(a: number | undefined, b: number | undefined): number | undefined {
  return a === undefined ? b : Math.max(a, b ?? a);
}
