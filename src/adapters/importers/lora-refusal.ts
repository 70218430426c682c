/** How a field of adapter_config.json is refused; used by the files that read it. */
import type { JsonValue } from '../../checkpoint/strict-json.js';
import { ManyfoldError } from '../../core/errors.js';

const SHOWN_CHARS = 80;

/** The error for a config field that cannot be served: what it is, what was expected, the mend. */
export function refused(field: string, problem: string, mend: string): ManyfoldError {
  return new ManyfoldError('invalid_adapter', `adapter_config.json: ${field} is ${problem}. ${mend}`, { param: field });
}

/** A value of the file, cut to what a message can hold. */
export function show(value: JsonValue | undefined): string {
  const text = value === undefined ? 'missing' : JSON.stringify(value);
  return text.length > SHOWN_CHARS ? `${text.slice(0, SHOWN_CHARS)}…` : text;
}
