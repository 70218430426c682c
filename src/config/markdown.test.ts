import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { loadConfig } from './load-config.js';
import { optionsMarkdown, withOptions } from './markdown.js';
import { envOf, flagOf, OPTION_KEYS, SECTIONS } from './options.js';

const PAGE = path.join(process.cwd(), 'docs', 'configuration.md');

test('every option has one row of five cells under its section', () => {
  const lines = optionsMarkdown().split('\n');
  const rows = lines.filter((line) => line.startsWith('| `--'));
  assert.equal(rows.length, OPTION_KEYS.length);
  for (const key of OPTION_KEYS) {
    const own = rows.filter((line) => line.includes(`| \`${envOf(key)}\` | \`${flagOf(key)}\` |`));
    assert.equal(own.length, 1, key);
    assert.equal(own[0]?.split(/(?<!\\)\|/).length, 7, `${key}: five cells`);
  }
  for (const section of SECTIONS) assert.ok(lines.includes(`### ${section}`), section);
});

test('docs/configuration.md has the options of this build', () => {
  const page = readFileSync(PAGE, 'utf8');
  assert.equal(
    page,
    withOptions(page),
    'docs/configuration.md is old: run npm run build && node scripts/make-docs.mjs',
  );
});

test('the YAML example of the page is a configuration', () => {
  const [, yaml = ''] = /```yaml\n([^`]+)```/.exec(readFileSync(PAGE, 'utf8')) ?? [];
  const config = loadConfig(['--config', 'manyfold.yaml'], {}, () => yaml);
  assert.deepEqual(config.model.servedModelNames, ['qwen', 'gpt-4o-mini']);
  assert.equal(config.adapters.modules.length, 2);
});

test('a page without the marks is refused', () => {
  assert.throws(() => withOptions('# Configuration'), /needs the lines/);
});
