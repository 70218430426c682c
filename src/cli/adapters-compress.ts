/** `manyfold adapters compress`: an adapter folder → a packed ComPEFT one, with its sizes. Called by adapters.ts. */
import { stat } from 'node:fs/promises';
import path from 'node:path';
import type { Command } from 'commander';
import { DEFAULT_ADAPTER_LIMITS, openAdapterFolder, TENSORS_FILE } from '../adapters/adapter-folder.js';
import type { AdapterFolder } from '../adapters/adapter-folder.js';
import { compressSource } from '../adapters/compeft/compress.js';
import type { Compressed, CompressOptions } from '../adapters/compeft/compress.js';
import { PAYLOAD_TENSOR } from '../adapters/compeft/payload.js';
import { readSource } from '../adapters/compeft/read-source.js';
import type { Alpha, Scope } from '../adapters/compeft/ternarise.js';
import { refuseFullFolder, writeAdapterFolder } from '../adapters/convert/adapter-writer.js';
import { ManyfoldError } from '../core/errors.js';
import { EXIT } from './context.js';
import type { CliContext } from './context.js';
import { humanBytes } from './human-bytes.js';

interface Flags {
  readonly density: string;
  readonly alpha: string;
  readonly scope: string;
  readonly out?: string;
  readonly sweep?: true;
  readonly base?: string;
}

export function addCompressCommand(adapters: Command, context: CliContext, finish: (exitCode: number) => void): void {
  adapters
    .command('compress')
    .argument('<SRC>', 'folder of a LORA, IA3, S2FT or SFT adapter')
    .option('--out <DIR>', 'folder to write; must not exist or be empty')
    .option('--density <K>', 'part of the values that is kept, above 0 and at most 1', '0.1')
    .option('--alpha <A>', 'the scale in standard deviations of the values, or auto: nearest in least squares', '1')
    .option(
      '--scope <SCOPE>',
      'tensor: threshold and scale for each tensor; global: one of each, as in the paper',
      'tensor',
    )
    .option('--sweep', 'first try many densities and alphas on a small text and print quality and size of each')
    .option('--base <MODEL>', 'the base, for --sweep: a path or an id as for serve')
    .description(
      'Compresses an adapter to signs and scales (ComPEFT), about 28 times smaller than bf16 at density 0.1. The result ' +
        'is served as it is.',
    )
    .action(async (source: string, flags: Flags) => {
      await compress(source, flags, context);
      finish(EXIT.ok);
    });
}

async function compress(source: string, flags: Flags, context: CliContext): Promise<void> {
  const options = parseFlags(flags);
  if (flags.out !== undefined) await refuseFullFolder(flags.out);
  const folder = await openAdapterFolder(source, { limits: DEFAULT_ADAPTER_LIMITS, keepTensors: true });
  try {
    const read = await readSource(folder);
    if (flags.sweep === true) {
      // Loaded when it is needed: the engine comes with it.
      const { sweep } = await import('./compress-sweep.js');
      await sweep({ source: read, folder, scope: options.scope, base: flags.base ?? '' }, context);
    }
    if (flags.out !== undefined) await write(folder, compressSource(read, folder, options), flags.out, context);
  } finally {
    await folder.close();
  }
}

function parseFlags({ density, alpha, scope, out, sweep, base }: Flags): CompressOptions {
  const k = Number(density);
  if (!(k > 0 && k <= 1)) throw wrongFlag('density', density, 'a number above 0 and at most 1', '0.1 is usual');
  if (scope !== 'tensor' && scope !== 'global')
    throw wrongFlag('scope', scope, 'tensor or global', 'Choose one of them');
  if (out === undefined && sweep === undefined)
    throw wrongFlag('out', 'missing', 'a folder to write', 'Give --out DIR');
  if (sweep !== undefined && base === undefined)
    throw wrongFlag('base', 'missing', 'a model to sweep on', 'Give --base MODEL');
  return { density: k, alpha: parseAlpha(alpha), scope: scope satisfies Scope };
}

function parseAlpha(alpha: string): Alpha {
  if (alpha === 'auto') return alpha;
  const value = Number(alpha);
  if (value > 0 && Number.isFinite(value)) return value;
  throw wrongFlag('alpha', alpha, 'a number above 0, or auto', '1 is usual');
}

function wrongFlag(flag: string, found: string, expected: string, mend: string): ManyfoldError {
  return new ManyfoldError('invalid_config', `--${flag} is ${found}, expected ${expected}. ${mend}.`, { param: flag });
}

/** The folder's path goes to stdout, what is worth knowing to stderr. */
async function write(
  folder: AdapterFolder,
  compressed: Compressed,
  out: string,
  { stdout, stderr }: CliContext,
): Promise<void> {
  const { payload, config, parameters, nonZeros, emptied } = compressed;
  const tensor = { name: PAYLOAD_TENSOR, dtype: 'U8', shape: [payload.length], data: payload } as const;
  await writeAdapterFolder(out, config, [tensor]);
  const before = (await stat(path.join(folder.directory, TENSORS_FILE))).size;
  const after = (await stat(path.join(out, TENSORS_FILE))).size;
  stderr.write(
    `${parameters} values, ${nonZeros} kept (${((100 * nonZeros) / parameters).toFixed(2)} %).\n` +
      `${humanBytes(before)} → ${humanBytes(after)}: ${(before / after).toFixed(1)} times smaller, ` +
      `${((8 * after) / parameters).toFixed(3)} bits a value, ${((2 * parameters) / after).toFixed(1)} times smaller than bf16.\n`,
  );
  for (const name of emptied.slice(0, 8))
    stderr.write(`Warning: nothing is left of ${name}; its module does nothing now.\n`);
  if (emptied.length > 8) stderr.write(`Warning: nothing is left of ${emptied.length - 8} more tensors.\n`);
  if (emptied.length > 0) stderr.write('Try --scope tensor, or a higher --density.\n');
  stdout.write(`${out}\n`);
}
