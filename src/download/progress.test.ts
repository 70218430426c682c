import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createProgress, formatBytes, formatDuration } from './progress.js';

class FakeClock {
  ms = 0;
  nowMs = (): number => this.ms;
  unixSeconds = (): number => Math.floor(this.ms / 1000);
}

function record(isTTY: boolean): { clock: FakeClock; written: string[]; progress: ReturnType<typeof createProgress> } {
  const clock = new FakeClock();
  const written: string[] = [];
  return {
    clock,
    written,
    progress: createProgress({ write: (text) => written.push(text), isTTY, columns: 60 }, clock),
  };
}

test('plain lines come every few seconds with bytes, share, rate and time left', () => {
  const { clock, written, progress } = record(false);
  progress.start({ label: 'm.gguf', total: 100e6, done: 0 });
  for (let second = 1; second <= 11; second += 1) {
    clock.ms = 1000 * second;
    progress.update(5e6 * second);
  }
  progress.note('a note');
  progress.finish();
  assert.deepEqual(written, [
    'm.gguf: 0 B of 100 MB, 0%\n',
    'm.gguf: 25.0 MB of 100 MB, 25%, 5.0 MB/s, 15 s left\n',
    'm.gguf: 50.0 MB of 100 MB, 50%, 5.0 MB/s, 10 s left\n',
    'a note\n',
    'm.gguf: 55.0 MB of 100 MB, 55%, 5.0 MB/s, 9 s left\n',
  ]);
});

test('a terminal has one line that is written over, not longer than the terminal', () => {
  const { clock, written, progress } = record(true);
  progress.start({ label: 'a-very-long-name-'.repeat(5), total: undefined, done: 7 });
  clock.ms = 50;
  progress.update(8);
  clock.ms = 200;
  progress.update(1007);
  progress.finish();
  assert.equal(written.length, 4);
  assert.ok(
    written.slice(0, 3).every((line) => line.startsWith('\r') && line.endsWith('\u001b[K') && line.length <= 60 + 4),
  );
  assert.equal(written.at(-1), '\n');
});

test('a resumed transfer counts its rate from where it began, a restarted one from zero', () => {
  const { clock, written, progress } = record(false);
  progress.start({ label: 'x', total: 1000, done: 500 });
  clock.ms = 10_000;
  progress.update(600);
  assert.equal(written.at(-1), 'x: 600 B of 1.0 kB, 60%, 10 B/s, 40 s left\n');
  clock.ms = 11_000;
  progress.update(0);
  clock.ms = 21_000;
  progress.update(200);
  progress.finish();
  assert.equal(written.at(-1), 'x: 200 B of 1.0 kB, 20%, 20 B/s, 40 s left\n');
});

test('numbers for people', () => {
  assert.deepEqual([0, 999, 1000, 98_362_432, 99_960_000, 2.5e12].map(formatBytes), [
    '0 B',
    '999 B',
    '1.0 kB',
    '98.4 MB',
    '100 MB',
    '2.5 TB',
  ]);
  assert.deepEqual([0.2, 59, 65, 3600, 7830].map(formatDuration), [
    '1 s',
    '59 s',
    '1 min 05 s',
    '1 h 00 min',
    '2 h 10 min',
  ]);
});
