/**
 * Turns the lines of a terminal chat into messages and commands. Pure; called by chat.ts.
 * A line that ends with a backslash goes on in the next; a block between two lines of """ is one message.
 */
import { didYouMean } from '../config/suggest.js';

export type ChatInput =
  | { readonly type: 'message'; readonly text: string }
  /** A name, or undefined to list them. */
  | { readonly type: 'adapter'; readonly name: string | undefined }
  | { readonly type: 'reset' }
  | { readonly type: 'help' }
  | { readonly type: 'exit' }
  | { readonly type: 'unknown'; readonly reason: string }
  /** More lines belong to it. */
  | { readonly type: 'incomplete' }
  | { readonly type: 'empty' };

const COMMANDS = ['/adapter', '/reset', '/help', '/exit'];
const FENCE = '"""';

export class ChatLines {
  #pending: string[] = [];
  #fenced = false;

  push(line: string): ChatInput {
    if (line.trim() === FENCE) return this.#toggleFence();
    if (this.#fenced) return this.#hold(line);
    if (line.endsWith('\\')) return this.#hold(line.slice(0, -1));
    if (this.#pending.length === 0 && line.startsWith('/')) return parseCommand(line);
    this.#pending.push(line);
    return this.#take();
  }

  /** Whether no line is held. */
  get isEmpty(): boolean {
    return this.#pending.length === 0 && !this.#fenced;
  }

  /** What is still held when the input ends. */
  end(): ChatInput {
    return this.#take();
  }

  /** Forgets held lines (Ctrl-C). */
  clear(): void {
    this.#pending = [];
    this.#fenced = false;
  }

  #toggleFence(): ChatInput {
    if (this.#fenced) return this.#take();
    this.#fenced = true;
    return { type: 'incomplete' };
  }

  #hold(line: string): ChatInput {
    this.#pending.push(line);
    return { type: 'incomplete' };
  }

  #take(): ChatInput {
    const text = this.#pending.join('\n');
    this.clear();
    return text.trim() === '' ? { type: 'empty' } : { type: 'message', text };
  }
}

function parseCommand(line: string): ChatInput {
  const [command = '', argument, ...more] = line.trim().split(/\s+/);
  if (more.length > 0) return { type: 'unknown', reason: `${command} takes one word. Type /help for the commands.` };
  switch (command) {
    case '/adapter':
      return { type: 'adapter', name: argument };
    case '/reset':
      return { type: 'reset' };
    case '/help':
      return { type: 'help' };
    case '/exit':
    case '/quit':
      return { type: 'exit' };
    default: {
      const reason = `There is no command ${command}.${didYouMean(command, COMMANDS)} Type /help for all of them.`;
      return { type: 'unknown', reason };
    }
  }
}
