/** `manyfold adapters convert`: files that serve does not read → folders that it reads. Called by adapters.ts. */
import type { Command } from 'commander';
import { convertComposableSft } from '../adapters/convert/composable-sft.js';
import type { Conversion } from '../adapters/convert/converted-folder.js';
import { convertAdapterHub, convertPeftPickle } from '../adapters/convert/peft-pickle.js';
import { EXIT } from './context.js';
import type { CliContext } from './context.js';

type Convert = (source: string, directory: string) => Promise<Conversion>;

interface Format {
  readonly name: string;
  readonly source: string;
  readonly description: string;
  readonly convert: Convert;
}

const FORMATS: readonly Format[] = [
  {
    name: 'composable-sft',
    source: 'SRC.bin',
    description: 'Converts the pytorch_diff.bin of composable-sft into a folder with peft_type "SFT".',
    convert: convertComposableSft,
  },
  {
    name: 'pickle',
    source: 'SRC',
    description:
      'Converts the adapter_model.bin of a PEFT folder (or the file itself, with adapter_config.json beside it) into a ' +
      'folder with adapter_model.safetensors. The pickle is read, never run.',
    convert: convertPeftPickle,
  },
  {
    name: 'adapterhub',
    source: 'SRC',
    description: 'Converts a folder that AdapterHub wrote (adapter.safetensors or pytorch_adapter.bin).',
    convert: convertAdapterHub,
  },
];

export function addConvertCommand(adapters: Command, context: CliContext, finish: (exitCode: number) => void): void {
  const convert = adapters.command('convert').description('Converts adapter files of other formats, on this machine.');
  for (const format of FORMATS) {
    convert
      .command(format.name)
      .argument(`<${format.source}>`, 'what is converted')
      .requiredOption('--out <DIR>', 'folder to write; must not exist or be empty')
      .description(format.description)
      .action(async (source: string, options: { out: string }) => {
        const { directory, tensors, notes } = await format.convert(source, options.out);
        for (const note of notes) context.stderr.write(`${note}\n`);
        context.stderr.write(`${tensors} tensors written.\n`);
        context.stdout.write(`${directory}\n`);
        finish(EXIT.ok);
      });
  }
}
