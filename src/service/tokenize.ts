/** The use cases of /tokenize and /detokenize: what the model would see of a text, and back. */
import type { EngineInfo } from '../engine/port.js';
import type { DetokenizeCommand, TokenizeCommand } from './commands.js';
import type { RequestLimits } from './limits.js';
import type { TextModels } from './ports.js';
import { checkBytes, renderChat } from './prepare.js';
import { atMost, checkIds } from './sampling.js';
import type { ServedModels } from './served-models.js';

export interface TextDeps {
  readonly info: EngineInfo;
  readonly models: ServedModels;
  readonly texts: TextModels;
  readonly limits: RequestLimits;
}

export interface Tokenized {
  readonly ids: readonly number[];
  readonly tokenStrings: readonly string[] | undefined;
  readonly maxModelLen: number;
}

export async function tokenize(deps: TextDeps, command: TokenizeCommand): Promise<Tokenized> {
  const text = await deps.texts.lookup(deps.models.resolve(command.model).version);
  const { input } = command;
  const { limits, info } = deps;
  let ids: readonly number[];
  if (input.kind === 'chat') {
    ids = await renderChat(input.chat, { text, limits, info });
  } else {
    checkBytes('prompt', Buffer.byteLength(input.text), limits);
    ids = await text.tokenizer.encodePrompt(input.text, input.addSpecialTokens ? 'completion' : 'chat');
  }
  const tokenStrings = command.returnTokenStrings ? ids.map((id) => text.tokenizer.tokenText(id)) : undefined;
  return { ids, tokenStrings, maxModelLen: info.maxModelLen };
}

export async function detokenize(deps: TextDeps, command: DetokenizeCommand): Promise<string> {
  const { tokenizer } = await deps.texts.lookup(deps.models.resolve(command.model).version);
  atMost('tokens', command.tokens.length, { limits: deps.limits, limit: 'promptBytes', unit: 'ids' });
  checkIds('tokens', command.tokens, deps.info.vocabSize);
  return tokenizer.decode(command.tokens, { skipSpecialTokens: false });
}
