/**
 * `manyfold chat`: talks to a running server from the terminal. With a pipe in place of a terminal it reads messages
 * from the lines of stdin and prints nothing but the answers. Called by program.ts.
 */
import { createInterface } from 'node:readline';
import type { Interface } from 'node:readline';
import { InvalidArgumentError } from 'commander';
import type { Command } from 'commander';
import { loadConfig } from '../config/load-config.js';
import type { ServerSettings } from '../config/resolved-config.js';
import { Secret } from '../config/secret.js';
import { didYouMean } from '../config/suggest.js';
import { ManyfoldError } from '../core/errors.js';
import { listModels, streamChat } from './chat-client.js';
import type { ChatMessage, ChatServer } from './chat-client.js';
import { ChatLines } from './chat-input.js';
import type { ChatInput } from './chat-input.js';
import { EXIT } from './context.js';
import type { CliContext } from './context.js';

const COMMANDS_HELP = `/adapter NAME   go on with another adapter (or the base, by its name)
/adapter        list the names
/reset          forget the conversation
/exit           end (also Ctrl-D)
A line that ends with \\ goes on in the next; a block between two lines of """ is one message.
Ctrl-C stops an answer.
`;

interface ChatOptions {
  readonly url?: string;
  readonly adapter?: string;
  readonly apiKey?: string;
  readonly system?: string;
  readonly maxTokens?: number;
  readonly temperature?: number;
}

function numberIn(min: number, max: number, { whole }: { whole: boolean }): (text: string) => number {
  return (text) => {
    const value = text.trim() === '' ? NaN : Number(text);
    if (value >= min && value <= max && (!whole || Number.isInteger(value))) return value;
    throw new InvalidArgumentError(`Give a ${whole ? 'whole ' : ''}number of ${min} to ${max}.`);
  };
}

export function addChatCommand(program: Command, context: CliContext, finish: (exitCode: number) => void): void {
  program
    .command('chat')
    .description('Talks to a running server from this terminal.')
    .option('--url <URL>', 'the server; default: the --host and --port of the configuration, http://127.0.0.1:8000')
    .option('--adapter <NAME>', 'which adapter answers; default: the base model')
    .option('--api-key <KEY>', 'key of the server; default: the first one of MANYFOLD_API_KEY or --config')
    .option('--system <TEXT>', 'instructions that stand before the conversation')
    .option('--max-tokens <N>', 'longest answer in tokens', numberIn(1, 2 ** 24, { whole: true }))
    .option('--temperature <T>', 'randomness; 0 always takes the most likely token', numberIn(0, 2, { whole: false }))
    .option('--config <FILE>', 'YAML file of options (Env: MANYFOLD_CONFIG)')
    .addHelpText('after', `\nCommands while chatting:\n${COMMANDS_HELP}`)
    .addHelpText(
      'after',
      "Examples:\n  manyfold chat --adapter support\n  echo 'Hello' | manyfold chat --temperature 0\n",
    )
    .action(async (options: ChatOptions & { config?: string }) => {
      const argv = options.config === undefined ? [] : ['--config', options.config];
      const { server } = loadConfig(argv, context.env, context.readFile);
      finish(await new ChatSession(context, serverOf(options, server), options).run());
    });
}

function serverOf({ url, apiKey }: ChatOptions, { host, port, apiKeys }: ServerSettings): ChatServer {
  const anyAddress = host === '0.0.0.0' || host === '::';
  const reachable = anyAddress ? '127.0.0.1' : host.includes(':') ? `[${host}]` : host;
  const address = url ?? `http://${reachable}:${port}`;
  if (!URL.canParse(address)) {
    throw new ManyfoldError(
      'invalid_config',
      `--url expects an address such as http://127.0.0.1:8000, not '${address}'.`,
    );
  }
  return { url: address.replace(/\/+$/, ''), apiKey: apiKey === undefined ? apiKeys[0] : new Secret(apiKey) };
}

/** Keeps a model's text from moving the cursor or the window title: control characters other than \n and \t go. */
function printable(text: string): string {
  // eslint-disable-next-line no-control-regex -- they are what is looked for
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, '');
}

/** One conversation. `run` resolves to the exit code when the input ends or the user leaves. */
class ChatSession {
  readonly #context: CliContext;
  readonly #server: ChatServer;
  readonly #options: ChatOptions;
  readonly #terminal: boolean;
  readonly #lines = new ChatLines();
  #models: readonly string[] = [];
  #model = '';
  #messages: ChatMessage[] = [];
  /** Set while an answer runs. */
  #answer: AbortController | undefined;

  constructor(context: CliContext, server: ChatServer, options: ChatOptions) {
    this.#context = context;
    this.#server = server;
    this.#options = options;
    this.#terminal = context.stdin.isTTY === true && context.stdout.isTTY === true;
    this.#reset();
  }

