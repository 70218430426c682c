/** What chat and completions have in common: run the command, then stream the events or fold them. */
import { toPlainError } from '../../core/errors.js';
import type { GenerateCommand } from '../../service/commands.js';
import type { Generation } from '../../service/events.js';
import type { AppContext, RouteDeps } from '../context.js';
import { errorFrame } from '../errors.js';
import type { AnswerOptions } from '../schemas/sampling.js';
import { eventStream, SSE_HEADERS } from '../sse.js';

export interface Encoder {
  frames(generation: Generation, options: AnswerOptions): AsyncGenerator<string>;
  body(generation: Generation, options: AnswerOptions): Promise<object | undefined>;
}

const KEEP_ALIVE_MS = 15_000;
/** The client closed the connection before the answer; nobody reads it, the log does. */
const CLIENT_CLOSED_REQUEST = 499;

export async function answerGeneration(
  c: AppContext,
  deps: RouteDeps,
  command: GenerateCommand,
  options: AnswerOptions,
  encoder: Encoder,
): Promise<Response> {
  const record = c.get('record');
  const gone = new AbortController();
  const signal = AbortSignal.any([c.req.raw.signal, gone.signal]);
  const generation = await deps.service.generate(command, { signal, record });
  if (!options.stream) {
    const body = await encoder.body(generation, options);
    if (body !== undefined) return c.json(body);
    return new Response(null, { status: CLIENT_CLOSED_REQUEST });
  }
  c.set('streaming', true);
  const frames = encoder.frames(generation, options);
  const stream = eventStream(frames, {
    keepAliveMs: deps.options.keepAliveMs ?? KEEP_ALIVE_MS,
    onGone: () => gone.abort(),
    onEnd: (error) => {
      if (error !== undefined) deps.telemetry.logger.error({ requestId: record.id, err: error }, 'a stream broke');
      record.finish(200);
    },
    errorFrame: (error) => {
      const plain = toPlainError(error);
      record.error(plain.code);
      return errorFrame(plain);
    },
  });
  return c.body(stream, 200, { ...SSE_HEADERS });
}
