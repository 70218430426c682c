/**
 * Server-sent events, as WHATWG's HTML standard defines the stream ("9.2.6 Interpreting an event stream"): bytes in, in
 * whatever pieces the network made of them, events out. Line ends may be LF, CR LF or CR; a chunk may end anywhere, also
 * between CR and LF or inside of a character.
 */
export interface ServerSentEvent {
  /** `message` when the server named none. */
  readonly type: string;
  readonly data: string;
}

const LF = 0x0a;
const CR = 0x0d;

/** One event may not be larger: a server that never ends a line must not fill the memory. */
export const MAX_EVENT_BYTES = 1024 * 1024;

export class EventTooLarge extends Error {}

export class SseParser {
  readonly #onEvent: (event: ServerSentEvent) => void;
  /** Bytes of a line whose end has not come yet, as they came: joined once, when it has. */
  #rest: Buffer[] = [];
  #restBytes = 0;
  #skipLf = false;
  #atStart = true;
  #type = '';
  #data: string | undefined;

  constructor(onEvent: (event: ServerSentEvent) => void) {
    this.#onEvent = onEvent;
  }

  /** Whether the stream broke off inside of an event. */
  get isInsideEvent(): boolean {
    return this.#restBytes > 0 || this.#data !== undefined;
  }

  /** Throws {@link EventTooLarge}. */
  push(chunk: Buffer): void {
    let start = 0;
    if (this.#skipLf && chunk.length > 0) {
      if (chunk[0] === LF) start = 1;
      this.#skipLf = false;
    }
    for (let end = nextLineEnd(chunk, start); end >= 0; end = nextLineEnd(chunk, start)) {
      this.#line(this.#take(chunk.subarray(start, end)));
      start = end + 1;
      if (chunk[end] !== CR) continue;
      if (start === chunk.length) this.#skipLf = true;
      else if (chunk[start] === LF) start++;
    }
    if (start < chunk.length) {
      // A copy: the socket may use its buffer again.
      this.#rest.push(Buffer.from(chunk.subarray(start)));
      this.#restBytes += chunk.length - start;
    }
    if (this.#restBytes + (this.#data?.length ?? 0) > MAX_EVENT_BYTES) {
      throw new EventTooLarge(`an event is larger than ${MAX_EVENT_BYTES} bytes`);
    }
  }

  #take(line: Buffer): string {
    let bytes = line;
    if (this.#restBytes > 0) {
      bytes = Buffer.concat([...this.#rest, line]);
      this.#rest = [];
      this.#restBytes = 0;
    }
    if (this.#atStart) {
      this.#atStart = false;
      if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) bytes = bytes.subarray(3);
    }
    return bytes.toString('utf8');
  }

  #line(line: string): void {
    if (line === '') return this.#dispatch();
    const colon = line.indexOf(':');
    if (colon === 0) return; // A comment, which servers send to keep the connection open.
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1);
    if (name === 'data') this.#data = this.#data === undefined ? value : `${this.#data}\n${value}`;
    else if (name === 'event') this.#type = value;
  }

  #dispatch(): void {
    const data = this.#data;
    const type = this.#type === '' ? 'message' : this.#type;
    this.#data = undefined;
    this.#type = '';
    if (data !== undefined) this.#onEvent({ type, data });
  }
}

function nextLineEnd(chunk: Buffer, from: number): number {
  const lf = chunk.indexOf(LF, from);
  const cr = chunk.indexOf(CR, from);
  if (lf < 0) return cr;
  return cr < 0 ? lf : Math.min(lf, cr);
}
