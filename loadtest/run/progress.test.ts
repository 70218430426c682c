import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LiveState } from './live-counts.js';
import { LiveCounts } from './live-counts.js';
import { ProgressLine } from './progress.js';

const STATE: LiveState = {
  phase: 'measured',
  elapsedMs: 12_400,
  totalRequests: 100,
  sent: 40,
  inFlight: 3,
  ok: 36,
  failed: 1,
  tokensPerSecond: 120.4,
  ttftP50Ms: 51.2,
  ttftP99Ms: 99.9,
};

function written(stream: { isTTY?: boolean; columns?: number }, states: readonly LiveState[]): string[] {
  const texts: string[] = [];
  const line = new ProgressLine({ ...stream, write: (text: string) => texts.push(text) });
  for (const state of states) line.show(state);
  line.end();
  return texts;
}

test('on a terminal one line is rewritten, cut to its width, and taken away in the end', () => {
  const [first, second, end] = written({ isTTY: true, columns: 200 }, [
    STATE,
    { ...STATE, failed: 0, ttftP50Ms: null },
  ]);
  assert.equal(
    first,
    '\r\u001b[K  12 s measured, sent 40/100, in flight 3, ok 36, failed 1, 120 tokens/s, TTFT p50 51 p99 100 ms',
  );
  assert.equal(second, '\r\u001b[K  12 s measured, sent 40/100, in flight 3, ok 36, 120 tokens/s');
  assert.equal(end, '\r\u001b[K');
  for (const columns of [0, 10, 50]) {
    const [cut = ''] = written({ isTTY: true, columns }, [STATE]);
    assert.ok(cut.length <= Math.max(40, columns) + 4, cut);
  }
});

test('elsewhere a line comes every ten seconds', () => {
  const states = Array.from({ length: 50 }, (_, index) => ({ ...STATE, elapsedMs: index * 500 }));
  const lines = written({}, states);
  assert.equal(lines.length, 2);
  assert.ok(lines.every((line) => line.endsWith('\n') && !line.includes('\u001b')));
  assert.match(written({}, [{ ...STATE, elapsedMs: 10_000, totalRequests: null }])[0] ?? '', /sent 40, in flight/);
});

test('live counts give rates since the last look', () => {
  const counts = new LiveCounts(0);
  counts.sent();
  counts.sent();
  for (let piece = 1; piece <= 10; piece++) counts.piece(piece, 30 + piece);
  const first = counts.take(500);
  assert.deepEqual([first.sent, first.ok, first.failed, first.tokensPerSecond], [2, 0, 0, 20]);
  assert.equal(first.ttftP50Ms, 31);
  const second = counts.take(1000);
  assert.deepEqual([second.sent, second.tokensPerSecond, second.ttftP50Ms], [2, 0, null]);
});
