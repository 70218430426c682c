/**
 * Reads the three places where options are given: flags, environment variables and a YAML file. Each reader knows the
 * names only; load-config.ts checks the values. Problems are collected, so that a user meets all of them at once.
 */
import { isMap, isScalar, LineCounter, parseDocument } from 'yaml';
import { ENV_PREFIX, envOf, flagOf, OPTION_KEYS, optionOf } from './options.js';
import type { OptionKey } from './options.js';
import { didYouMean } from './suggest.js';

/** Where a value comes from; `name` is what the user wrote: `--port`, `MANYFOLD_PORT`, `manyfold.yaml:3`. */
export type Origin =
  | { readonly kind: 'flag' | 'env' | 'file'; readonly name: string }
  | { readonly kind: 'default'; readonly name: 'default' };

/** A value as given, before the option's type has seen it. */
export interface RawValue {
  readonly value: unknown;
  readonly origin: Origin;
}

export interface Source {
  readonly values: Map<OptionKey, RawValue>;
  /** `--config` or MANYFOLD_CONFIG, where the source has it. */
  configFile?: string;
  readonly problems: string[];
}

export type Environment = Readonly<Record<string, string | undefined>>;

function emptySource(): Source {
  return { values: new Map(), problems: [] };
}

function withAliases(key: OptionKey): readonly string[] {
  return [flagOf(key), ...(optionOf(key).flagAliases ?? [])];
}

const FLAG_TO_KEY = new Map(OPTION_KEYS.flatMap((key) => withAliases(key).map((flag) => [flag, key] as const)));
const NAME_TO_KEY = new Map(OPTION_KEYS.map((key) => [flagOf(key), key] as const));
const ENV_TO_KEY = new Map(
  OPTION_KEYS.flatMap((key) => [envOf(key), ...(optionOf(key).envAliases ?? [])].map((name) => [name, key] as const)),
);

/** Puts a value beside those given before; a second value for a single option is a problem, not an overwrite. */
function add(source: Source, key: OptionKey, raw: RawValue): void {
  const earlier = source.values.get(key);
  if (earlier === undefined) {
    source.values.set(key, optionOf(key).type.shape === 'list' ? { ...raw, value: [raw.value].flat() } : raw);
  } else if (optionOf(key).type.shape === 'list') {
    source.values.set(key, { origin: earlier.origin, value: [earlier.value, raw.value].flat() });
  } else {
    source.problems.push(`${raw.origin.name} is given twice. Keep one of them.`);
  }
}

/**
 * Flags as `--port 8000` or `--port=8000`; switches stand alone or as `--switch=false`; one bare word is the model.
 * `allowed` are the options that the subcommand takes.
 */
export function readFlags(argv: readonly string[], allowed: readonly OptionKey[] = OPTION_KEYS): Source {
  const source = emptySource();
  const rest = [...argv];
  for (let argument = rest.shift(); argument !== undefined; argument = rest.shift()) {
    if (!argument.startsWith('-') || argument === '-') {
      addPositional(source, argument, allowed);
      continue;
    }
    const equals = argument.indexOf('=');
    const written = equals < 0 ? argument : argument.slice(0, equals);
    const inline = equals < 0 ? undefined : argument.slice(equals + 1);
    const name = written.startsWith('--') ? written.slice(2) : undefined;
    if (name === 'config') {
      source.configFile = takeValue(source, written, inline, rest) ?? '';
      continue;
    }
    const key = name === undefined ? undefined : FLAG_TO_KEY.get(name);
    if (key === undefined || !allowed.includes(key)) {
      source.problems.push(unknownFlag(written, key, allowed));
      skipValue(inline, rest);
      continue;
    }
    addFlag(source, key, { written, inline, rest });
  }
  return source;
}

interface WrittenFlag {
  readonly written: string;
  readonly inline: string | undefined;
  /** The arguments behind the flag; those that belong to it are taken off. */
  readonly rest: string[];
}

function addFlag(source: Source, key: OptionKey, { written, inline, rest }: WrittenFlag): void {
  const origin: Origin = { kind: 'flag', name: written };
  if (optionOf(key).type.shape === 'switch') {
    add(source, key, { value: inline ?? true, origin });
    return;
  }
  const value = takeValue(source, written, inline, rest);
  if (value === undefined) return;
  add(source, key, { value, origin });
  // vLLM's --lora-modules takes several values behind one flag.
  const several = written !== `--${flagOf(key)}` && optionOf(key).type.shape === 'list';
  while (several && rest[0] !== undefined && !rest[0].startsWith('-') && /[={]/.test(rest[0])) {
    add(source, key, { value: rest.shift(), origin });
  }
}

function addPositional(source: Source, argument: string, allowed: readonly OptionKey[]): void {
  if (!allowed.includes('model')) {
    source.problems.push(`'${argument}' is not expected here. Flags begin with --; see --help.`);
  } else if (source.values.has('model')) {
    source.problems.push(`'${argument}' is not expected: one model is given already. Quote values that have spaces.`);
  } else {
    source.values.set('model', { value: argument, origin: { kind: 'flag', name: 'the first argument' } });
  }
}

function takeValue(source: Source, written: string, inline: string | undefined, rest: string[]): string | undefined {
  const value = inline ?? (rest[0]?.startsWith('--') === true ? undefined : rest.shift());
  if (value !== undefined && value !== '') return value;
  source.problems.push(`${written} needs a value. Write ${written} VALUE or ${written}=VALUE.`);
  return undefined;
}

/** After an unknown flag, the word behind it is most likely its value: one mistake should give one message. */
function skipValue(inline: string | undefined, rest: string[]): void {
  if (inline === undefined && rest[0] !== undefined && !rest[0].startsWith('-')) rest.shift();
}

function unknownFlag(written: string, key: OptionKey | undefined, allowed: readonly OptionKey[]): string {
  if (key !== undefined) return `${written} has no meaning for this command. See --help for those that it takes.`;
  const known = [...allowed.flatMap(withAliases), 'config', 'help'].map((flag) => `--${flag}`);
  return `There is no flag ${written}.${didYouMean(written, known)} See --help for all flags.`;
}

/** Kubernetes sets such variables in every pod when a Service has our name. */
const SERVICE_LINK = /^MANYFOLD_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)$/;
const SERVICE_LINK_MEND =
  'It looks like a Kubernetes service link: set enableServiceLinks: false in the pod, or rename the Service.';

