/** Bits in bytes, the least significant bit first. The stream of a packed ComPEFT adapter; called by rice.ts. */

const FIRST_BYTES = 1 << 12;

export class BitWriter {
  #bytes = new Uint8Array(FIRST_BYTES);
  #bits = 0;

  get bitLength(): number {
    return this.#bits;
  }

  /** The low `count` bits of `value`, count 0 to 31. */
  write(value: number, count: number): void {
    this.#reserve(count);
    for (let i = 0; i < count; i += 1) {
      if (((value >>> i) & 1) !== 0) this.#set();
      this.#bits += 1;
    }
  }

  /** `count` one bits and a zero. */
  writeUnary(count: number): void {
    this.#reserve(count + 1);
    for (let i = 0; i < count; i += 1) {
      this.#set();
      this.#bits += 1;
    }
    this.#bits += 1;
  }

  /** Everything written, with zero bits up to the end of the last byte. */
  finish(): Uint8Array {
    return this.#bytes.slice(0, Math.ceil(this.#bits / 8));
  }

  #set(): void {
    const at = Math.floor(this.#bits / 8);
    this.#bytes[at] = (this.#bytes[at] as number) | (1 << (this.#bits % 8));
  }

  #reserve(count: number): void {
    const needed = Math.ceil((this.#bits + count) / 8);
    if (needed <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(needed, 2 * this.#bytes.length));
    grown.set(this.#bytes);
    this.#bytes = grown;
  }
}

/** Reads give -1 where the stream ends too early; nothing is ever read past it. */
export class BitReader {
  #at = 0;
  readonly #end: number;

  constructor(private readonly bytes: Uint8Array) {
    this.#end = 8 * bytes.length;
  }

  get bitsLeft(): number {
    return this.#end - this.#at;
  }

  /** The next `count` bits as a number, count 0 to 31. */
  read(count: number): number {
    if (count > this.bitsLeft) return -1;
    let value = 0;
    for (let i = 0; i < count; i += 1) value |= this.#next() << i;
    return value;
  }

  /** How many one bits stand before the next zero; -1 also when they are more than `most`. */
  readUnary(most: number): number {
    for (let count = 0; count <= most && this.bitsLeft > 0; count += 1) {
      if (this.#next() === 0) return count;
    }
    return -1;
  }

  #next(): number {
    const bit = ((this.bytes[Math.floor(this.#at / 8)] as number) >>> (this.#at % 8)) & 1;
    this.#at += 1;
    return bit;
  }
}
