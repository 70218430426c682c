import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { EventTooLarge, SseParser } from './sse-parser.js';
import type { ServerSentEvent } from './sse-parser.js';

function parse(chunks: readonly Buffer[]): ServerSentEvent[] {
  const events: ServerSentEvent[] = [];
  const parser = new SseParser((event) => events.push(event));
  for (const chunk of chunks) parser.push(chunk);
  return events;
}

function data(text: string): string[] {
  return parse([Buffer.from(text)]).map((event) => event.data);
}

test('lines, comments, names, joined data, and every kind of line end', () => {
  assert.deepEqual(parse([Buffer.from(': hello\nevent: error\ndata: a\ndata: b\nid: 4\n\ndata:c\n\n')]), [
    { type: 'error', data: 'a\nb' },
    { type: 'message', data: 'c' },
  ]);
  for (const end of ['\n', '\r\n', '\r']) assert.deepEqual(data(`data: x${end}${end}data: y${end}${end}`), ['x', 'y']);
  assert.deepEqual(data('\ufeffdata: x\n\n'), ['x'], 'a byte order mark');
  assert.deepEqual(data('data\n\ndata:\n\n'), ['', ''], 'empty data is an event');
  assert.deepEqual(data('event: x\n\nretry: 1\n\n'), [], 'no data is none');
  assert.deepEqual(data('data:  two spaces\n\n'), [' two spaces']);
  assert.deepEqual(data('data: x\n'), [], 'an event that is not over');
});

test('an event may be cut anywhere, also within a character and between CR and LF', () => {
  const event = fc.record({
    data: fc.array(
      fc.string({ unit: 'binary' }).map((text) => text.replace(/[\r\n\ufeff]/g, '')),
      { minLength: 1, maxLength: 3 },
    ),
    end: fc.constantFrom('\n', '\r\n', '\r'),
  });
  fc.assert(
    fc.property(fc.array(event, { maxLength: 8 }), fc.array(fc.nat(60), { maxLength: 40 }), (events, cuts) => {
      const text = events.map(({ data, end }) => data.map((line) => `data: ${line}${end}`).join('') + end).join('');
      const bytes = Buffer.from(text);
      const chunks: Buffer[] = [];
      let from = 0;
      for (const cut of cuts) {
        chunks.push(bytes.subarray(from, from + cut));
        from = Math.min(bytes.length, from + cut);
      }
      chunks.push(bytes.subarray(from));
      const wanted = events.map(({ data }) => ({
        type: 'message',
        data: Buffer.from(data.join('\n')).toString('utf8'),
      }));
      assert.deepEqual(parse(chunks), wanted);
    }),
  );
});

test('knows whether it stands inside of an event', () => {
  const parser = new SseParser(() => undefined);
  assert.equal(parser.isInsideEvent, false);
  parser.push(Buffer.from('data: x\n'));
  assert.equal(parser.isInsideEvent, true);
  parser.push(Buffer.from('\n'));
  assert.equal(parser.isInsideEvent, false);
  parser.push(Buffer.from('da'));
  assert.equal(parser.isInsideEvent, true);
});

test('a line without end, or data without end, is refused before it fills the memory', () => {
  const chunk = Buffer.alloc(1 << 20, 'x');
  const endless = (prefix: string, separator: string): void => {
    const parser = new SseParser(() => undefined);
    parser.push(Buffer.from(prefix));
    for (let count = 0; count < 10; count++) {
      parser.push(chunk);
      parser.push(Buffer.from(separator));
    }
  };
  assert.throws(() => endless('data: ', ''), EventTooLarge);
  assert.throws(() => endless('data: ', '\ndata: '), EventTooLarge);
});
