/**
 * Joins flags, environment, YAML file and defaults (the first that has an option wins it), checks every value and
 * returns the frozen result. Called once by the command line; nothing else reads configuration.
 */
import { z } from 'zod';
import { ManyfoldError } from '../core/errors.js';
import { checkTogether } from './checks.js';
import { envOf, flagOf, OPTION_KEYS, OPTIONS, optionOf } from './options.js';
import type { OptionKey, OptionValues } from './options.js';
import { deepFreeze, toSlices } from './resolved-config.js';
import type { ResolvedConfig } from './resolved-config.js';
import { Secret } from './secret.js';
import { readEnvironment, readFlags, readYaml } from './sources.js';
import type { Environment, Origin, RawValue, Source } from './sources.js';

/** Content of a small text file; throws when it cannot be read. */
export type ReadFile = (path: string) => string;

export interface LoadOptions {
  /** The options that a subcommand takes as flags; all when left out. */
  readonly flags?: readonly OptionKey[];
}

/** The whole schema, made of the types in the option table. */
const CONFIG_SCHEMA = z
  .strictObject(Object.fromEntries(OPTION_KEYS.map((key) => [key, optionOf(key).type.schema])))
  .transform((values) => values as OptionValues);

export function loadConfig(
  argv: readonly string[],
  env: Environment,
  readFile: ReadFile,
  options: LoadOptions = {},
): ResolvedConfig {
  const flags = readFlags(argv, options.flags);
  const variables = readEnvironment(env);
  const configFile = flags.configFile ?? variables.configFile;
  const file = readConfigFile(configFile, readFile);
  const sources = [flags, variables, file];
  const problems = sources.flatMap((source) => source.problems);

  const raw = merge(sources, env);
  const parsed = CONFIG_SCHEMA.safeParse(Object.fromEntries(OPTION_KEYS.map((key) => [key, raw[key].value])));
  if (!parsed.success) {
    const wrong = new Set(parsed.error.issues.map((issue) => issue.path[0]));
    for (const key of OPTION_KEYS) if (wrong.has(key)) problems.push(explain(key, raw[key]));
  }
  if (!parsed.success) throw refuse(problems);
  const values = expandHome(parsed.data, homeOf(env));
  const keyFile = readKeyFile(values.apiKeyFile, readFile);
  problems.push(...keyFile.problems);
  const apiKeys = [...values.apiKey, ...keyFile.keys];
  // Without its key file a server would look unprotected: one cause, one message.
  if (keyFile.problems.length === 0) problems.push(...checkTogether(values, apiKeys.length));
  if (problems.length > 0) throw refuse(problems);

  const origins = Object.fromEntries(OPTION_KEYS.map((key) => [key, raw[key].origin])) as Record<OptionKey, Origin>;
  return deepFreeze({ ...toSlices(values, apiKeys), origins, values });
}

type RawValues = Readonly<Record<OptionKey, RawValue>>;

function merge(sources: readonly Source[], env: Environment): RawValues {
  const winner = (key: OptionKey): RawValue =>
    sources.map((source) => source.values.get(key)).find((raw) => raw !== undefined) ?? {
      value: defaultOf(key, env),
      origin: { kind: 'default', name: 'default' },
    };
  return Object.fromEntries(OPTION_KEYS.map((key) => [key, winner(key)])) as Record<OptionKey, RawValue>;
}

function defaultOf(key: OptionKey, env: Environment): unknown {
  if (key !== 'cacheDir') return optionOf(key).default;
  const base = env['XDG_CACHE_HOME'] ?? '';
  return base.startsWith('/') ? `${base}/manyfold` : OPTIONS.cacheDir.default;
}

function homeOf(env: Environment): string {
  return env['HOME'] ?? env['USERPROFILE'] ?? '.';
}

/** A shell resolves `~/` in flags, but not in variables and files; here it means the same everywhere. */
function expandHome(values: OptionValues, home: string): OptionValues {
  const expand = <T extends string | undefined>(path: T): T =>
    (path?.startsWith('~/') === true ? home + path.slice(1) : path) as T;
  return {
    ...values,
    model: expand(values.model),
    chatTemplate: expand(values.chatTemplate),
    adapter: values.adapter.map((module) => ({ ...module, path: expand(module.path) })),
    adapterDir: expand(values.adapterDir),
    apiKeyFile: expand(values.apiKeyFile),
    cacheDir: expand(values.cacheDir),
  };
}

function readConfigFile(path: string | undefined, readFile: ReadFile): Source {
  if (path === undefined || path === '') return { values: new Map(), problems: [] };
  const content = readText(path, readFile);
  if (typeof content === 'string') return readYaml(content, path);
  return { values: new Map(), problems: [`--config ${path} cannot be read: ${content.reason}. Correct the path.`] };
}

function readKeyFile(path: string | undefined, readFile: ReadFile): { keys: Secret[]; problems: string[] } {
  if (path === undefined) return { keys: [], problems: [] };
  const content = readText(path, readFile);
  if (typeof content !== 'string') {
    return { keys: [], problems: [`--api-key-file ${path} cannot be read: ${content.reason}. Correct the path.`] };
  }
  const lines = content.split('\n').map((text, index) => ({ text: text.trim(), line: index + 1 }));
  const used = lines.filter(({ text }) => text !== '' && !text.startsWith('#'));
  const bad = used.filter(({ text }) => !/^[\x21-\x7e]+$/.test(text));
  const problems = bad.map(
    ({ line }) => `${path}:${line}: a key must be ${OPTIONS.apiKey.type.expects}. Write one key a line.`,
  );
  if (used.length === 0) problems.push(`--api-key-file ${path} holds no key. Write one key a line, or drop the flag.`);
  return { keys: used.map(({ text }) => new Secret(text)), problems };
}

function readText(path: string, readFile: ReadFile): string | { readonly reason: string } {
  try {
    return readFile(path);
  } catch (error) {
    return { reason: error instanceof Error ? error.message : String(error) };
  }
}

/** What a value must be, what came, and the same option written well in the place where it was given. */
function explain(key: OptionKey, { value, origin }: RawValue): string {
  const option = optionOf(key);
  const shown = option.secret === true ? 'something else (hidden)' : shorten(value);
  const name = origin.kind === 'file' ? `${origin.name}: ${flagOf(key)}` : origin.name;
  const examples = {
    flag: `--${flagOf(key)}${option.type.shape === 'switch' ? '' : ` ${option.example}`}`,
    env: `${envOf(key)}=${option.example}`,
    file: `${flagOf(key)}: ${option.example}`,
    default: `--${flagOf(key)} ${option.example}`,
  };
  return `${name} expects ${option.type.expects}, but got ${shown}. Write it like this: ${examples[origin.kind]}`;
}

function shorten(value: unknown): string {
  const single: unknown = Array.isArray(value) && value.length === 1 ? value[0] : value;
  const written = typeof single === 'string' ? `'${single}'` : JSON.stringify(single);
  return written.length > 120 ? `${written.slice(0, 117)}...` : written;
}

function refuse(problems: readonly string[]): ManyfoldError {
  const intro = problems.length === 1 ? '' : `The configuration has ${problems.length} mistakes:\n  `;
  return new ManyfoldError('invalid_config', intro + problems.join('\n  '));
}
