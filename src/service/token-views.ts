/** Tokens with log-probabilities as clients see them: text, bytes, candidates, place. Pure. */
import type { TokenLogprobs } from '../core/sampling.js';
import type { CandidateView, TokenView } from './events.js';
import type { TextModel } from './ports.js';

/** A view with the `candidates` best tokens. */
export function tokenView(
  text: TextModel,
  id: number,
  logprobs: TokenLogprobs,
  offset: number,
  candidates: number,
): TokenView {
  const top: CandidateView[] = [];
  for (let i = 0; i < Math.min(candidates, logprobs.topIds.length); i += 1) {
    const candidate = logprobs.topIds[i] ?? 0;
    top.push({
      id: candidate,
      text: text.tokenizer.tokenText(candidate),
      bytes: text.tokenizer.tokenBytes(candidate),
      logprob: logprobs.topLogprobs[i] ?? -Infinity,
    });
  }
  return {
    id,
    text: text.tokenizer.tokenText(id),
    bytes: text.tokenizer.tokenBytes(id),
    logprob: logprobs.logprob,
    rank: logprobs.rank,
    offset,
    top,
  };
}

/** Views of a whole prompt; `positions` starts at the second token. Offsets count the prompt's own text. */
export function promptViews(
  text: TextModel,
  promptIds: readonly number[],
  positions: readonly TokenLogprobs[],
  candidates: number,
): TokenView[] {
  const detokenizer = text.newDetokenizer({ skipSpecialTokens: true });
  let offset = 0;
  return promptIds.map((id, i) => {
    const here = offset;
    offset += codePoints(detokenizer.push(id));
    const logprobs = i === 0 ? undefined : positions[i - 1];
    if (logprobs !== undefined) return tokenView(text, id, logprobs, here, candidates);
    const { tokenizer } = text;
    const alone = { id, text: tokenizer.tokenText(id), bytes: tokenizer.tokenBytes(id) };
    return { ...alone, logprob: undefined, rank: 0, offset: here, top: [] };
  });
}

/** Characters as other languages count them: code points, not UTF-16 units. */
export function codePoints(text: string): number {
  let count = text.length;
  for (let i = 0; i < text.length; i += 1) {
    const unit = text.charCodeAt(i);
    // The second half of a pair does not count.
    if (unit >= 0xdc00 && unit <= 0xdfff) count -= 1;
  }
  return count;
}
