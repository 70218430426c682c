/**
 * How downloads show what they do: one moving line on a terminal, a plain line now and then elsewhere. Everything that
 * downloads takes a {@link ProgressReporter}; the command line makes one for its stream.
 */
import type { Clock } from '../core/clock.js';

/** Shows one transfer at a time. */
export interface ProgressReporter {
  /** A transfer begins; `total` is undefined when nobody knows it, `done` is what an earlier run already has. */
  start(transfer: { readonly label: string; readonly total: number | undefined; readonly done: number }): void;
  /** So many bytes of it are here now; fewer than before when it had to begin again. */
  update(done: number): void;
  /** A line of its own: a retry, a choice that was made. */
  note(line: string): void;
  /** The transfer ended, well or not. */
  finish(): void;
}

export interface ProgressStream {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
}

/** Shows nothing. */
export const silentProgress: ProgressReporter = {
  start: () => undefined,
  update: () => undefined,
  note: () => undefined,
  finish: () => undefined,
};

export function createProgress(stream: ProgressStream, clock: Clock): ProgressReporter {
  return new StreamProgress(stream, clock);
}

const TERMINAL_EVERY_MS = 100;
const PLAIN_EVERY_MS = 5000;
/** The rate is that of about so long a time before now. */
const RATE_WINDOW_MS = 5000;
const DEFAULT_COLUMNS = 80;

class StreamProgress implements ProgressReporter {
  private label = '';
  private total: number | undefined;
  private done = 0;
  private firstMs = 0;
  private firstDone = 0;
  private shownMs = 0;
  private active = false;
  /** (time, bytes) of the last few seconds, oldest first. */
  private samples: (readonly [number, number])[] = [];

  constructor(
    private readonly stream: ProgressStream,
    private readonly clock: Clock,
  ) {}

  start(transfer: { label: string; total: number | undefined; done: number }): void {
    this.label = transfer.label;
    this.total = transfer.total;
    this.done = transfer.done;
    this.firstMs = this.clock.nowMs();
    this.firstDone = transfer.done;
    this.shownMs = this.firstMs;
    this.samples = [[this.firstMs, transfer.done]];
    this.active = true;
    this.show();
  }

  update(done: number): void {
    const now = this.clock.nowMs();
    if (done < this.done) {
      this.firstMs = now;
      this.firstDone = done;
      this.samples = [];
    }
    this.done = done;
    const every = this.stream.isTTY === true ? TERMINAL_EVERY_MS : PLAIN_EVERY_MS;
    if (now - this.shownMs < every) return;
    this.shownMs = now;
    this.samples.push([now, done]);
    while (this.samples.length > 2 && now - (this.samples[0]?.[0] ?? now) > RATE_WINDOW_MS) this.samples.shift();
    this.show();
  }

  note(line: string): void {
    const moving = this.active && this.stream.isTTY === true;
    this.stream.write(`${moving ? '\r\u001b[K' : ''}${line}\n`);
    if (moving) this.show();
  }

  finish(): void {
    if (!this.active) return;
    // The last line tells the mean rate of this run.
    this.samples = [
      [this.firstMs, this.firstDone],
      [this.clock.nowMs(), this.done],
    ];
    this.show();
    this.active = false;
    if (this.stream.isTTY === true) this.stream.write('\n');
  }

  private show(): void {
    const line = this.line();
    if (this.stream.isTTY !== true) {
      this.stream.write(`${line}\n`);
      return;
    }
    // A line that wraps could not be written over.
    const columns = this.stream.columns ?? DEFAULT_COLUMNS;
    this.stream.write(`\r${line.slice(0, columns - 1)}\u001b[K`);
  }

  private line(): string {
    const parts = [
      this.total === undefined ? formatBytes(this.done) : `${formatBytes(this.done)} of ${formatBytes(this.total)}`,
    ];
    if (this.total !== undefined && this.total > 0) parts.push(`${Math.floor((100 * this.done) / this.total)}%`);
    const rate = this.rate();
    if (rate !== undefined) {
      parts.push(`${formatBytes(rate)}/s`);
      const left = this.total === undefined ? 0 : this.total - this.done;
      if (left > 0) parts.push(`${formatDuration(left / rate)} left`);
    }
    return `${this.label}: ${parts.join(', ')}`;
  }

  /** Bytes a second; undefined before there is anything to tell. */
  private rate(): number | undefined {
    const [first, last] = [this.samples[0], this.samples.at(-1)];
    if (first === undefined || last === undefined || last[0] <= first[0] || last[1] <= first[1]) return undefined;
    return (1000 * (last[1] - first[1])) / (last[0] - first[0]);
  }
}

/** 98.4 MB: decimal units, as file listings of hubs have them. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** 45 s, 3 min 05 s, 2 h 10 min. */
export function formatDuration(seconds: number): string {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  const pad = (value: number): string => String(value).padStart(2, '0');
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${pad(Math.floor((whole % 3600) / 60))} min`;
}
