/**
 * Fields of adapter_config.json, read and refused by name. What changes the maths is honoured or refused; a field that
 * nobody knows is refused unless its value is one that switches things off. Used by importers.
 */
import { isJsonObject } from '../checkpoint/strict-json.js';
import type { JsonObject, JsonValue } from '../checkpoint/strict-json.js';
import { ManyfoldError } from '../core/errors.js';

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

/** Values that switch a field off, whatever it means. */
export function isOff(value: JsonValue | undefined): boolean {
  if (value === undefined || value === null || value === false || value === '') return true;
  if (Array.isArray(value)) return value.length === 0;
  return isJsonObject(value) && Object.keys(value).length === 0;
}

/** Fields of every PEFT config that say where an adapter comes from; they do not change what it computes. */
export const ORIGIN_FIELDS: readonly string[] = [
  'auto_mapping',
  'base_model_name_or_path',
  'inference_mode',
  'peft_type',
  'peft_version',
  'revision',
  'runtime_config',
];

/**
 * Fields with which all PEFT tuners choose their modules. The tensors of the file say which modules are adapted, so these
 * only bear witness.
 */
export const TARGET_FIELDS: readonly string[] = [
  'exclude_modules',
  'layers_pattern',
  'layers_to_transform',
  'target_modules',
];

/** Refuses every field that is on and not in `known`, ORIGIN_FIELDS or TARGET_FIELDS; checks task_type. */
export function refuseUnknownFields(config: JsonObject, known: readonly string[]): void {
  const all = new Set([...known, ...ORIGIN_FIELDS, ...TARGET_FIELDS, 'task_type']);
  for (const [field, value] of Object.entries(config)) {
    if (all.has(field) || isOff(value)) continue;
    throw refused(
      JSON.stringify(field.slice(0, SHOWN_CHARS)),
      `${show(value)}, a field that this server does not know and so cannot honour`,
      'Remove the field if it does not change the maths, else merge the adapter into its base and serve the result.',
    );
  }
  refuseOtherTask(config);
}

export function refuseOtherTask(config: JsonObject): void {
  const task = config['task_type'] ?? null;
  if (task === null || task === 'CAUSAL_LM') return;
  throw refused(
    'task_type',
    `${show(task)}, expected "CAUSAL_LM" or null: other tasks need another head`,
    'Serve an adapter that was trained for text generation.',
  );
}

/** A field that must be switched off, because it would change the maths in a way that is not served. */
export function refuseField(config: JsonObject, field: string, reason: string, mend: string): void {
  const value = config[field];
  if (!isOff(value)) throw refused(field, `${show(value)}, expected false, null or absent: ${reason}`, mend);
}

export function flagField(config: JsonObject, field: string, fallback: boolean): boolean {
  const value = config[field] ?? fallback;
  if (typeof value === 'boolean') return value;
  throw refused(field, `${show(value)}, expected true or false`, 'Correct adapter_config.json.');
}

/** An integer of at least `least`; without `fallback` it must be there. */
export function integerField(config: JsonObject, field: string, least: number, fallback?: number): number {
  const value = config[field] ?? fallback;
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= least) return value;
  throw refused(
    field,
    `${show(value)}, expected an integer of at least ${least}`,
    'Write the value that the adapter was trained with.',
  );
}

/** A number that float32 holds; without `fallback` it must be there. */
export function numberField(config: JsonObject, field: string, fallback?: number): number {
  const value = config[field] ?? fallback;
  if (typeof value === 'number' && Number.isFinite(Math.fround(value))) return value;
  throw refused(
    field,
    `${show(value)}, expected a finite number`,
    'Write the value that the adapter was trained with.',
  );
}

export function choiceField<T extends string>(
  config: JsonObject,
  field: string,
  choices: readonly T[],
  fallback?: T,
): T {
  const value = config[field] ?? fallback;
  const found = choices.find((choice) => choice === value);
  if (found !== undefined) return found;
  const expected = choices.map((choice) => JSON.stringify(choice)).join(', ');
  throw refused(field, `${show(value)}, expected one of ${expected}`, 'Correct adapter_config.json.');
}
