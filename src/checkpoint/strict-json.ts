/**
 * JSON that two parsers cannot read differently: no duplicate keys (JSON.parse silently keeps the last), no NaN, no
 * byte-order mark, no half surrogate pairs, bounded depth. Every JSON file that comes with a model or an adapter goes
 * through here. Objects have no prototype, so a key such as `__proto__` is only a key.
 */
import { ManyfoldError } from '../core/errors.js';
import type { ErrorCode } from '../core/errors.js';

export type JsonValue = string | number | boolean | null | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: JsonValue;
}

export interface StrictJsonOptions {
  /** Arrays and objects inside one another, the outermost counted; more is refused. */
  readonly maxDepth: number;
  /** What the text is, for messages: a file's name. */
  readonly what: string;
  /** Code of the error; 'invalid_model' when absent. */
  readonly code?: ErrorCode;
}

/** Whether a value is a JSON object (neither null nor an array). */
export function isJsonObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Parses `text` or throws an error that names the place by line and column. */
export function parseJsonStrict(text: string, options: StrictJsonOptions): JsonValue {
  return new StrictJsonParser(text, options).parse();
}

/** Decodes UTF-8 and refuses bytes that are not; a byte-order mark stays in the text. */
export function decodeUtf8(bytes: Uint8Array, what: string, code: ErrorCode = 'invalid_model'): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new ManyfoldError(code, `${what}: expected UTF-8 text, found bytes that are not. Save it as UTF-8.`, {
      cause,
    });
  }
}

/** A name from a file, safe to print: quoted, control characters escaped, cut after 80 characters. */
export function quoteName(name: string): string {
  return JSON.stringify(name.length > 80 ? `${name.slice(0, 80)}…` : name);
}

const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const LITERALS: readonly (readonly [string, JsonValue])[] = [
  ['true', true],
  ['false', false],
  ['null', null],
];
const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
};
const QUOTE = 0x22;
const BACKSLASH = 0x5c;

class StrictJsonParser {
  private at = 0;

  constructor(
    private readonly text: string,
    private readonly options: StrictJsonOptions,
  ) {}

  parse(): JsonValue {
    if (this.text.startsWith('\ufeff')) this.fail('found a byte-order mark before the first value');
    const value = this.value(1);
    this.skipSpace();
    if (this.at < this.text.length) this.fail('found more text after the value');
    return value;
  }

  private value(depth: number): JsonValue {
    this.skipSpace();
    switch (this.text[this.at]) {
      case '{':
        return this.object(depth);
      case '[':
        return this.array(depth);
      case '"':
        return this.string();
      default:
        return this.scalar();
    }
  }

  private object(depth: number): JsonObject {
    this.enter(depth);
    const object = Object.create(null) as Record<string, JsonValue>;
    if (this.take('}')) return object;
    do {
      this.skipSpace();
      const keyAt = this.at;
      if (this.text[this.at] !== '"') this.fail('expected a key in quotes');
      const key = this.string();
      if (key in object) {
        this.at = keyAt;
        this.fail(`found the key ${quoteName(key)} twice in one object`);
      }
      this.expect(':');
      object[key] = this.value(depth + 1);
    } while (this.take(','));
    this.expect('}');
    return object;
  }

  private array(depth: number): readonly JsonValue[] {
    this.enter(depth);
    const array: JsonValue[] = [];
    if (this.take(']')) return array;
    do {
      array.push(this.value(depth + 1));
    } while (this.take(','));
    this.expect(']');
    return array;
  }

  private enter(depth: number): void {
    if (depth > this.options.maxDepth) this.fail(`found values nested deeper than ${this.options.maxDepth}`);
    this.at += 1;
  }

  private string(): string {
    const start = this.at + 1;
    let end = start;
    for (;;) {
      const unit = this.text.charCodeAt(end);
      if (unit === QUOTE) break;
      if (unit === BACKSLASH) return this.escapedString(start, end);
      if (Number.isNaN(unit)) this.fail('found a string without its closing quote');
      if (unit < 0x20) this.failAt(end, 'found a control character in a string');
      end += 1;
    }
    this.at = end + 1;
    return this.text.slice(start, end);
  }

  /** The slow path of {@link string}: `end` is at the first backslash. */
  private escapedString(start: number, end: number): string {
    const parts = [this.text.slice(start, end)];
    let from = end;
    for (let i = end; ;) {
      const unit = this.text.charCodeAt(i);
      if (Number.isNaN(unit)) this.fail('found a string without its closing quote');
      if (unit < 0x20) this.failAt(i, 'found a control character in a string');
      if (unit !== QUOTE && unit !== BACKSLASH) {
        i += 1;
        continue;
      }
      parts.push(this.text.slice(from, i));
      if (unit === QUOTE) {
        this.at = i + 1;
        break;
      }
      const [character, length] = this.escape(i);
      parts.push(character);
      i += length;
      from = i;
    }
    const value = parts.join('');
    if (/\p{Cs}/u.test(value)) this.failAt(start, 'found half of a surrogate pair in a string');
    return value;
  }

  /** The character of the escape at `i`, and how long the escape is. */
  private escape(i: number): [string, number] {
    const letter = this.text[i + 1] ?? '';
    const plain = ESCAPES[letter];
    if (plain !== undefined) return [plain, 2];
    const digits = this.text.slice(i + 2, i + 6);
    if (letter !== 'u' || !/^[0-9a-fA-F]{4}$/.test(digits)) this.failAt(i, 'found an escape that JSON does not have');
    return [String.fromCharCode(Number.parseInt(digits, 16)), 6];
  }

  private scalar(): JsonValue {
    for (const [word, value] of LITERALS) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    }
    NUMBER.lastIndex = this.at;
    const match = NUMBER.exec(this.text);
    if (match === null) this.fail('expected a JSON value');
    const value = Number(match[0]);
    if (!Number.isFinite(value)) this.fail(`found a number too large to hold: ${match[0].slice(0, 40)}`);
    this.at += match[0].length;
    return value;
  }

  private skipSpace(): void {
    for (;;) {
      const unit = this.text.charCodeAt(this.at);
      if (unit !== 0x20 && unit !== 0x0a && unit !== 0x0d && unit !== 0x09) return;
      this.at += 1;
    }
  }

  private take(character: string): boolean {
    this.skipSpace();
    if (this.text[this.at] !== character) return false;
    this.at += 1;
    return true;
  }

  private expect(character: string): void {
    if (!this.take(character)) this.fail(`expected '${character}'`);
  }

  private failAt(at: number, problem: string): never {
    this.at = at;
    return this.fail(problem);
  }

  private fail(problem: string): never {
    const before = this.text.slice(0, this.at);
    const line = before.split('\n').length;
    const column = this.at - before.lastIndexOf('\n');
    throw new ManyfoldError(
      this.options.code ?? 'invalid_model',
      `${this.options.what}: ${problem} at line ${line}, column ${column}. ` +
        'The file is damaged or was edited by hand; write it again with a JSON library.',
    );
  }
}
