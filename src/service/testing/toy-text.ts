/**
 * A text model of bytes: ids 0..255 are bytes, then <bos>, <eos> and <eot>, which are special. Splits every character
 * that is not ASCII into several tokens, so that streaming and stop strings meet every border.
 */
import type { AdapterVersion } from '../../core/ids.js';
import type {
  ChatMessage,
  Detokenizer,
  RenderChatOptions,
  ServedAdapter,
  StopMatcher,
  TextModel,
  TextModels,
  Tokenizer,
} from '../ports.js';

export const TOY = { bos: 256, eos: 257, eot: 258, vocabSize: 259 } as const;
const SPECIAL_TEXTS = ['<bos>', '<eos>', '<eot>'];

/** The ids of a text. */
export function toyIds(text: string): number[] {
  return [...Buffer.from(text)];
}

class ToyDetokenizer implements Detokenizer {
  #decoder = new TextDecoder();

  push(id: number): string {
    return id < TOY.bos ? this.#decoder.decode(Uint8Array.of(id), { stream: true }) : '';
  }

  flush(): string {
    return this.#decoder.decode();
  }
}

class VerbatimDetokenizer extends ToyDetokenizer {
  override push(id: number): string {
    return id < TOY.bos ? super.push(id) : this.flush() + (SPECIAL_TEXTS[id - TOY.bos] ?? '');
  }
}

class ToyStopMatcher implements StopMatcher {
  #held = '';

  constructor(
    readonly stops: readonly string[],
    readonly includeStop: boolean,
  ) {}

  push(text: string): { emit: string; stopped?: string } {
    this.#held += text;
    const hits = this.stops.map((stop) => ({ stop, at: this.#held.indexOf(stop) })).filter(({ at }) => at >= 0);
    hits.sort((a, b) => a.at - b.at);
    const first = hits[0];
    if (first !== undefined) {
      return { emit: this.#held.slice(0, first.at + (this.includeStop ? first.stop.length : 0)), stopped: first.stop };
    }
    let keep = 0;
    for (const stop of this.stops) {
      for (let n = 1; n < stop.length; n += 1) if (this.#held.endsWith(stop.slice(0, n))) keep = Math.max(keep, n);
    }
    const emit = this.#held.slice(0, this.#held.length - keep);
    this.#held = this.#held.slice(this.#held.length - keep);
    return { emit };
  }

  flush(): string {
    const held = this.#held;
    this.#held = '';
    return held;
  }
}

const tokenizer: Tokenizer = {
  encode: (text, { addSpecialTokens }) => Promise.resolve([...(addSpecialTokens ? [TOY.bos] : []), ...toyIds(text)]),
  encodePrompt: (text, kind) => tokenizer.encode(text, { addSpecialTokens: kind === 'completion' }),
  decode: (ids, { skipSpecialTokens }) => {
    const detokenizer = skipSpecialTokens ? new ToyDetokenizer() : new VerbatimDetokenizer();
    return ids.map((id) => detokenizer.push(id)).join('') + detokenizer.flush();
  },
  tokenText: (id) => (id < TOY.bos ? Buffer.from([id]).toString() : (SPECIAL_TEXTS[id - TOY.bos] ?? '')),
  tokenBytes: (id) => (id < TOY.bos ? Uint8Array.of(id) : Buffer.from(SPECIAL_TEXTS[id - TOY.bos] ?? '')),
  isSpecial: (id) => id >= TOY.bos,
};

function renderChat(
  messages: readonly ChatMessage[],
  options: RenderChatOptions,
): Promise<{ text: string; ids: number[] }> {
  const tools = Array.isArray(options.tools) ? `tools=${JSON.stringify(options.tools)}\n` : '';
  const kwargs = JSON.stringify(options.kwargs ?? {});
  const turns = messages.map((message) => `${message.role}: ${message.content ?? ''}\n`).join('');
  const open = options.continueFinalMessage === true ? turns.trimEnd() : turns;
  const start = options.addGenerationPrompt === true ? 'assistant: ' : '';
  const text = `${tools}${kwargs === '{}' ? '' : kwargs}${open}${start}`;
  return Promise.resolve({ text, ids: toyIds(text) });
}

export const toyTextModel: TextModel = {
  tokenizer,
  endOfTurnIds: [TOY.eot],
  renderChat,
  newDetokenizer: ({ skipSpecialTokens }) => (skipSpecialTokens ? new ToyDetokenizer() : new VerbatimDetokenizer()),
  newStopMatcher: (stops, { includeStop }) => new ToyStopMatcher(stops, includeStop),
};

/** Every version has the base's text model. */
export class ToyTexts implements TextModels {
  readonly known = new Set<AdapterVersion>();

  lookup(version: AdapterVersion | undefined): Promise<TextModel> {
    if (version === undefined || this.known.has(version)) return Promise.resolve(toyTextModel);
    return Promise.reject(new Error(`no text model of ${version}`));
  }

  add(adapter: ServedAdapter): Promise<void> {
    this.known.add(adapter.version);
    return Promise.resolve();
  }

  remove(version: AdapterVersion): void {
    this.known.delete(version);
  }
}
