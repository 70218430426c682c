/**
 * `manyfold adapters import s2ft` and `manyfold adapters extract`: adapters from whole checkpoints. Called by adapters.ts.
 */
import { InvalidArgumentError, Option } from 'commander';
import type { Command } from 'commander';
import { describeExtract, extractAdapter } from '../adapters/convert/extract/extract.js';
import type { ValueType } from '../adapters/convert/s2ft/difference.js';
import { describeImport, importS2ft } from '../adapters/convert/s2ft/import-s2ft.js';
import type { AddAdaptersCommand } from './adapters.js';
import { EXIT } from './context.js';
import type { CliContext } from './context.js';

const DEFAULT_RANK = 16;
const MOST_RANK = 4096;
/** A line of progress for so many of the steps at most. */
const PROGRESS_LINES = 20;

export const addImportCommands: AddAdaptersCommand = (adapters, context, finish) => {
  addImportS2ft(adapters, context, finish);
  addExtract(adapters, context, finish);
};

interface ImportFlags {
  readonly base: string;
  readonly checkpoint: string;
  readonly out: string;
  readonly dtype: ValueType;
}

function addImportS2ft(adapters: Command, context: CliContext, finish: (exitCode: number) => void): void {
  adapters
    .command('import')
    .description('Makes adapters from the checkpoints that training code saves.')
    .command('s2ft')
    .description(
      "Finds in the permuted dense checkpoint of the S2FT paper's code the rows and columns that were trained, and writes " +
        'them as an S2FT adapter. Nothing is served, the model is never loaded as a whole.',
    )
    .requiredOption('--base <DIR>', 'the base that was trained: a Hugging Face folder')
    .requiredOption('--checkpoint <DIR>', 'the folder that the training saved (safetensors or pytorch_model.bin)')
    .requiredOption('--out <DIR>', 'folder to write; must not exist or be empty')
    .addOption(
      new Option('--dtype <TYPE>', 'type of the values; auto: bf16 where that loses nothing, else f32')
        .choices(['auto', 'bf16', 'f32'])
        .default('auto'),
    )
    .action(async (flags: ImportFlags) => {
      const progress = progressLines(context);
      const report = await importS2ft({
        ...flags,
        progress: (done, layers) => progress(`layer ${done} of ${layers}`, done, layers),
      });
      context.stderr.write(`${describeImport(report).join('\n')}\n`);
      context.stdout.write(`${flags.out}\n`);
      finish(EXIT.ok);
    });
}

interface ExtractFlags {
  readonly base: string;
  readonly finetuned: string;
  readonly out: string;
  readonly rank: number;
}

function addExtract(adapters: Command, context: CliContext, finish: (exitCode: number) => void): void {
  adapters
    .command('extract')
    .description(
      'Compares a dense fine-tune with its base and writes the smallest adapter that is exact (whole rows and columns: ' +
        'S2FT; single values: SFT), else a LoRA of the best rank, and says how exact it is.',
    )
    .requiredOption('--base <DIR>', 'the base: a Hugging Face folder')
    .requiredOption('--finetuned <DIR>', 'the fine-tune of it: a Hugging Face folder')
    .requiredOption('--out <DIR>', 'folder to write; must not exist or be empty')
    .option('--rank <R>', 'highest rank of a LoRA', rankOf, DEFAULT_RANK)
    .action(async (flags: ExtractFlags) => {
      const report = await extractAdapter({ ...flags, progress: progressLines(context) });
      context.stderr.write(`${describeExtract(report).join('\n')}\n`);
      context.stdout.write(`${flags.out}\n`);
      finish(EXIT.ok);
    });
}

function rankOf(text: string): number {
  const rank = Number(text);
  if (Number.isInteger(rank) && rank >= 1 && rank <= MOST_RANK) return rank;
  throw new InvalidArgumentError(`Give a whole number of 1 to ${MOST_RANK}.`);
}

/** Writes a line now and then, and always the first and the last one of a pass. */
function progressLines({ stderr }: CliContext): (what: string, done: number, all: number) => void {
  let shown = -1;
  return (what, done, all) => {
    const part = Math.floor((PROGRESS_LINES * done) / Math.max(all, 1));
    if (part === shown && done !== 0) return;
    shown = part;
    stderr.write(`${what}\n`);
  };
}
