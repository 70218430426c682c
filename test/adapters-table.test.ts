/** The table of docs/adapters.md: every method that is served stands in it, with the goldens that are there. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

import { IMPORTERS } from '../src/adapters/importers/index.js';
import { REFUSED_METHODS } from '../src/adapters/importers/refused-methods.js';
import { GOLDENS } from './support/goldens.js';
import { modelsWithKinds } from './support/kind-goldens.js';

const ROWS = readFileSync(path.join('docs', 'adapters.md'), 'utf8')
  .split('\n')
  .filter((line) => line.startsWith('| ') && line.split('|').length === 8)
  .map((line) => line.split('|').map((cell) => cell.trim()));
const quoted = (cell: string): string[] => [...cell.matchAll(/`([^`]+)`/g)].map(([, text]) => text ?? '');

test('every golden of a kind stands in the table once, and every name there is a golden', () => {
  const made = new Set(modelsWithKinds().flatMap((model) => readdirSync(path.join(GOLDENS, 'kinds', model))));
  const named = ROWS.flatMap((cells) => quoted(cells[5] ?? '')).filter((name) => !name.endsWith('.test.ts'));
  assert.deepEqual(named.sort(), [...made].sort());
});

test('every peft_type that is served or refused by name stands in the table', () => {
  const served = IMPORTERS.filter((importer) => importer.matches({ peft_type: importer.method }, new Set()));
  const methods = [...served.map(({ method }) => method), ...REFUSED_METHODS.map(({ type }) => type)];
  const named = new Set(ROWS.flatMap((cells) => quoted(cells[1] ?? '')));
  assert.deepEqual(
    methods.filter((method) => !named.has(method)),
    [],
  );
});

test('tests that stand for goldens exist', () => {
  const files = ROWS.flatMap((cells) => quoted(cells[5] ?? '')).filter((name) => name.endsWith('.test.ts'));
  assert.ok(files.length > 0);
  const there = new Set(readdirSync(path.join('src', 'adapters', 'importers')));
  assert.deepEqual(
    files.filter((file) => !there.has(file)),
    [],
  );
});
