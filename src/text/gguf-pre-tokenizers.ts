/**
 * What a GGUF file's `tokenizer.ggml.pre` stands for: how the model's own tokenizer.json cuts text into words before
 * byte-level BPE, and what else of it a GGUF file does not carry. Called by gguf-tokenizer.ts.
 *
 * Regular expressions are Oniguruma's, as in tokenizer.json; in Oniguruma `\p{…}` and `\s` are Unicode's.
 */
import type { JsonValue } from './json-value.js';

export interface PreTokenizer {
  /** `pre_tokenizer` of tokenizer.json. */
  readonly steps: JsonValue;
  /** The text is brought to NFC first. */
  readonly nfc: boolean;
  /** A word that is a token as a whole is taken as that token, whatever the merges say. */
  readonly ignoreMerges: boolean;
  /** BOS is added where the file has no `tokenizer.ggml.add_bos_token`. */
  readonly addsBos: boolean;
}

const LLAMA3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" +
  '| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

const QWEN2 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" +
  '| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

const SEED_CODER =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}" +
  '| ?[^\\s\\p{L}\\p{N}\\r\\n]+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

const UPPER = '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]';
const LOWER = '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]';

/** Words split where lower case turns to upper; `suffix` follows a word, `digits` is a group of digits. */
function caseSplit(suffix: string, digits: string): string {
  return (
    `[^\\r\\n\\p{L}\\p{N}]?${UPPER}*${LOWER}+${suffix}|[^\\r\\n\\p{L}\\p{N}]?${UPPER}+${LOWER}*${suffix}` +
    `|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`
  );
}
const TEKKEN = caseSplit('', '\\p{N}');
const GPT4O = caseSplit("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", '\\p{N}{1,3}');

/** CJK ideographs, most of the scripts between U+0800 and them, and Hangul: one run of them is one word. */
const DEEPSEEK_CJK = '[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+';

const DEEPSEEK_V3 = [
  '\\p{N}{1,3}',
  '[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+',
  '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+' +
    '| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
];

/** Letters that have case, as Unicode stood when DeepSeek LLM's tokenizer was made. */
const DEEPSEEK_LETTERS =
  'A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377' +
  '\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556' +
  '\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a' +
  '\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4' +
  '\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc' +
  '\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f' +
  '\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b' +
  '\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a' +
  '\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}' +
  '\u{118a0}-\u{118df}\u{1e900}-\u{1e943}';

const DEEPSEEK_LLM = [
  '[\\r\\n]',
  `\\s?[${DEEPSEEK_LETTERS}]+`,
  '\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+',
  '\\s+$',
  DEEPSEEK_CJK,
  '\\p{N}+',
];

const DEEPSEEK_CODER = ['[\\r\\n]', '\\s?\\p{L}+', '\\s?\\p{P}+', DEEPSEEK_CJK, '\\p{N}'];

/** Bytes as letters; `words`: cut by GPT-2's own expression first. */
function byteLevel(words: boolean): JsonValue {
  return { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: words };
}

function sequence(...pretokenizers: JsonValue[]): JsonValue {
  return { type: 'Sequence', pretokenizers };
}

/** One expression after the other, each cutting what the ones before left whole. */
function splits(...expressions: string[]): JsonValue {
  const each = expressions.map((Regex) => ({ type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false }));
  return sequence(...each, byteLevel(false));
}

const GPT2_STEPS = byteLevel(true);
const DIGITS_STEPS = sequence({ type: 'Digits', individual_digits: true }, byteLevel(true));

const PLAIN = { nfc: false, ignoreMerges: false, addsBos: false };
const GROUPS: readonly (readonly [PreTokenizer, readonly string[]])[] = [
  // 'default' is what converters write when they do not know the model; transformers reads it as GPT-2, and so do we.
  [
    { ...PLAIN, steps: GPT2_STEPS },
    ['gpt-2', 'default', 'phi-2', 'jais', 'gigachat', 'a.x-4.0', 'mellum', 'trillion', 'granite-docling'],
  ],
  [{ ...PLAIN, steps: DIGITS_STEPS }, ['smollm', 'starcoder', 'refact', 'codeshell', 'minerva-7b']],
  [
    { ...PLAIN, steps: splits(LLAMA3), ignoreMerges: true, addsBos: true },
    ['llama-bpe', 'llama3', 'llama-v3', 'falcon3', 'falcon-h1', 'pixtral', 'midm-2.0', 'lfm2', 'smaug-bpe'],
  ],
  [{ ...PLAIN, steps: splits(QWEN2), nfc: true }, ['qwen2']],
  // Made with Qwen2's vocabulary, but their tokenizer.json has no normalizer.
  [{ ...PLAIN, steps: splits(QWEN2) }, ['deepseek-r1-qwen', 'kormo', 'megrez']],
  [{ ...PLAIN, steps: splits(TEKKEN), ignoreMerges: true }, ['tekken']],
  [{ ...PLAIN, steps: splits(GPT4O) }, ['gpt-4o', 'llama4', 'kanana2']],
  [{ ...PLAIN, steps: splits(SEED_CODER) }, ['seed-coder']],
  [{ ...PLAIN, steps: splits(...DEEPSEEK_V3) }, ['deepseek-v3']],
  [{ ...PLAIN, steps: splits(...DEEPSEEK_CODER) }, ['deepseek-coder']],
  [{ ...PLAIN, steps: splits(...DEEPSEEK_LLM) }, ['deepseek-llm']],
];

/** By name of `tokenizer.ggml.pre`. */
export const GGUF_PRE_TOKENIZERS: ReadonlyMap<string, PreTokenizer> = new Map(
  GROUPS.flatMap(([pre, names]) => names.map((name) => [name, pre] as const)),
);