export function readEnvironment(env: Environment): Source {
  const source = emptySource();
  for (const [name, value] of Object.entries(env)) {
    const key = ENV_TO_KEY.get(name);
    const ours = name.startsWith(ENV_PREFIX);
    if (value === undefined || (key === undefined && !ours)) continue;
    if (value === '') {
      // Other tools leave their variables empty; an empty one of ours is a key or a path that did not arrive.
      if (ours) source.problems.push(`${name} is empty. Give it a value or unset it.`);
    } else if (name === `${ENV_PREFIX}CONFIG`) {
      source.configFile = value;
    } else if (key === undefined) {
      source.problems.push(unknownVariable(name));
    } else if (name === envOf('port') && value.startsWith('tcp://')) {
      source.problems.push(`${name} is '${value}', not a port. ${SERVICE_LINK_MEND}`);
    } else {
      addVariable(source, key, name, value);
    }
  }
  return source;
}

function addVariable(source: Source, key: OptionKey, name: string, value: string): void {
  const earlier = source.values.get(key);
  // Our own name wins over another tool's, whatever their order.
  if (earlier !== undefined && !name.startsWith(ENV_PREFIX)) return;
  const isList = optionOf(key).type.shape === 'list';
  const parts = isList && !value.startsWith('{') ? value.split(',').map((part) => part.trim()) : [value];
  source.values.set(key, { value: isList ? parts : value, origin: { kind: 'env', name } });
}

function unknownVariable(name: string): string {
  if (SERVICE_LINK.test(name)) return `There is no option ${name}. ${SERVICE_LINK_MEND}`;
  const known = [...OPTION_KEYS.map(envOf), `${ENV_PREFIX}CONFIG`];
  const suggestion = didYouMean(
    name.slice(ENV_PREFIX.length),
    known.map((item) => item.slice(ENV_PREFIX.length)),
  );
  return `There is no option ${name}.${suggestion.replace('mean ', `mean ${ENV_PREFIX}`)} Correct or unset it.`;
}

/** A flat YAML mapping of option names to values. `name` is the file's name, for messages. */
export function readYaml(content: string, name: string): Source {
  const source = emptySource();
  const lineCounter = new LineCounter();
  const document = parseDocument(content, { lineCounter, uniqueKeys: true, prettyErrors: false });
  for (const error of document.errors) {
    const { line } = lineCounter.linePos(error.pos[0]);
    source.problems.push(`${name}:${line}: ${error.message}. Correct the YAML.`);
  }
  if (source.problems.length > 0 || document.contents === null) return source;
  if (!isMap(document.contents)) {
    source.problems.push(`${name} must be a mapping, one 'option: value' a line. Write it like this: port: 8000`);
    return source;
  }
  const plain: unknown = document.toJS({ maxAliasCount: 0 });
  const values = new Map(Object.entries(plain as Readonly<Record<string, unknown>>));
  for (const { key: keyNode } of document.contents.items) {
    const written = isScalar(keyNode) ? String(keyNode.value) : '';
    const offset = isScalar(keyNode) ? (keyNode.range?.[0] ?? 0) : 0;
    addYaml(source, { written, value: values.get(written), at: `${name}:${lineCounter.linePos(offset).line}` });
  }
  return source;
}

function addYaml(source: Source, { written, value, at }: { written: string; value: unknown; at: string }): void {
  const key = NAME_TO_KEY.get(written);
  if (key === undefined) {
    const suggestion = didYouMean(written, [...NAME_TO_KEY.keys()]);
    source.problems.push(`${at}: there is no option '${written}'.${suggestion} Correct or delete the line.`);
  } else if (value === null || value === undefined || value === '') {
    source.problems.push(`${at}: ${written} has no value. Give it one or delete the line.`);
  } else {
    const isMapping = typeof value === 'object' && !Array.isArray(value);
    const named = key === 'adapter' && isMapping && !('path' in value);
    source.values.set(key, { value: named ? toModules(value) : value, origin: { kind: 'file', name: at } });
  }
}

/** `adapter: { support: ./a, legal: ./b }` is a list of two. */
function toModules(mapping: object): readonly unknown[] {
  return Object.entries(mapping).map(([name, path]: [string, unknown]) => ({ name, path }));
}
