/** How the native module refuses: an Error with a code, and a message that names what was wrong. */
import assert from 'node:assert/strict';

/** An error of the given code whose message holds all of the parts. */
export function refusal(code: string, ...parts: string[]): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof Error && 'code' in error, String(error));
    assert.equal(error.code, code, error.message);
    for (const part of parts) assert.ok(error.message.includes(part), `'${error.message}' lacks '${part}'`);
    return true;
  };
}
