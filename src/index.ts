/** The library's entry: what a program that embeds Manyfold needs. Re-exports only. */
export { compose } from './cli/compose.js';
export type { ComposeOptions, Composition } from './cli/compose.js';
export { loadConfig } from './config/load-config.js';
export type { ResolvedConfig } from './config/resolved-config.js';
export { systemClock } from './core/clock.js';
export type { Clock } from './core/clock.js';
export { ManyfoldError } from './core/errors.js';
export type { ErrorCode } from './core/errors.js';
export { parseAdapterName, parseAdapterVersion, sequenceId } from './core/ids.js';
export type { AdapterName, AdapterVersion, SequenceId } from './core/ids.js';
export type { SamplingParams } from './core/sampling.js';
export type { Term, TermSet } from './core/terms.js';
export { createInProcessEngine } from './engine/in-process-engine.js';
export type { EngineEvent, EngineInfo, EnginePort, EngineRequest, EngineStats } from './engine/port.js';
export { listen } from './server/listen.js';
export type { RunningServer } from './server/listen.js';
export { createLogger } from './telemetry/log.js';
