import assert from 'node:assert/strict';
import { test } from 'node:test';

import { systemClock } from '../../src/core/clock.js';
import { fuzz } from './compeft.js';

test('a few thousand mutated ComPEFT payloads compile or are refused, for many different reasons', async () => {
  const report = await fuzz({ clock: systemClock, seed: 1, seconds: 30, maxExecutions: 3000 });
  assert.equal(report.find, undefined);
  assert.equal(report.executions, 3000);
  assert.ok(report.outcomes > 25, `${report.outcomes} outcomes`);
});
