import assert from 'node:assert/strict';
import { test } from 'node:test';
import { QueueEstimate } from './queue-estimate.js';

function estimateOf(waiting: number, maxNumSeqs: number): QueueEstimate {
  const engine = { info: { maxNumSeqs, maxQueue: 8 }, stats: () => ({ waiting }) };
  return new QueueEstimate(engine, { seed: () => 0, id: () => '', jitter: () => 0 });
}

test('sequences of one length give the queue over the rate', () => {
  const estimate = estimateOf(7, 4);
  for (let i = 0; i < 200; i += 1) estimate.record(10);
  assert.ok(Math.abs(estimate.retryAfterSeconds() - 20) < 0.1, String(estimate.retryAfterSeconds()));
});

test('tiny requests do not hide the long ones that hold the places', () => {
  const estimate = estimateOf(7, 4);
  for (let i = 0; i < 200; i += 1) estimate.record(10);
  for (let i = 0; i < 30; i += 1) estimate.record(0.01);
  assert.ok(estimate.retryAfterSeconds() > 15, String(estimate.retryAfterSeconds()));
});
