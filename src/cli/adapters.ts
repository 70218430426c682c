/** `manyfold adapters …`: the offline tools for adapter folders. Called by program.ts; each subcommand has its own file. */
import type { Command } from 'commander';
import { addCompressCommand } from './adapters-compress.js';
import { addConvertCommand } from './adapters-convert.js';
import { addImportCommands } from './adapters-import.js';
import type { CliContext } from './context.js';

/** Adds one subcommand (or a group of them) to `manyfold adapters`; `finish` takes the exit code when it has run. */
export type AddAdaptersCommand = (adapters: Command, context: CliContext, finish: (exitCode: number) => void) => void;

const SUBCOMMANDS: readonly AddAdaptersCommand[] = [addCompressCommand, addConvertCommand, addImportCommands];

export function addAdaptersCommand(program: Command, context: CliContext, finish: (exitCode: number) => void): void {
  const adapters = program
    .command('adapters')
    .description('Converts, imports and compresses adapter folders on disk. Serves nothing.');
  for (const add of SUBCOMMANDS) add(adapters, context, finish);
}
