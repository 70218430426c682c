/** From a command to checked prompts in token ids. Cheap refusals end here, before the engine hears of the request. */
import { ManyfoldError } from '../core/errors.js';
import type { EngineInfo } from '../engine/port.js';
import type { ChatPrompt, CompletionCommand, GenerateCommand, OutputRequest } from './commands.js';
import { LIMIT_FLAGS } from './limits.js';
import type { RequestLimits } from './limits.js';
import type { TextModel } from './ports.js';
import { atMost, checkIds, whole } from './sampling.js';

export interface PreparedPrompt {
  readonly ids: readonly number[];
  /** The prompt's text when the answer shall begin with it. */
  readonly echo: string | undefined;
}

export interface PrepareContext {
  readonly text: TextModel;
  readonly limits: RequestLimits;
  readonly info: EngineInfo;
}

export async function preparePrompts(command: GenerateCommand, context: PrepareContext): Promise<PreparedPrompt[]> {
  if (command.kind === 'chat') {
    const ids = await renderChat(command.chat, context);
    checkPrompt(ids, 'messages', context);
    return [{ ids, echo: undefined }];
  }
  checkPromptSizes(command, context.limits);
  const prepared: PreparedPrompt[] = [];
  for (const prompt of command.prompts) prepared.push(await preparePrompt(prompt, command, context));
  return prepared;
}

/** Ids of a rendered conversation. Also used by tokenize.ts. */
export async function renderChat(chat: ChatPrompt, context: PrepareContext): Promise<readonly number[]> {
  const { limits } = context;
  if (chat.messages.length === 0) {
    throw invalid(
      'messages',
      "'messages' must have at least one message; it is empty. Add one with a role and a content.",
    );
  }
  atMost('messages', chat.messages.length, { limits, limit: 'messages', unit: 'messages' });
  atMost('tools', chat.tools?.length ?? 0, { limits, limit: 'tools', unit: 'tools' });
  let bytes = 0;
  for (const message of chat.messages) bytes += Buffer.byteLength(message.content ?? '');
  checkBytes('messages', bytes, limits);
  const { text, ids } = await context.text.renderChat(chat.messages, {
    addGenerationPrompt: chat.addGenerationPrompt,
    continueFinalMessage: chat.continueFinalMessage,
    kwargs: chat.templateArgs,
    ...(chat.tools === undefined ? {} : { tools: chat.tools }),
  });
  return chat.addSpecialTokens ? context.text.tokenizer.encodePrompt(text, 'completion') : ids;
}

async function preparePrompt(
  prompt: string | readonly number[],
  command: CompletionCommand,
  context: PrepareContext,
): Promise<PreparedPrompt> {
  const { tokenizer } = context.text;
  if (typeof prompt === 'string') {
    const ids = await tokenizer.encodePrompt(prompt, command.addSpecialTokens ? 'completion' : 'chat');
    checkPrompt(ids, 'prompt', context);
    return { ids, echo: command.echo ? prompt : undefined };
  }
  checkPrompt(prompt, 'prompt', context);
  checkIds('prompt', prompt, context.info.vocabSize);
  return { ids: prompt, echo: command.echo ? tokenizer.decode(prompt, { skipSpecialTokens: true }) : undefined };
}

function checkPromptSizes(command: CompletionCommand, limits: RequestLimits): void {
  atMost('prompt', command.prompts.length, { limits, limit: 'prompts', unit: 'prompts' });
  let bytes = 0;
  for (const prompt of command.prompts) if (typeof prompt === 'string') bytes += Buffer.byteLength(prompt);
  checkBytes('prompt', bytes, limits);
}

/** At least one token, and room for one more. */
function checkPrompt(ids: readonly number[], param: string, context: PrepareContext): void {
  if (ids.length === 0) {
    throw invalid(param, `'${param}' gives no tokens; at least one is needed. Send some text.`);
  }
  if (ids.length < context.info.maxModelLen) return;
  throw new ManyfoldError(
    'context_length_exceeded',
    `This model's context is ${context.info.maxModelLen} tokens and one must be left for the answer; the prompt has ` +
      `${ids.length}. Shorten the prompt, or start the server with ${moreContext(context.info)}.`,
    { param },
  );
}

/** What bounds the context: the KV pool, when one sequence may fill it, else the setting or the model itself. */
function moreContext({ kvPages, maxModelLen, pageTokens }: EngineInfo): string {
  if (maxModelLen === kvPages * pageTokens) return 'more --kv-bytes, which holds no longer sequence';
  return 'a larger --max-model-len, if the model was made for it';
}

export function checkBytes(param: string, bytes: number, limits: RequestLimits): void {
  if (bytes <= limits.promptBytes) return;
  throw invalid(
    param,
    `'${param}' may hold ${limits.promptBytes} bytes of text; ${bytes} came. Shorten it, or start the server with a ` +
      `larger ${LIMIT_FLAGS.promptBytes}.`,
  );
}

/** Checks of what the answer shall hold; the sampling has its own in sampling.ts. */
export function checkOutput(output: OutputRequest, limits: RequestLimits): void {
  const { choices, logprobs, logprobsParam, promptLogprobs, stops } = output;
  whole('n', choices, 1, limits.choices, LIMIT_FLAGS.choices);
  whole(logprobsParam, logprobs, 0, limits.topLogprobs, LIMIT_FLAGS.topLogprobs);
  whole('prompt_logprobs', promptLogprobs, 0, limits.topLogprobs, LIMIT_FLAGS.topLogprobs);
  atMost('stop', stops.length, { limits, limit: 'stops', unit: 'strings' });
  for (const stop of stops) {
    if (stop === '') throw invalid('stop', "'stop' holds an empty string, which would stop at once. Leave it out.");
    atMost('stop', stop.length, { limits, limit: 'stopChars', unit: 'characters in one string' });
  }
}

export function invalid(param: string, message: string): ManyfoldError {
  return new ManyfoldError('invalid_request', message, { param });
}
