/**
 * The one table of options. Each entry is at once the flag `--max-num-seqs`, the environment variable
 * `MANYFOLD_MAX_NUM_SEQS` and the YAML key `max-num-seqs`; help, errors and `config print` are made from it.
 */
import { z } from 'zod';
import {
  adapterModule,
  bytes,
  choice,
  httpUrl,
  listOf,
  onOff,
  path,
  seconds,
  secret,
  text,
  wholeNumber,
} from './option-types.js';
import type { OptionType } from './option-types.js';

export const SECTIONS = ['Model', 'Adapters', 'Engine', 'Server', 'Access', 'Limits', 'Downloads', 'Logging'] as const;
export type Section = (typeof SECTIONS)[number];

export interface Option<T> {
  readonly section: Section;
  /** What it does, when to change it, and what it costs. Sentences. */
  readonly description: string;
  readonly type: OptionType<T>;
  /** As a user would write it; undefined: the option has no value unless given. */
  readonly default: string | undefined;
  /** What happens without a value, where `default` cannot say it. */
  readonly defaultText?: string;
  /** tokens, bytes, seconds, ...; undefined for values that have none. */
  readonly unit?: string;
  /** One value as a user would write it. */
  readonly example: string;
  /** Values never appear in help, errors or printed configs. */
  readonly secret?: true;
  /** Other spellings of the flag, of tools that people come from. */
  readonly flagAliases?: readonly string[];
  /** Environment variables of other tools that mean the same. */
  readonly envAliases?: readonly string[];
}

type Spec<T> = Omit<Option<T>, 'default'>;

/** An option that always has a value. */
function required<T>(spec: Spec<T> & { readonly default: string }): Option<T> & { readonly default: string } {
  return spec;
}

/** An option that may be left out; its value is then undefined, or the empty list. */
function optional<T>(spec: Spec<T> & { readonly defaultText: string }): Option<T | undefined> {
  return { ...spec, type: { ...spec.type, schema: spec.type.schema.optional() }, default: undefined };
}

function list<T>(spec: Spec<readonly T[]> & { readonly defaultText: string }): Option<readonly T[]> {
  const { schema } = spec.type;
  const withEmpty = z.preprocess((value) => (value === undefined ? [] : value), schema);
  return { ...spec, type: { ...spec.type, schema: withEmpty }, default: undefined };
}

const GIB = 2 ** 30;
const MIB = 2 ** 20;

