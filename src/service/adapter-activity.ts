/** Which adapter names have requests in flight; the endpoint picker's gauge reads it. */
import type { AdapterSnapshot } from '../telemetry/metrics.js';
import type { EnginePort } from '../engine/port.js';
import type { AdapterDirectory } from './ports.js';

export class AdapterActivity {
  readonly #counts = new Map<string, number>();

  /** One more request names the adapter; the returned function is called once, at its end. */
  enter(name: string): () => void {
    this.#counts.set(name, (this.#counts.get(name) ?? 0) + 1);
    return () => {
      const left = (this.#counts.get(name) ?? 0) - 1;
      if (left > 0) this.#counts.set(name, left);
      else this.#counts.delete(name);
    };
  }

  /** Resident adapters by name, idle ones too; and those that are asked for without being resident. */
  snapshot(engine: EnginePort, adapters: AdapterDirectory, maxLora: number): AdapterSnapshot {
    const resident = new Set(engine.stats().residentAdapters.map((adapter) => adapter.version));
    const running: string[] = [];
    const waiting: string[] = [];
    for (const adapter of adapters.list()) {
      if (resident.has(adapter.version)) running.push(adapter.name);
      else if (this.#counts.has(adapter.name)) waiting.push(adapter.name);
    }
    return { maxLora: Math.max(maxLora, running.length), running, waiting };
  }
}
