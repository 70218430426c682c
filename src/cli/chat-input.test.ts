import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ChatLines } from './chat-input.js';
import type { ChatInput } from './chat-input.js';

function feed(...lines: string[]): ChatInput[] {
  const input = new ChatLines();
  return lines.map((line) => input.push(line));
}

test('a line is a message', () => {
  assert.deepEqual(feed('hello', '', '  '), [{ type: 'message', text: 'hello' }, { type: 'empty' }, { type: 'empty' }]);
});

test('a backslash goes on in the next line', () => {
  assert.deepEqual(feed('a\\', '\\', '/b'), [
    { type: 'incomplete' },
    { type: 'incomplete' },
    { type: 'message', text: 'a\n\n/b' },
  ]);
});

test('a fenced block is one message, commands and backslashes in it are text', () => {
  const inputs = feed('"""', '/exit', 'x\\', '', 'y', '"""', 'next');
  assert.deepEqual(inputs.at(5), { type: 'message', text: '/exit\nx\\\n\ny' });
  assert.deepEqual(inputs.at(6), { type: 'message', text: 'next' });
  assert.ok(inputs.slice(0, 5).every(({ type }) => type === 'incomplete'));
});

test('the end of the input sends what is held, clear drops it', () => {
  const lines = new ChatLines();
  lines.push('half\\');
  assert.equal(lines.isEmpty, false);
  assert.deepEqual(lines.end(), { type: 'message', text: 'half' });
  lines.push('"""');
  lines.push('gone');
  lines.clear();
  assert.equal(lines.isEmpty, true);
  assert.deepEqual(lines.end(), { type: 'empty' });
});

test('commands', () => {
  assert.deepEqual(feed('/adapter a/b', '/adapter', '/reset', '/help', '/exit', '/quit'), [
    { type: 'adapter', name: 'a/b' },
    { type: 'adapter', name: undefined },
    { type: 'reset' },
    { type: 'help' },
    { type: 'exit' },
    { type: 'exit' },
  ]);
  const [misspelt, two] = feed('/adaptor x', '/adapter a b');
  assert.ok(misspelt?.type === 'unknown' && misspelt.reason.includes('Did you mean /adapter?'));
  assert.ok(two?.type === 'unknown' && two.reason.includes('takes one word'));
});
