/**
 * The two ways in which a LoRA's config names modules. rank_pattern and alpha_pattern are regular expressions with
 * numbers, where PEFT takes the first that matches `(.*\.)?(pattern)$`. target_modules and exclude_modules are a list of
 * suffixes or one expression for the whole path; the tensors already say which modules are adapted, so they are only
 * checked for agreement. The expressions may be hostile: see linear-pattern.ts.
 */
import { isJsonObject } from '../../checkpoint/strict-json.js';
import type { JsonValue } from '../../checkpoint/strict-json.js';
import { LinearPattern } from '../linear-pattern.js';
import { refused, show } from '../config-fields.js';

const MAX_PATTERNS = 8192;
/** Expressions that are not plain, of one table; bounds the work for one module. */
const MAX_EXPRESSIONS = 16;

/** Letters, digits, `_` and `-`, with `.` (any character) or `\.`: as long as what it matches. */
const PLAIN = /^(?:[A-Za-z0-9_.-]|\\\.)+$/;

interface PatternEntry<T> {
  readonly matches: (path: string) => boolean;
  readonly value: T;
}

export class ModulePatterns {
  private constructor(private readonly entries: readonly PatternEntry<number>[]) {}

  /** `check` gives the number, or undefined when the value is none that the field may have. */
  static parse(
    field: string,
    value: JsonValue | undefined,
    check: (value: JsonValue) => number | undefined,
  ): ModulePatterns {
    if (value === undefined || value === null) return new ModulePatterns([]);
    if (!isJsonObject(value))
      throw refused(field, `${show(value)}, expected an object`, 'Correct adapter_config.json.');
    const pairs = Object.entries(value);
    const expressions = pairs.filter(([source]) => !PLAIN.test(source)).length;
    if (pairs.length > MAX_PATTERNS || expressions > MAX_EXPRESSIONS) {
      throw refused(
        field,
        `an object of ${pairs.length} patterns, ${expressions} of them regular expressions; at most ${MAX_PATTERNS} ` +
          `and ${MAX_EXPRESSIONS} are allowed`,
        'Write one plain entry for each module.',
      );
    }
    return new ModulePatterns(pairs.map(([source, item]) => entryOf(field, source, check(item), item)));
  }

  /** Of the first pattern that matches the module's path. */
  valueFor(path: string): number | undefined {
    return this.entries.find(({ matches }) => matches(path))?.value;
  }
}

function entryOf(field: string, source: string, value: number | undefined, given: JsonValue): PatternEntry<number> {
  const name = `${field} ${show(source)}`;
  if (value === undefined) {
    throw refused(name, `${show(given)}, which is no value that it may have`, 'Correct adapter_config.json.');
  }
  if (PLAIN.test(source)) return { matches: plainSuffix(source), value };
  const pattern = LinearPattern.compile(`(.*\\.)?(${source})$`);
  if (pattern === undefined) {
    throw refused(
      name,
      'a regular expression that is too long, or uses what cannot be matched in linear time (look-around, back-references)',
      'Write one plain entry for each module instead.',
    );
  }
  return { matches: (path) => pattern.matchesStart(path), value };
}

/** `(.*\.)?(source)$` for a source that is as long as what it matches. */
function plainSuffix(source: string): (path: string) => boolean {
  const wanted: (string | undefined)[] = [];
  for (let at = 0; at < source.length; at += 1) {
    if (source[at] === '\\') wanted.push(source[(at += 1)]);
    else wanted.push(source[at] === '.' ? undefined : source[at]);
  }
  return (path) => {
    const start = path.length - wanted.length;
    if (start < 0 || (start > 0 && path[start - 1] !== '.')) return false;
    return wanted.every((char, i) => char === undefined || char === path[start + i]);
  };
}

type TargetRule =
  | { readonly kind: 'undecided' }
  | { readonly kind: 'suffixes'; readonly suffixes: ReadonlySet<string> }
  | { readonly kind: 'pattern'; readonly pattern: LinearPattern }
  | { readonly kind: 'allLinear' };

/** Embedding and head are no part of "all-linear". */
const NOT_IN_ALL_LINEAR = /(?:^|\.)(?:embed_tokens|lm_head)$/;

export class TargetModules {
  private constructor(private readonly rule: TargetRule) {}

  static parse(field: string, value: JsonValue | undefined): TargetModules {
    if (value === undefined || value === null) return new TargetModules({ kind: 'undecided' });
    if (value === 'all-linear') return new TargetModules({ kind: 'allLinear' });
    if (typeof value === 'string') {
      const pattern = LinearPattern.compile(value);
      return new TargetModules(pattern === undefined ? { kind: 'undecided' } : { kind: 'pattern', pattern });
    }
    const items: readonly JsonValue[] = Array.isArray(value) ? (value as readonly JsonValue[]) : [value];
    const suffixes = items.filter((item) => typeof item === 'string');
    if (suffixes.length !== items.length) {
      throw refused(field, `${show(value)}, expected a list of names or a pattern`, 'Correct adapter_config.json.');
    }
    return new TargetModules({ kind: 'suffixes', suffixes: new Set(suffixes) });
  }

  /** Whether the module is named; undefined when that cannot be decided here. */
  names(path: string): boolean | undefined {
    const { rule } = this;
    switch (rule.kind) {
      case 'undecided':
        return undefined;
      case 'allLinear':
        return !NOT_IN_ALL_LINEAR.test(path);
      case 'pattern':
        return rule.pattern.matchesWhole(path);
      case 'suffixes':
        return dottedSuffixes(path).some((suffix) => rule.suffixes.has(suffix));
    }
  }

  /** Names of the list that none of the paths ends with. */
  unusedNames(paths: readonly string[]): string[] {
    if (this.rule.kind !== 'suffixes') return [];
    const used = new Set(paths.flatMap(dottedSuffixes));
    return [...this.rule.suffixes].filter((name) => !used.has(name));
  }
}

/** The path, and what follows each of its dots. */
function dottedSuffixes(path: string): string[] {
  const suffixes = [path];
  for (let dot = path.indexOf('.'); dot >= 0; dot = path.indexOf('.', dot + 1)) suffixes.push(path.slice(dot + 1));
  return suffixes;
}
