/**
 * Golomb-Rice codes (Golomb's code with a parameter 2^b) of ascending positions: each gap to the position before is its
 * quotient by 2^b in unary and b low bits, and then, for signed entries, a sign bit. The gaps of a random sparse vector are
 * geometric, and the code is within 2 % of their entropy (ComPEFT, arXiv 2311.13171, section 2). Called by payload.ts.
 */
import type { BitReader, BitWriter } from './bitstream.js';

export const MAX_PARAMETER = 30;

/** Ascending, unique positions of a flat row-major tensor, each with its sign. */
export interface SignedPositions {
  readonly positions: Uint32Array;
  /** 1 where the value is negative; absent for a set without signs. */
  readonly negative?: Uint8Array;
}

/** Fewest bits that one position can take. */
export function leastBits(parameter: number, signed: boolean): number {
  return 1 + parameter + (signed ? 1 : 0);
}

/** The parameter with which these positions take the fewest bits; the smaller one of two that are as good. */
export function bestParameter(positions: Uint32Array): number {
  let best = { parameter: 0, bits: Infinity };
  for (let parameter = 0; parameter <= MAX_PARAMETER; parameter += 1) {
    const bits = unsignedBits(positions, parameter);
    // The cost falls to its minimum and then rises by a bit an entry.
    if (bits >= best.bits) break;
    best = { parameter, bits };
  }
  return best.parameter;
}

function unsignedBits(positions: Uint32Array, parameter: number): number {
  let bits = positions.length * (1 + parameter);
  let next = 0;
  for (const position of positions) {
    bits += (position - next) >>> parameter;
    next = position + 1;
  }
  return bits;
}

export function writePositions(writer: BitWriter, { positions, negative }: SignedPositions, parameter: number): void {
  let next = 0;
  for (let i = 0; i < positions.length; i += 1) {
    const position = positions[i] as number;
    const gap = position - next;
    writer.writeUnary(gap >>> parameter);
    writer.write(gap, parameter);
    if (negative !== undefined) writer.write(negative[i] as number, 1);
    next = position + 1;
  }
}

export interface CodedPositions {
  readonly count: number;
  readonly parameter: number;
  readonly signed: boolean;
  /** Positions are below it; at most 2^32 - 1. */
  readonly size: number;
}

/** What is wrong with the stream, or the positions. The caller has checked that `count` fits into the stream. */
export function readPositions(reader: BitReader, coded: CodedPositions): SignedPositions | string {
  const { count, parameter, signed, size } = coded;
  const positions = new Uint32Array(count);
  const negative = signed ? new Uint8Array(count) : undefined;
  let next = 0;
  for (let i = 0; i < count; i += 1) {
    const most = Math.floor((size - 1 - next) / 2 ** parameter);
    const quotient = next < size ? reader.readUnary(most) : -1;
    const low = quotient < 0 ? -1 : reader.read(parameter);
    const sign = signed && low >= 0 ? reader.read(1) : low;
    const position = next + quotient * 2 ** parameter + low;
    if (low < 0 || sign < 0 || position >= size) {
      return `position ${i} of ${count} lies behind the last of ${size} values, or the stream ends before it`;
    }
    positions[i] = position;
    if (negative !== undefined) negative[i] = sign;
    next = position + 1;
  }
  return negative === undefined ? { positions } : { positions, negative };
}
