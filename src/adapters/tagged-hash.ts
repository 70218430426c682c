/**
 * SHA-256 over parts that cannot run into one another: each part is its tag and its length before its bytes, so that
 * no choice of contents makes two different lists of parts equal. Adapter versions and KV page keys are made with it.
 */
import { createHash } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';

/** Bytes hashed before the event loop gets a turn; about half a millisecond. */
const SLICE_BYTES = 1 << 20;

export class TaggedHash {
  readonly #hash = createHash('sha256');
  readonly #lengths = new DataView(new ArrayBuffer(12));

  part(tag: string, value: string | Uint8Array): this {
    const bytes = typeof value === 'string' ? Buffer.from(value, 'utf8') : value;
    this.#begin(tag, bytes.byteLength);
    this.#hash.update(bytes);
    return this;
  }

  /** As {@link part}, for large values: gives the event loop a turn between slices. */
  async largePart(tag: string, bytes: Uint8Array): Promise<void> {
    this.#begin(tag, bytes.byteLength);
    for (let at = 0; at < bytes.byteLength; at += SLICE_BYTES) {
      this.#hash.update(bytes.subarray(at, at + SLICE_BYTES));
      await nextTurn();
    }
  }

  /** The 32 bytes. Nothing can be added afterwards. */
  digest(): Buffer {
    return this.#hash.digest();
  }

  #begin(tag: string, byteLength: number): void {
    const tagBytes = Buffer.from(tag, 'utf8');
    this.#lengths.setUint32(0, tagBytes.byteLength, true);
    this.#lengths.setBigUint64(4, BigInt(byteLength), true);
    this.#hash.update(new Uint8Array(this.#lengths.buffer)).update(tagBytes);
  }
}
