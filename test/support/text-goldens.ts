/**
 * Reads the goldens of test/goldens/text (made by tools/oracle/text_goldens.py) for the tests of src/text: texts, tiny
 * tokenizers as GGUF metadata and as tokenizer.json, SmolLM2's vocabulary, and what transformers makes of them.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import type { GgufValue, TextSource } from '../../src/checkpoint/checkpoint.js';
import { isObject } from '../../src/text/json-value.js';

const FOLDER = path.join(process.cwd(), 'test', 'goldens', 'text');

function readJson<T>(name: string): T {
  return JSON.parse(readFileSync(path.join(FOLDER, name), 'utf8')) as T;
}

function unpack<T>(name: string): T {
  return JSON.parse(gunzipSync(readFileSync(path.join(FOLDER, name))).toString('utf8')) as T;
}

export interface GoldenTexts {
  /** Lines, blocks of lines, and the whole corpus. */
  readonly corpus: readonly string[];
  readonly lines: number;
  readonly random: readonly string[];
}

/** Cuts the corpus as `corpus_texts` of text_goldens.py does. */
export function goldenTexts(): GoldenTexts {
  const corpus = readFileSync(path.join(FOLDER, 'corpus.txt'), 'utf8');
  const lines = corpus.split('\n').filter((line) => line !== '');
  const ends = ['\n', '\n\n', '\r\n', ' \n', '\n  ', '\t\n\t'];
  const blocks: string[] = [];
  for (let i = 0; i < lines.length; i += 9) blocks.push(lines.slice(i, i + 9).join(ends[(i / 9) % ends.length]));
  return { corpus: [...lines, ...blocks, corpus], lines: lines.length, random: readJson<string[]>('random.json') };
}

/** The 12 hexadecimal digits that stand for a list of ids in the goldens. */
export function digest(ids: readonly number[]): string {
  return createHash('sha256').update(ids.join(',')).digest('hex').slice(0, 12);
}

export interface TokenizerCase {
  readonly name: string;
  readonly gguf: TextSource;
  readonly original: TextSource | undefined;
  /** Digests of ids, by text: corpus first, then random. */
  readonly ggufIds: readonly string[];
  readonly originalIds: readonly string[] | undefined;
}

interface PackedCase {
  readonly name: string;
  readonly metadata: Readonly<Record<string, GgufValue>>;
  readonly head: readonly string[];
  readonly tail: readonly string[];
  readonly original: { readonly model: object } | null;
  readonly gguf: readonly string[];
  readonly originalIds?: readonly string[];
}
interface PackedTokenizers {
  readonly byteLevel: readonly string[];
  readonly merges: readonly string[];
  readonly sentencePiece: readonly string[];
  readonly cases: readonly PackedCase[];
}

export function tokenizerCases(): TokenizerCase[] {
  const packed = unpack<PackedTokenizers>('tokenizers.json.gz');
  return packed.cases.map((entry) => {
    const letters = entry.metadata['tokenizer.ggml.model'] === 'gpt2';
    const pieces = letters
      ? packed.byteLevel
      : packed.sentencePiece.map((piece) => (entry.name === 'gemma3' ? asGemma(piece) : piece));
    const tokens = [...entry.head, ...pieces, ...entry.tail];
    const metadata = new Map<string, GgufValue>(Object.entries(entry.metadata));
    metadata.set('tokenizer.ggml.tokens', tokens);
    if (letters) metadata.set('tokenizer.ggml.merges', packed.merges);
    const scores = entry.metadata['tokenizer.ggml.scores'];
    if (scores !== undefined) metadata.set('tokenizer.ggml.scores', Float32Array.from(scores as readonly number[]));
    return {
      name: entry.name,
      gguf: { kind: 'gguf', metadata, chatTemplate: undefined },
      original: entry.original === null ? undefined : originalSource(entry.original, tokens, packed.merges),
      ggufIds: entry.gguf,
      originalIds: entry.originalIds,
    };
  });
}

/** Gemma's files spell a token of several '▁' with spaces. */
function asGemma(piece: string): string {
  return /^▁▁+$/.test(piece) ? ' '.repeat(piece.length) : piece;
}

function originalSource(
  original: { readonly model: object },
  tokens: readonly string[],
  merges: readonly string[],
): TextSource {
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  const model = { ...original.model, vocab, merges: merges.map((merge) => merge.split(' ')) };
  return {
    kind: 'huggingface',
    tokenizerJson: JSON.stringify({ ...original, model }),
    tokenizerConfig: {},
    chatTemplate: undefined,
  };
}

export interface GoldenConversation {
  readonly messages: readonly { readonly role: string; readonly content: string }[];
  readonly addGenerationPrompt: boolean;
  readonly continueFinalMessage?: boolean;
  readonly tools?: readonly unknown[];
  readonly kwargs?: Readonly<Record<string, unknown>>;
}

export interface SmolLm2 {
  readonly source: TextSource;
  /** Of the corpus's lines, by the model's own tokenizer.json. */
  readonly lineIds: readonly (readonly number[])[];
  readonly originalIds: readonly string[];
  readonly ggufIds: readonly string[];
  readonly conversations: readonly (GoldenConversation & { readonly text: string })[];
}

interface PackedSmolLm2 extends Omit<SmolLm2, 'source'> {
  readonly metadata: Readonly<Record<string, GgufValue>>;
  readonly firstTokens: readonly string[];
  readonly controls: number;
}

/** The default model's text side without its weights. */
export function smolLm2(): SmolLm2 {
  const packed = unpack<PackedSmolLm2>('smollm2.json.gz');
  const planes = gunzipSync(readFileSync(path.join(FOLDER, 'smollm2-merges.bin.gz')));
  const count = planes.length / 4;
  const tokens = [...packed.firstTokens];
  const merges: string[] = [];
  for (let i = 0; i < count; i += 1) {
    const at = (plane: number): number => planes[plane * count + i] ?? 0;
    const pair = [tokens[at(0) | (at(1) << 8)] ?? '', tokens[at(2) | (at(3) << 8)] ?? ''];
    merges.push(pair.join(' '));
    tokens.push(pair.join(''));
  }
  const metadata = new Map<string, GgufValue>(Object.entries(packed.metadata));
  metadata.set('tokenizer.ggml.tokens', tokens);
  metadata.set('tokenizer.ggml.merges', merges);
  metadata.set(
    'tokenizer.ggml.token_type',
    Int32Array.from(tokens, (_, id) => (id < packed.controls ? 3 : 1)),
  );
  const template = metadata.get('tokenizer.chat_template');
  return {
    ...packed,
    source: { kind: 'gguf', metadata, chatTemplate: typeof template === 'string' ? template : undefined },
  };
}

export interface TemplateGoldens {
  readonly templates: Readonly<Record<string, string>>;
  readonly special: Readonly<Record<string, string>>;
  readonly localTime: string;
  readonly conversations: readonly GoldenConversation[];
  /** `text` is null where transformers refuses. */
  readonly cases: readonly { readonly template: string; readonly conversation: number; readonly text: string | null }[];
}

export function templateGoldens(): TemplateGoldens {
  const goldens = readJson<TemplateGoldens>('templates.json');
  if (!isObject(goldens.templates)) throw new Error('templates.json has no templates');
  return goldens;
}
