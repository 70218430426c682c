/** What a command may touch of the outside world. Made by main.ts from the process; tests bring their own. */
import type { Readable, Writable } from 'node:stream';
import type { ReadFile } from '../config/load-config.js';
import type { ModelSettings, ResolvedConfig } from '../config/resolved-config.js';
import type { Environment } from '../config/sources.js';
import type { Clock } from '../core/clock.js';

/** A stream that may be a terminal. */
export type Input = Readable & { readonly isTTY?: boolean };
export type Output = Writable & { readonly isTTY?: boolean; readonly columns?: number };

export interface CliContext {
  readonly argv: readonly string[];
  readonly env: Environment;
  readonly readFile: ReadFile;
  readonly stdin: Input;
  readonly stdout: Output;
  readonly stderr: Output;
  readonly clock: Clock;
  /** Runs the server until it is told to stop; resolves to the exit code. */
  readonly serve: (config: ResolvedConfig) => Promise<number>;
  /** Path of the model's file or folder, downloaded first if need be, with progress on stderr. */
  readonly fetchModel: (settings: ModelSettings) => Promise<string>;
}

/** 0: done; 1: it failed while running; 2: it was asked for in a way that cannot be. */
export const EXIT = { ok: 0, failed: 1, usage: 2 } as const;
