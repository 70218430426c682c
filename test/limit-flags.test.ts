/** The limits on requests live in three places that may not see each other; this says that they agree. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loadConfig } from '../src/config/load-config.js';
import { flagOf, OPTION_KEYS } from '../src/config/options.js';
import type { RequestLimits } from '../src/service/limits.js';
import { DEFAULT_LIMITS, LIMIT_FLAGS } from '../src/service/limits.js';
import { TEXT_LIMITS } from '../src/text/limits.js';

function limitsWith(...argv: string[]): RequestLimits {
  return loadConfig(argv, {}, () => '').server.limits;
}

test('every limit has the flag that its refusals name, and the same default', () => {
  assert.deepEqual(limitsWith(), DEFAULT_LIMITS);
  for (const [limit, flag] of Object.entries(LIMIT_FLAGS) as [keyof RequestLimits, string][]) {
    assert.ok(
      OPTION_KEYS.some((key) => `--${flagOf(key)}` === flag),
      flag,
    );
    const raised = limitsWith(`${flag}=${limit === 'bodyBytes' || limit === 'promptBytes' ? 2048 : 7}`);
    assert.notEqual(raised[limit], DEFAULT_LIMITS[limit], flag);
  }
});

test('no flag can be raised above what the text layer serves', () => {
  const ceilings: [keyof RequestLimits, number][] = [
    ['promptBytes', TEXT_LIMITS.promptBytes],
    ['messages', TEXT_LIMITS.messages],
    ['stops', TEXT_LIMITS.stopStrings],
    ['stopChars', TEXT_LIMITS.stopChars],
  ];
  for (const [limit, ceiling] of ceilings) {
    assert.equal(limitsWith(`${LIMIT_FLAGS[limit]}=${ceiling}`)[limit], ceiling);
    assert.throws(() => limitsWith(`${LIMIT_FLAGS[limit]}=${ceiling + 1}`), { code: 'invalid_config' }, limit);
  }
});
