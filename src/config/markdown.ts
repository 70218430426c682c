/** The option table as Markdown, so that docs/configuration.md cannot drift from the code. Called by scripts/make-docs.mjs. */
import { envOf, flagOf, OPTION_KEYS, optionOf, SECTIONS } from './options.js';
import type { OptionKey } from './options.js';

const BEGIN = '<!-- options: written by scripts/make-docs.mjs, do not edit by hand -->';
const END = '<!-- end of options -->';

/** All options, one table a section. */
export function optionsMarkdown(): string {
  return SECTIONS.map((section) => {
    const keys = OPTION_KEYS.filter((key) => optionOf(key).section === section);
    const head = [`### ${section}`, '', '| flag | variable | YAML key | default | meaning |', '|---|---|---|---|---|'];
    return [...head, ...keys.map(row)].join('\n');
  }).join('\n\n');
}

/** The page with the tables between its two marks made anew; throws when a mark is missing. */
export function withOptions(page: string): string {
  const [begin, end] = [page.indexOf(BEGIN), page.indexOf(END)];
  if (begin < 0 || end < begin) throw new Error(`The page needs the lines ${BEGIN} and ${END}, in this order.`);
  return `${page.slice(0, begin)}${BEGIN}\n\n${optionsMarkdown()}\n\n${page.slice(end)}`;
}

function row(key: OptionKey): string {
  const { type, description } = optionOf(key);
  const flag = `--${flagOf(key)}${type.placeholder === '' ? '' : ` ${type.placeholder}`}`;
  const cells = [
    `${code(flag)}${type.shape === 'list' ? ' (repeatable)' : ''}`,
    code(envOf(key)),
    code(flagOf(key)),
    defaultOf(key),
    [escape(description), ...hints(key)].join(' '),
  ];
  return `| ${cells.join(' | ')} |`;
}

function defaultOf(key: OptionKey): string {
  const option = optionOf(key);
  if (option.defaultText !== undefined) return escape(option.defaultText);
  const unit = option.unit !== undefined && /\d$/.test(option.default ?? '') ? ` ${option.unit}` : '';
  return `${code(option.default ?? '')}${unit}`;
}

/** What a value must be, an example, and other tools' names for the option. */
function hints(key: OptionKey): string[] {
  const { example, flagAliases = [], envAliases = [], type } = optionOf(key);
  const also = [...flagAliases.map((alias) => code(`--${alias}`)), ...envAliases.map(code)];
  return [
    `Expects ${escape(type.expects)}.`,
    `Example: ${code(type.shape === 'switch' ? `--${flagOf(key)}` : `--${flagOf(key)} ${example}`)}.`,
    ...(also.length === 0 ? [] : [`Also ${also.join(', ')}.`]),
  ];
}

function code(text: string): string {
  return `\`${escape(text)}\``;
}

/** A bar ends a cell, also inside of code. */
function escape(text: string): string {
  return text.replaceAll('|', '\\|');
}