  async run(): Promise<number> {
    this.#models = await listModels(this.#server);
    this.#model = this.#models[0] ?? '';
    if (this.#options.adapter !== undefined) this.#choose(this.#options.adapter);
    this.#say(`${this.#server.url}, ${this.#model}. /help lists the commands.\n`);
    const reader = createInterface({
      input: this.#context.stdin,
      ...(this.#terminal ? { output: this.#context.stdout } : {}),
      terminal: this.#terminal,
    });
    reader.on('SIGINT', () => this.#interrupt(reader));
    try {
      return await this.#readLines(reader);
    } finally {
      reader.close();
    }
  }

  async #readLines(reader: Interface): Promise<number> {
    this.#prompt(reader, '> ');
    for await (const line of reader) {
      const input = this.#lines.push(line);
      if (input.type === 'exit') return EXIT.ok;
      if (!(await this.#handle(input))) return EXIT.failed;
      this.#prompt(reader, input.type === 'incomplete' ? '. ' : '> ');
    }
    return (await this.#handle(this.#lines.end())) ? EXIT.ok : EXIT.failed;
  }

  /** False when a script (no terminal) must not go on. */
  async #handle(input: ChatInput): Promise<boolean> {
    try {
      await this.#act(input);
      return true;
    } catch (error) {
      if (!(error instanceof ManyfoldError)) throw error;
      this.#context.stderr.write(`${printable(error.message)}\n`);
      return this.#terminal;
    }
  }

  async #act(input: ChatInput): Promise<void> {
    switch (input.type) {
      case 'message':
        return this.#ask(input.text);
      case 'adapter':
        return this.#switchAdapter(input.name);
      case 'reset':
        this.#reset();
        return this.#say('The conversation is forgotten.\n');
      case 'help':
        return this.#say(COMMANDS_HELP);
      case 'unknown':
        throw new ManyfoldError('invalid_request', input.reason);
      case 'exit':
      case 'incomplete':
      case 'empty':
        return undefined;
    }
  }

  async #ask(text: string): Promise<void> {
    const { stdout, clock } = this.#context;
    this.#messages.push({ role: 'user', content: text });
    this.#answer = new AbortController();
    const started = clock.nowMs();
    let answer = '';
    try {
      for await (const event of streamChat(this.#server, this.#request(this.#answer.signal))) {
        if (event.type === 'text') {
          answer += event.text;
          stdout.write(printable(event.text));
        } else {
          stdout.write('\n');
          this.#say(
            `[${event.tokens ?? '?'} tokens, ${((clock.nowMs() - started) / 1000).toFixed(1)} s, ${event.reason}]\n`,
          );
        }
      }
      this.#messages.push({ role: 'assistant', content: answer });
    } catch (error) {
      stdout.write('\n');
      // The question is asked again in full, or not at all: half an exchange would confuse the next one.
      this.#messages.pop();
      if (!this.#answer.signal.aborted) throw error instanceof ManyfoldError ? error : brokenOff(error);
      this.#say('[stopped; the exchange is forgotten]\n');
    } finally {
      this.#answer = undefined;
    }
  }

  #request(signal: AbortSignal): Parameters<typeof streamChat>[1] {
    const { maxTokens, temperature } = this.#options;
    return { model: this.#model, messages: [...this.#messages], maxTokens, temperature, signal };
  }

  async #switchAdapter(name: string | undefined): Promise<void> {
    this.#models = await listModels(this.#server);
    if (name === undefined) {
      const marked = this.#models.map((model) => `${model === this.#model ? '*' : ' '} ${printable(model)}\n`);
      this.#context.stdout.write(marked.join(''));
      return;
    }
    this.#choose(name);
    this.#say(`${this.#model} answers from now on; the conversation goes on.\n`);
  }

  #choose(name: string): void {
    if (!this.#models.includes(name)) {
      const list = this.#models.map(printable).join(', ');
      throw new ManyfoldError(
        'model_not_found',
        `The server has no adapter '${name}'.${didYouMean(name, this.#models)} It has: ${list}`,
      );
    }
    this.#model = name;
  }

  #reset(): void {
    const { system } = this.#options;
    this.#messages = system === undefined ? [] : [{ role: 'system', content: system }];
  }

  /** Ctrl-C stops the answer, or drops a half-typed message, or leaves. */
  #interrupt(reader: Interface): void {
    if (this.#answer !== undefined) return this.#answer.abort();
    if (reader.line === '' && this.#lines.isEmpty) return reader.close();
    this.#lines.clear();
    this.#context.stdout.write('\n');
    reader.write(null, { ctrl: true, name: 'u' });
    this.#prompt(reader, '> ');
  }

  #prompt(reader: Interface, text: string): void {
    if (!this.#terminal) return;
    reader.setPrompt(text);
    reader.prompt();
  }

  /** Remarks for people; scripts get answers only. */
  #say(text: string): void {
    if (this.#terminal) this.#context.stdout.write(text);
  }
}

function brokenOff(cause: unknown): ManyfoldError {
  return new ManyfoldError('engine_failure', "The connection broke off. Look at the server's log, then ask again.", {
    cause,
  });
}