export const OPTIONS = {
  model: optional({
    section: 'Model',
    description:
      'The base model: a GGUF file, a Hugging Face folder (config.json, safetensors, tokenizer.json), or a hub id, ' +
      'which is downloaded first. May also stand alone: manyfold serve PATH_OR_ID.',
    type: path('PATH_OR_ID', 'a file, a folder or a hub id such as Qwen/Qwen3-0.6B'),
    defaultText: 'the built-in SmolLM2-135M-Instruct',
    example: './models/Qwen3-0.6B',
  }),
  dtype: required({
    section: 'Model',
    description:
      "How weights and KV are held and multiplied. auto is the file's own precision class: 4-bit GGUF files (Q4_0, Q4_1, " +
      'Q4_K) run in q4 and Q8_0 ones in int8; f32, f16 and bf16 files run in bf16, and so do the other block formats. ' +
      'Nothing is quantized unasked, inputs of linears neither: hence the default. q4 takes the codes and scales of 4-bit files as they are and ' +
      'rounds the linears of other files to 4 bits; int8 rounds weights to 8. Both round the inputs of linears to 8 bits; ' +
      'adapters and KV stay as in bf16. f32 is the exact reference mode: twice the memory, about half the speed.',
    type: choice(['auto', 'f32', 'bf16', 'int8', 'q4'], { float32: 'f32', bfloat16: 'bf16' }),
    default: 'bf16',
    example: 'f32',
  }),
  chatTemplate: optional({
    section: 'Model',
    description:
      "A Jinja chat template to use in place of the model's own. Only for models that carry none or a wrong one; an " +
      "adapter folder's own template still wins for its requests.",
    type: path('FILE', 'a template file'),
    defaultText: "the model's own template",
    example: './chatml.jinja',
  }),
  servedModelName: list({
    section: 'Model',
    description:
      'Name of the base model in the API. Give it several times for several names; answers use the first. ' +
      'Clients can then keep the name that they have in their code.',
    type: listOf(text('NAME', 'a name of visible characters without spaces', /^[^\s\0]{1,256}$/)),
    defaultText: "the model's id, or the name of its file or folder",
    example: 'gpt-4o-mini',
  }),
  maxModelLen: optional({
    section: 'Model',
    description:
      'Longest sequence, prompt and answer together. Lower it to keep one request from taking the whole KV pool; it ' +
      'cannot exceed what the model was made for.',
    type: wholeNumber({ min: 16, max: 2 ** 24 }),
    defaultText: "the model's own context length, or what the KV pool holds if that is less",
    unit: 'tokens',
    example: '4096',
  }),
  adapter: list({
    section: 'Adapters',
    description:
      'An adapter to load at the start, served under NAME. Give it once for each. The start stops when one of them ' +
      'cannot be served, with the reasons for all that fail.',
    type: listOf(adapterModule()),
    defaultText: 'none',
    example: 'support=./adapters/support',
    flagAliases: ['lora-modules'],
  }),
  adapterDir: optional({
    section: 'Adapters',
    description:
      'A folder of adapter folders. Each is served under its path below this one; those that cannot be served are ' +
      'listed with the reason and the start goes on. Adapters loaded at run time must lie under it.',
    type: path('DIR', 'a folder'),
    defaultText: 'the demo adapters, when no --model and no --adapter is given either; no folder otherwise',
    example: './adapters',
  }),
  maxLoraRank: required({
    section: 'Adapters',
    description:
      'Largest rank that an adapter may have. A guard against huge uploads only: small ranks cost nothing extra when ' +
      'this is large.',
    type: wholeNumber({ min: 1, max: 16384 }),
    default: '512',
    example: '64',
  }),
  enableRuntimeLora: required({
    section: 'Adapters',
    description:
      'Turns on POST /v1/load_lora_adapter and /v1/unload_lora_adapter. Whoever holds an API key can then change what ' +
      'is served, so it is off unless asked for, and needs --adapter-dir.',
    type: onOff(),
    default: 'false',
    example: 'true',
    envAliases: ['VLLM_ALLOW_RUNTIME_LORA_UPDATING'],
  }),
  maxNumSeqs: required({
    section: 'Engine',
    description:
      'Most sequences in one batch. More raises the total of tokens per second and the time between the tokens of ' +
      'each stream.',
    type: wholeNumber({ min: 1, max: 4096 }),
    default: '64',
    unit: 'sequences',
    example: '32',
  }),
  maxNumBatchedTokens: required({
    section: 'Engine',
    description:
      'Most tokens in one step, prompts and running sequences together. Long prompts are cut to fit, so a smaller ' +
      'number keeps running streams smooth and makes the first token of long prompts later.',
    type: wholeNumber({ min: 1, max: 2 ** 20 }),
    default: '512',
    unit: 'tokens',
    example: '1024',
  }),
  maxQueue: required({
    section: 'Engine',
    description:
      'Most sequences that may wait for a place in the batch. One more is answered with 503 and an honest ' +
      'retry-after, which serves clients better than a wait that ends in their timeout.',
    type: wholeNumber({ min: 0, max: 1_000_000 }),
    default: '256',
    unit: 'sequences',
    example: '1000',
  }),
  kvBytes: required({
    section: 'Engine',
    description:
      'Memory for the keys and values of all running sequences. When it runs out, the youngest sequences wait and are ' +
      'computed again later. The start-up table says how many tokens it holds.',
    type: bytes({ min: MIB, max: 16384 * GIB }),
    default: '1GiB',
    unit: 'bytes',
    example: '4GiB',
  }),
  kvCacheDtype: required({
    section: 'Engine',
    description:
      'How keys and values are held. auto is the type of --dtype (bf16, or f32 with f32). int8 rounds each token to 8 bits ' +
      'with a scale for each head: nearly twice the tokens in the same --kv-bytes and faster long contexts, for a small ' +
      'loss of exactness that docs/benchmarks/cpu.md measures; prefixes of adapters stay exact.',
    type: choice(['auto', 'int8']),
    default: 'auto',
    example: 'int8',
  }),
  enablePrefixCaching: required({
    section: 'Engine',
    description:
      'Keeps the keys and values of answered requests while there is room, and reuses them for prompts that begin with the ' +
      'same tokens under the same adapter version and cache_salt. Answers are the same bit for bit; only waiting changes.',
    type: onOff(),
    default: 'true',
    example: 'false',
  }),
  threads: required({
    section: 'Engine',
    description: 'Compute threads. 0 takes one for each core that this process may use. Results do not depend on it.',
    type: wholeNumber({ min: 0, max: 1024 }),
    default: '0',
    unit: 'threads',
    example: '8',
  }),
  backend: required({
    section: 'Engine',
    description:
      'Where the model runs. cuda is the first GPU (compute capability 8.0 or later), in builds made with ' +
      'MANYFOLD_BUILD=cuda npm run build; weights in bf16 or f32. manyfold doctor says what this machine and build have.',
    type: choice(['cpu', 'cuda']),
    default: 'cpu',
    example: 'cuda',
  }),
  isa: required({
    section: 'Engine',
    description:
      'Instruction set of the kernels. auto is the best that this machine has; the start-up table names it. scalar is ' +
      'the slow reference, for finding out whether a kernel is at fault.',
    type: text('NAME', 'auto or the name of an instruction set, such as avx2', /^[a-z0-9_]{1,32}$/),
    default: 'auto',
    example: 'avx2',
  }),
  seed: optional({
    section: 'Engine',
    description:
      'Seed of requests that bring none. With it the same request gives the same answer on every call; without it ' +
      'each call draws its own.',
    type: wholeNumber({ min: 0, max: Number.MAX_SAFE_INTEGER }),
    defaultText: 'a new random seed for each request',
    example: '42',
  }),
  host: required({
    section: 'Server',
    description:
      'Address to listen on. 127.0.0.1 is reached from this machine only; 0.0.0.0 from everywhere, which needs an API ' +
      'key (or --insecure-no-auth).',
    type: text('HOST', 'a host name or an IP address', /^[A-Za-z0-9._:%-]{1,253}$/),
    default: '127.0.0.1',
    example: '0.0.0.0',
  }),
  port: required({
    section: 'Server',
    description: 'Port to listen on. 0 takes a free one, which the start-up table names.',
    type: wholeNumber({ min: 0, max: 65535 }),
    default: '8000',
    example: '8080',
  }),
  shutdownTimeout: required({
    section: 'Server',
    description:
      'How long running streams may take to finish after SIGTERM or Ctrl-C; then they are ended with an error. ' +
      'New requests are refused at once.',
    type: seconds({ min: 0, max: 86400 }),
    default: '30',
    unit: 'seconds',
    example: '120',
  }),
  apiKey: list({
    section: 'Access',
    description:
      'A key that clients must send as Authorization: Bearer KEY. Give it several times for several clients. Other ' +
      'users of this machine can read flags, so prefer --api-key-file or the environment.',
    type: listOf(secret('KEY')),
    defaultText: 'no key is asked for',
    example: 'KEY',
    secret: true,
  }),
  apiKeyFile: optional({
    section: 'Access',
    description:
      'A file with one key a line, added to those of --api-key. Empty lines and lines that begin with # are skipped.',
    type: path('FILE', 'a file of keys'),
    defaultText: 'no file is read',
    example: './api-keys.txt',
  }),
  insecureNoAuth: required({
    section: 'Access',
    description:
      'Listen beyond this machine without any key. Everyone who reaches the port can then use the server; only for ' +
      'networks that something else protects.',
    type: onOff(),
    default: 'false',
    example: 'true',
  }),
  maxBodyBytes: required({
    section: 'Limits',
    description: 'Largest request body; a larger one is answered with 413 before it is read.',
    type: bytes({ min: 1024, max: GIB }),
    default: '4MiB',
    unit: 'bytes',
    example: '16MiB',
  }),
  maxPromptBytes: required({
    section: 'Limits',
    description:
      'Most text of one request, in UTF-8: all its messages or all its prompts together, before the chat template. ' +
      'More is answered with 400.',
    type: bytes({ min: 1024, max: 16 * MIB }),
    default: '1MiB',
    unit: 'bytes',
    example: '4MiB',
  }),
  maxMessages: required({
    section: 'Limits',
    description: 'Most messages in one chat request; more are answered with 400.',
    type: wholeNumber({ min: 1, max: 100_000 }),
    default: '2000',
    unit: 'messages',
    example: '500',
  }),
  maxN: required({
    section: 'Limits',
    description: 'Largest n, the number of answers to one prompt. Each is a sequence of its own in the batch.',
    type: wholeNumber({ min: 1, max: 1024 }),
    default: '8',
    example: '32',
  }),
  maxStopStrings: required({
    section: 'Limits',
    description: 'Most stop strings in one request; more are answered with 400.',
    type: wholeNumber({ min: 0, max: 1024 }),
    default: '16',
    example: '4',
  }),
  maxStopChars: required({
    section: 'Limits',
    description: 'Longest stop string. As many characters of a stream are held back until they cannot begin one.',
    type: wholeNumber({ min: 1, max: 65536 }),
    default: '256',
    unit: 'characters',
    example: '1024',
  }),
  maxLogitBias: required({
    section: 'Limits',
    description: 'Most entries of logit_bias in one request; more are answered with 400.',
    type: wholeNumber({ min: 0, max: 1024 }),
    default: '1024',
    example: '300',
  }),
  maxPrompts: required({
    section: 'Limits',
    description: 'Most prompts in one /v1/completions request; more are answered with 400.',
    type: wholeNumber({ min: 1, max: 65536 }),
    default: '1024',
    unit: 'prompts',
    example: '64',
  }),
  maxStopTokenIds: required({
    section: 'Limits',
    description: 'Most entries of stop_token_ids in one request; more are answered with 400.',
    type: wholeNumber({ min: 0, max: 65536 }),
    default: '256',
    example: '16',
  }),
  maxTools: required({
    section: 'Limits',
    description: 'Most tools in one chat request; more are answered with 400.',
    type: wholeNumber({ min: 0, max: 65536 }),
    default: '128',
    example: '16',
  }),
  maxCacheSaltChars: required({
    section: 'Limits',
    description: 'Longest cache_salt, the word that keeps requests from sharing cached prompts.',
    type: wholeNumber({ min: 1, max: 65536 }),
    default: '256',
    unit: 'characters',
    example: '64',
  }),
  maxLogprobs: required({
    section: 'Limits',
    description: 'Most alternatives that logprobs or top_logprobs may ask for at each position.',
    type: wholeNumber({ min: 0, max: 1024 }),
    default: '20',
    example: '5',
  }),
  receiveTimeout: required({
    section: 'Limits',
    description:
      'How long a client may take to send a whole request, headers and body. Does not limit the answer. Slow senders ' +
      'are cut off with 408.',
    type: seconds({ min: 1, max: 3600 }),
    default: '30',
    unit: 'seconds',
    example: '120',
  }),
  cacheDir: required({
    section: 'Downloads',
    description: 'Where downloaded models are kept. Point it at a volume to keep them between containers.',
    type: path('DIR', 'a folder'),
    default: '~/.cache/manyfold',
    defaultText: '$XDG_CACHE_HOME/manyfold, or ~/.cache/manyfold',
    example: '/var/cache/manyfold',
  }),
  hubEndpoint: required({
    section: 'Downloads',
    description: 'Address of the hub that model ids are downloaded from; any server with the same layout will do.',
    type: httpUrl(),
    default: 'https://huggingface.co',
    example: 'https://hub.example.org',
    envAliases: ['HF_ENDPOINT'],
  }),
  hubToken: optional({
    section: 'Downloads',
    description: 'Token for models that the hub gives to registered users only. Sent to the hub and to no other host.',
    type: secret('TOKEN'),
    defaultText: 'no token is sent',
    example: 'TOKEN',
    secret: true,
    envAliases: ['HF_TOKEN'],
  }),
  revision: required({
    section: 'Downloads',
    description: 'Branch, tag or commit of a hub model. Name a commit to serve the same files for ever.',
    type: text('REVISION', 'a branch, a tag or a commit', /^[A-Za-z0-9._/-]{1,128}$/),
    default: 'main',
    example: 'v1.0',
  }),
  logLevel: required({
    section: 'Logging',
    description: 'Least important lines that are written. debug adds probes and scrapes; prompts are never logged.',
    type: choice(['debug', 'info', 'warn', 'error', 'silent'], { warning: 'warn' }),
    default: 'info',
    example: 'debug',
  }),
} as const satisfies Record<string, Option<unknown>>;

export type OptionKey = keyof typeof OPTIONS;
export const OPTION_KEYS = Object.keys(OPTIONS) as OptionKey[];

type ValueOf<O> = O extends Option<infer T> ? T : never;
/** Every option with its final value; loaders turn it into slices. */
export type OptionValues = { readonly [K in OptionKey]: ValueOf<(typeof OPTIONS)[K]> };

/** The table seen without the type of each value, for code that walks over all options. */
export function optionOf(key: OptionKey): Option<unknown> {
  return OPTIONS[key];
}

/** The name without dashes in front, also the YAML key: `maxNumSeqs` is `max-num-seqs`. */
export function flagOf(key: OptionKey): string {
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

export const ENV_PREFIX = 'MANYFOLD_';

/** `maxNumSeqs` is `MANYFOLD_MAX_NUM_SEQS`. */
export function envOf(key: OptionKey): string {
  return ENV_PREFIX + flagOf(key).replaceAll('-', '_').toUpperCase();
}
