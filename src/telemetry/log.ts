/**
 * Logs behind a small port. The server, the service and the CLI write through {@link Logger}; only this file knows pino.
 * Prompts, completions and keys are never logged: callers pass names, counts and codes.
 */
import { pino } from 'pino';

export type LogFields = Readonly<Record<string, unknown>>;

export interface Logger {
  debug(fields: LogFields, message: string): void;
  info(fields: LogFields, message: string): void;
  warn(fields: LogFields, message: string): void;
  error(fields: LogFields, message: string): void;
}

export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent';

export interface LogOptions {
  readonly level: LogLevel;
  /** Where the JSON lines go; standard output when absent. */
  readonly destination?: { write(line: string): void };
}

/** Keys whose value is replaced, should one ever be passed by mistake. */
const REDACTED = [
  'authorization',
  '*.authorization',
  'apiKey',
  '*.apiKey',
  'prompt',
  'messages',
  '*.prompt',
  '*.messages',
];

export function createLogger(options: LogOptions): Logger {
  const settings = { level: options.level, redact: REDACTED, base: null };
  return options.destination === undefined ? pino(settings) : pino(settings, options.destination);
}
