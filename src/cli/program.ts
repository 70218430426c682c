/** The commands and their help. Called by main.ts; everything that a command does lies in its own file. */
import { Command, CommanderError } from 'commander';
import { describeOptions } from '../config/describe.js';
import { loadConfig } from '../config/load-config.js';
import type { OptionKey } from '../config/options.js';
import { ManyfoldError } from '../core/errors.js';
import { addAdaptersCommand } from './adapters.js';
import { addBenchCommand } from './bench.js';
import { addChatCommand } from './chat.js';
import { checkConfig, showConfig } from './config-command.js';
import { EXIT } from './context.js';
import type { CliContext } from './context.js';
import { doctorReport, readMachine } from './doctor.js';
import { loadNative } from '../native/load-binding.js';
import { pull, PULL_OPTIONS } from './pull.js';
import { versionLine } from './version.js';

const EXAMPLES = `
Examples:
  manyfold serve                                       the built-in model and its demo adapters, on http://127.0.0.1:8000
  manyfold serve ./models/Qwen3-0.6B --dtype f32       another model, in the exact reference mode
  manyfold serve --adapter support=./adapters/support  one base, one fine-tune of it
  manyfold chat --adapter support                      talk to it from a second terminal
  manyfold config print --origins                      what is in force, and where it comes from

Every option is a flag, an environment variable and a YAML key:
  --max-num-seqs 32   MANYFOLD_MAX_NUM_SEQS=32   max-num-seqs: 32   (a file given by --config or MANYFOLD_CONFIG)
A flag wins over a variable, a variable over the file, the file over the default.`;

/** Runs one command line; resolves to the exit code and never throws. */
export async function runCli(context: CliContext): Promise<number> {
  let exitCode: number = EXIT.ok;
  const program = buildProgram(context, (code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync(context.argv.length === 0 ? ['--help'] : [...context.argv], { from: 'user' });
    return exitCode;
  } catch (error) {
    // Commander throws after it has printed help or a message of its own.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    return reportFailure(error, context);
  }
}

function reportFailure(error: unknown, { stderr }: CliContext): number {
  if (!(error instanceof ManyfoldError)) {
    stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
    return EXIT.failed;
  }
  stderr.write(`manyfold: ${error.message}\n`);
  return error.code === 'invalid_config' ? EXIT.usage : EXIT.failed;
}

type Finish = (exitCode: number) => void;

function buildProgram(context: CliContext, finish: Finish): Command {
  const program = new Command('manyfold')
    .description('Serves one base language model with thousands of fine-tunes of it, all in one batch.')
    .version(versionLine(), '-V, --version', 'show the version and end')
    .helpOption('-h, --help', 'show help for a command and end')
    .enablePositionalOptions()
    .showSuggestionAfterError()
    .showHelpAfterError("See 'manyfold --help'.")
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void context.stdout.write(text),
      writeErr: (text) => void context.stderr.write(text),
    })
    .addHelpText('after', EXAMPLES);
  addServeCommand(program, context, finish);
  addPullCommand(program, context, finish);
  addChatCommand(program, context, finish);
  addAdaptersCommand(program, context, finish);
  addBenchCommand(program, context, finish);
  addConfigCommand(program, context, finish);
  addDoctorCommand(program, context, finish);
  return program;
}

/** A command whose arguments are read by src/config: commander only finds it and shows its help. */
function addConfigured(parent: Command, name: string, keys?: readonly OptionKey[]): Command {
  return parent
    .command(name)
    .allowUnknownOption()
    .allowExcessArguments()
    .option('--config <FILE>', 'YAML file of options (Env: MANYFOLD_CONFIG)')
    .addHelpText('after', () => `\n${describeOptions(keys)}\n`);
}

/** The arguments as given, with `--config` put back for src/config. */
function argumentsOf(command: Command): string[] {
  const { config } = command.opts<{ config?: string }>();
  return config === undefined ? command.args : ['--config', config, ...command.args];
}

function addServeCommand(program: Command, context: CliContext, finish: Finish): void {
  addConfigured(program, 'serve')
    .usage('[PATH_OR_ID] [options]')
    .description(
      'Loads the model and its adapters and answers the OpenAI API until it is told to stop (SIGTERM, Ctrl-C).',
    )
    .action(async (_options, command: Command) => {
      finish(await context.serve(loadConfig(argumentsOf(command), context.env, context.readFile)));
    });
}

function addPullCommand(program: Command, context: CliContext, finish: Finish): void {
  addConfigured(program, 'pull', PULL_OPTIONS)
    .usage('[PATH_OR_ID] [options]')
    .description('Downloads a model into the cache, goes on where an earlier try broke off, and prints its path.')
    .action(async (_options, command: Command) => {
      const config = loadConfig(argumentsOf(command), context.env, context.readFile, { flags: PULL_OPTIONS });
      finish(await pull(config.model, context));
    });
}

function addDoctorCommand(program: Command, { stdout }: CliContext, finish: Finish): void {
  program
    .command('doctor')
    .description(
      'Says what this machine and this build offer (instruction sets, huge pages, GPU) and what serve would use.',
    )
    .action(() => {
      for (const line of doctorReport(readMachine(loadNative().info()))) stdout.write(`${line}\n`);
      finish(EXIT.ok);
    });
}

function addConfigCommand(program: Command, context: CliContext, finish: Finish): void {
  const config = program.command('config').description('Shows or checks the configuration that serve would run with.');
  addConfigured(config, 'print')
    .usage('[--origins] [options of serve]')
    .description('Prints the configuration in force as YAML, which --config reads back. Secrets are hidden.')
    .option('--origins', 'say behind each line which flag, variable or file it comes from')
    .action((options: { origins?: boolean }, command: Command) => {
      const resolved = loadConfig(argumentsOf(command), context.env, context.readFile);
      finish(showConfig(resolved, { origins: options.origins === true }, context));
    });
  addConfigured(config, 'check')
    .usage('[options of serve]')
    .description('Checks every option, and that the files and folders that they name exist. Loads nothing.')
    .action((_options, command: Command) => {
      finish(checkConfig(loadConfig(argumentsOf(command), context.env, context.readFile), context));
    });
}
