/** Runs in a worker thread: makes an engine of its own and steps it for ever, telling after the first step. */
import { parentPort, workerData } from 'node:worker_threads';
import type { LoadOptions } from '../binding-types.js';
import { loadNative } from '../load-binding.js';
import { tinyPlan } from './tiny-engine.js';

function isTask(value: unknown): value is { options: LoadOptions; rows: number; steps: number } {
  return typeof value === 'object' && value !== null && 'options' in value && 'rows' in value && 'steps' in value;
}

const task: unknown = workerData;
if (!isTask(task)) throw new Error('expected options, rows and steps');
const engine = await loadNative().createEngine(task.options);
parentPort?.postMessage('loaded');
for (let i = 0; i < task.steps; i += 1) {
  const result = await engine.step(tinyPlan(task.rows));
  parentPort?.postMessage([...result.tokens]);
}
