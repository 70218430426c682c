/** `manyfold serve`: composes the server, says what it loaded, runs until a signal, ends in order. Called by program.ts. */
import path from 'node:path';
import { humanBytes } from './human-bytes.js';
import type { ResolvedConfig } from '../config/resolved-config.js';
import { systemClock } from '../core/clock.js';
import { listen, type RunningServer } from '../server/listen.js';
import { createLogger } from '../telemetry/log.js';
import { startStatistics } from '../telemetry/statistics.js';
import { compose, type Composition } from './compose.js';
import { EXIT } from './context.js';
import { startTable } from './start-table.js';

const SIGNALS = ['SIGTERM', 'SIGINT'] as const;

/** Resolves to the exit code when the server has ended. `modelPath` is on this machine already. */
export async function serve(config: ResolvedConfig, modelPath: string): Promise<number> {
  const startMs = systemClock.nowMs();
  // Log lines go to standard output, what is for a person to standard error.
  const say = (text: string): void => void process.stderr.write(`${text}\n`);
  const logger = createLogger({ level: config.logging.level });
  say(`Loading ${path.basename(modelPath)}`);
  const progress = progressLines(say);
  const composition = await compose({ config, modelPath, clock: systemClock, logger, onProgress: progress });
  try {
    const server = await listen(composition.app, composition.service.lifecycle, {
      host: config.server.host,
      port: config.server.port,
      requestTimeoutMs: config.server.receiveTimeoutMs,
    });
    const stopStatistics = startStatistics({ engine: () => composition.engine.stats(), logger, clock: systemClock });
    say(startTable(composition, server, (systemClock.nowMs() - startMs) / 1000));
    await untilStopped(server, config.server.shutdownTimeoutMs, say);
    stopStatistics();
  } finally {
    await end(composition);
  }
  return EXIT.ok;
}

/** A line for each quarter of the weights; loading the default model is over before the first. */
function progressLines(say: (text: string) => void): (done: number, total: number) => void {
  let next = 0.25;
  return (done, total) => {
    if (total === 0 || done / total < next || done === total) return;
    say(`  weights: ${humanBytes(done)} of ${humanBytes(total)}`);
    while (next <= done / total) next += 0.25;
  };
}

/** The first signal drains, the second ends at once. */
function untilStopped(server: RunningServer, timeoutMs: number, say: (text: string) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    let signals = 0;
    const onSignal = (signal: NodeJS.Signals): void => {
      signals += 1;
      if (signals === 1)
        say(`${signal}: no new requests; running ones may take ${timeoutMs / 1000} s. Once more to stop at once.`);
      server.drain(timeoutMs).then(() => {
        for (const name of SIGNALS) process.off(name, onSignal);
        resolve();
      }, reject);
    };
    for (const name of SIGNALS) process.on(name, onSignal);
  });
}

async function end(composition: Composition): Promise<void> {
  await composition.close();
}
