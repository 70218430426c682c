/** POST /v1/chat/completions and /v1/completions. */
import { readJsonObject } from '../body.js';
import type { AppContext, RouteDeps } from '../context.js';
import { chatBody, chatFrames } from '../encode-chat.js';
import { completionBody, completionFrames } from '../encode-completion.js';
import { CHAT_SCHEMA, toChatCommand } from '../schemas/chat.js';
import { COMPLETION_SCHEMA, toCompletionCommand } from '../schemas/completions.js';
import { parseWire } from '../schemas/wire.js';
import { answerGeneration } from './generation.js';

export async function postChatCompletion(c: AppContext, deps: RouteDeps): Promise<Response> {
  const body = await readJsonObject(c, deps.service.limits.bodyBytes);
  const { command, answer } = toChatCommand(parseWire(CHAT_SCHEMA, body, deps, c));
  return answerGeneration(c, deps, command, answer, { frames: chatFrames, body: chatBody });
}

export async function postCompletion(c: AppContext, deps: RouteDeps): Promise<Response> {
  const body = await readJsonObject(c, deps.service.limits.bodyBytes);
  const { command, answer } = toCompletionCommand(parseWire(COMPLETION_SCHEMA, body, deps, c));
  return answerGeneration(c, deps, command, answer, { frames: completionFrames, body: completionBody });
}
