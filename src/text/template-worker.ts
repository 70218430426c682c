/**
 * The thread that renders chat templates, started by chat-template.ts: it holds nothing but compiled templates, so it
 * can be ended at any moment, and a template that runs wild takes only this thread with it.
 */
import { parentPort } from 'node:worker_threads';
import { compileTemplate, renderProgram, type Program } from './jinja-python.js';
import type { JsonValue } from './json-value.js';

export interface RenderJob {
  readonly id: number;
  readonly template: string;
  readonly variables: Readonly<Record<string, JsonValue>>;
  /** What `strftime_now` tells. */
  readonly unixSeconds: number;
  readonly charsMax: number;
}

export type RenderReply =
  | { readonly kind: 'ready' }
  | { readonly kind: 'text'; readonly id: number; readonly text: string }
  | { readonly kind: 'failed'; readonly id: number; readonly message: string }
  | { readonly kind: 'too-long'; readonly id: number; readonly chars: number };

const PROGRAMS_MAX = 16;
const programs = new Map<string, Program>();

/** Compiled templates, the last few used. */
function programOf(template: string): Program {
  const program = programs.get(template) ?? compileTemplate(template);
  programs.delete(template);
  programs.set(template, program);
  for (const oldest of programs.keys()) {
    if (programs.size <= PROGRAMS_MAX) break;
    programs.delete(oldest);
  }
  return program;
}

function render(job: RenderJob): RenderReply {
  try {
    const text = renderProgram(programOf(job.template), job.variables, new Date(job.unixSeconds * 1000));
    if (text.length > job.charsMax) return { kind: 'too-long', id: job.id, chars: text.length };
    return { kind: 'text', id: job.id, text };
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return { kind: 'failed', id: job.id, message: message.slice(0, 1000) };
  }
}

parentPort?.on('message', (job: RenderJob) => parentPort?.postMessage(render(job)));
parentPort?.postMessage({ kind: 'ready' } satisfies RenderReply);
