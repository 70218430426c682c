/**
 * HTML and SVG as values. Text becomes markup only here and is always escaped, so that adapter names and error texts, which
 * come from outside, cannot carry tags into a report. Used by every page and plot of this folder.
 */

/** Markup that needs no further escaping. Only this file makes one. */
export class Markup {
  readonly #text: string;

  constructor(text: string, key: symbol) {
    if (key !== KEY) throw new TypeError('Markup is made by element(), fragment() or styleSheet()');
    this.#text = text;
  }

  toString(): string {
    return this.#text;
  }
}
const KEY = Symbol('markup');

/** Strings and numbers are text and are escaped; undefined is nothing. */
export type Child = Markup | string | number | undefined | readonly Child[];
/** An attribute whose value is undefined is left out; true stands alone. */
export type Attributes = Readonly<Record<string, string | number | true | undefined>>;

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};
const NAME = /^[A-Za-z][A-Za-z0-9-]*$/;
/** Elements of HTML that have no end tag. */
const VOID: ReadonlySet<string> = new Set(['meta', 'br', 'link', 'col']);

/** Text as it may stand in an element or a quoted attribute. What XML 1.0 has no character for becomes U+FFFD. */
export function escapeText(text: string): string {
  return cleanText(text).replace(/[&<>"']/g, (character) => ENTITIES[character] ?? '');
}

/** Whether XML 1.0 allows this code point; lone surrogates reach here as themselves. */
function isCharacter(code: number): boolean {
  if (code < 0x20) return code === 0x09 || code === 0x0a || code === 0x0d;
  return !(code >= 0x7f && code <= 0x9f) && !(code >= 0xd800 && code <= 0xdfff) && code !== 0xfffe && code !== 0xffff;
}

function cleanText(text: string): string {
  if (/^[\x20-\x7e]*$/.test(text)) return text;
  return Array.from(text, (character) => (isCharacter(character.codePointAt(0) ?? 0) ? character : '\ufffd')).join('');
}

export function element(name: string, attributes: Attributes = {}, ...children: readonly Child[]): Markup {
  const parts = [`<${checked(name)}`];
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined) continue;
    parts.push(value === true ? ` ${checked(key)}` : ` ${checked(key)}="${escapeText(String(value))}"`);
  }
  parts.push('>');
  if (VOID.has(name)) return new Markup(parts.join(''), KEY);
  append(parts, children);
  parts.push(`</${name}>`);
  return new Markup(parts.join(''), KEY);
}

/** Children without an element of their own. */
export function fragment(...children: readonly Child[]): Markup {
  const parts: string[] = [];
  append(parts, children);
  return new Markup(parts.join(''), KEY);
}

/** A `<style>` element. Its text is not escaped (browsers read it raw), so it may not hold what would end it. */
export function styleSheet(css: string): Markup {
  if (css.includes('<')) throw new RangeError('A style sheet with "<" could end its own element');
  return new Markup(`<style>${css}</style>`, KEY);
}

function append(parts: string[], children: readonly Child[]): void {
  for (const child of children) {
    if (child === undefined) continue;
    if (Array.isArray(child)) append(parts, child as readonly Child[]);
    else parts.push(child instanceof Markup ? child.toString() : escapeText(String(child)));
  }
}

function checked(name: string): string {
  if (!NAME.test(name)) throw new RangeError(`'${name}' is no name of an element or attribute`);
  return name;
}
