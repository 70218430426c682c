/**
 * Server-sent events: frames → bytes, one frame for each that the client takes (its slowness reaches the generator),
 * a comment when the stream has been silent, and the news that the client went away. Called by the generation route.
 */
const KEEP_ALIVE = new TextEncoder().encode(': keep-alive\n\n');

export const SSE_HEADERS: Readonly<Record<string, string>> = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-cache, no-transform',
  'x-accel-buffering': 'no',
};

export interface EventStreamOptions {
  readonly keepAliveMs: number;
  /** The client went away; the frames are then read to their end, unseen. */
  readonly onGone: () => void;
  /** The frames have ended, after an error with the error; called once. */
  readonly onEnd: (error: unknown) => void;
  /** The last frame for an error that the frames did not handle. */
  readonly errorFrame: (error: unknown) => string;
}

export function eventStream(frames: AsyncIterator<string>, options: EventStreamOptions): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let silent = false;
  let gone = false;
  let timer: NodeJS.Timeout | undefined;
  const end = (error: unknown): void => {
    clearInterval(timer);
    options.onEnd(error);
  };
  const drain = async (): Promise<void> => {
    try {
      while ((await frames.next()).done !== true);
      end(undefined);
    } catch (error) {
      end(error);
    }
  };
  return new ReadableStream<Uint8Array>({
    start: (controller) => {
      // Two ticks a period, so that no silence is longer than the period.
      timer = setInterval(() => {
        if (silent && (controller.desiredSize ?? 0) > 0) controller.enqueue(KEEP_ALIVE);
        silent = true;
      }, options.keepAliveMs / 2);
    },
    pull: async (controller) => {
      try {
        const next = await frames.next();
        if (gone) return;
        silent = false;
        if (next.done !== true) return controller.enqueue(encoder.encode(next.value));
        end(undefined);
      } catch (error) {
        if (gone) return;
        controller.enqueue(encoder.encode(options.errorFrame(error)));
        end(error);
      }
      controller.close();
    },
    cancel: () => {
      gone = true;
      clearInterval(timer);
      options.onGone();
      void drain();
    },
  });
}
