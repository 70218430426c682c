/** POST /tokenize and /detokenize, as vLLM has them. */
import { readJsonObject } from '../body.js';
import type { AppContext, RouteDeps } from '../context.js';
import { DETOKENIZE_SCHEMA, toDetokenizeCommand, TOKENIZE_SCHEMA, toTokenizeCommand } from '../schemas/tokenize.js';
import { parseWire } from '../schemas/wire.js';

export async function postTokenize(c: AppContext, deps: RouteDeps): Promise<Response> {
  const body = await readJsonObject(c, deps.service.limits.bodyBytes);
  const { ids, tokenStrings, maxModelLen } = await deps.service.tokenize(
    toTokenizeCommand(parseWire(TOKENIZE_SCHEMA, body, deps, c)),
  );
  return c.json({ count: ids.length, max_model_len: maxModelLen, tokens: ids, token_strs: tokenStrings ?? null });
}

export async function postDetokenize(c: AppContext, deps: RouteDeps): Promise<Response> {
  const body = await readJsonObject(c, deps.service.limits.bodyBytes);
  const prompt = await deps.service.detokenize(toDetokenizeCommand(parseWire(DETOKENIZE_SCHEMA, body, deps, c)));
  return c.json({ prompt });
}
