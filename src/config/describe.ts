/** Shows the option table to people: as help, and as the configuration in force. Called by src/cli. */
import { formatByteSize } from './byte-size.js';
import { envOf, flagOf, OPTION_KEYS, optionOf, SECTIONS } from './options.js';
import type { OptionKey } from './options.js';
import type { ResolvedConfig } from './resolved-config.js';

const INDENT = ' '.repeat(6);

/** Breaks a text at spaces so that each line, its indent included, has at most `width` characters. */
function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = INDENT.trimEnd();
  for (const word of text.split(' ')) {
    const longer = line === '' ? `${INDENT}${word}` : `${line} ${word}`;
    if (longer.length > width && line !== '') {
      lines.push(line);
      line = `${INDENT}${word}`;
    } else {
      line = longer;
    }
  }
  lines.push(line);
  return lines;
}

function describeOption(key: OptionKey, width: number): string[] {
  const option = optionOf(key);
  const { placeholder, shape } = option.type;
  const flag = `--${flagOf(key)}`;
  const value = placeholder === '' ? '' : ` ${placeholder}`;
  const repeat = shape === 'list' ? '   (repeatable)' : '';
  const aliases = [...(option.flagAliases ?? []).map((alias) => `--${alias}`), ...(option.envAliases ?? [])];
  const also = aliases.length === 0 ? '' : ` Also ${aliases.join(', ')}.`;
  const unit = option.unit === undefined ? '' : ` ${option.unit}`;
  const byDefault = option.defaultText ?? `${option.default ?? ''}${/\d$/.test(option.default ?? '') ? unit : ''}`;
  const example = shape === 'switch' ? flag : `${flag} ${option.example}`;
  return [
    `  ${flag}${value}${repeat}`,
    ...wrap(option.description, width),
    ...wrap(`Default: ${byDefault}. Env: ${envOf(key)}.${also}`, width),
    ...wrap(`Example: ${example}`, width),
  ];
}

/** Help for the given options, by section. */
export function describeOptions(keys: readonly OptionKey[] = OPTION_KEYS, width = 100): string {
  const sections = SECTIONS.map((section) => ({
    section,
    members: keys.filter((key) => optionOf(key).section === section),
  }));
  return sections
    .filter(({ members }) => members.length > 0)
    .map(({ section, members }) => [`${section}:`, ...members.flatMap((key) => describeOption(key, width))].join('\n'))
    .join('\n\n');
}

function showValue(key: OptionKey, value: unknown): string {
  const option = optionOf(key);
  if (value === undefined || (Array.isArray(value) && value.length === 0)) return '';
  if (option.secret === true) return Array.isArray(value) ? `(hidden, ${value.length} given)` : '(hidden)';
  if (option.unit === 'bytes' && typeof value === 'number') return formatByteSize(value);
  return JSON.stringify(value);
}

/**
 * The configuration in force as YAML. Options without a value stand in comments with what happens then; so do secrets,
 * whose values are never shown. With `origins` each line says where its value comes from.
 */
export function printConfig(config: ResolvedConfig, { origins }: { readonly origins: boolean }): string {
  const lines = OPTION_KEYS.map((key) => {
    const shown = showValue(key, config.values[key]);
    const hidden = shown === '' || optionOf(key).secret === true;
    const text = shown === '' ? `# ${flagOf(key)}: ${optionOf(key).defaultText ?? ''}` : `${flagOf(key)}: ${shown}`;
    return { text: hidden && shown !== '' ? `# ${text}` : text, origin: config.origins[key].name };
  });
  const width = Math.min(56, Math.max(...lines.map(({ text }) => text.length)));
  return lines.map(({ text, origin }) => (origins ? `${text.padEnd(width)}  # ${origin}` : text)).join('\n') + '\n';
}
