/**
 * Zip archives of members that are stored as they are, which is how torch.save writes its files; what is compressed is refused,
 * so nothing can unfold. Names and sizes are checked against the file before anything is read. Archives beyond 4 GiB have
 * their sizes in zip64 records (APPNOTE 4.3.14, 4.3.15, 4.5.3). Used by torch-file.
 */
import type { FileHandle } from 'node:fs/promises';
import path from 'node:path';

import { ManyfoldError } from '../core/errors.js';
import { openRegularFile, readRange } from './regular-file.js';
import { decodeUtf8, quoteName } from './strict-json.js';

export interface StoredZip {
  /** Bytes of each member by its name. */
  readonly sizes: ReadonlyMap<string, number>;
  /**
   * `length` of the member's bytes from `from` on, all of them when nothing is said, in a buffer of their own; undefined when
   * there is no member of this name. The range lies inside of the member.
   */
  read(name: string, from?: number, length?: number): Promise<Uint8Array | undefined>;
  close(): Promise<void>;
}

const END_BYTES = 22;
const MAX_COMMENT_BYTES = 65_535;
const ENTRY_BYTES = 46;
const LOCAL_BYTES = 30;
const END_SIGNATURE = 0x06054b50;
const ENTRY_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
const MAX_DIRECTORY_BYTES = 64 << 20;
const MAX_MEMBERS = 65_534;
/** What stands in a field of 16 or 32 bits whose value is in a zip64 record. */
const [IN_ZIP64_16, IN_ZIP64] = [0xffff, 0xffffffff];
const LOCATOR_BYTES = 20;
const LOCATOR_SIGNATURE = 0x07064b50;
const END64_BYTES = 56;
const END64_SIGNATURE = 0x06064b50;
const ZIP64_FIELD = 0x0001;
/** One buffer cannot hold more. */
const MAX_READ_BYTES = 0xffffffff;

interface Member {
  readonly size: number;
  readonly headerOffset: number;
}

/** Throws 'invalid_adapter'. The caller closes it. */
export async function openStoredZip(filePath: string): Promise<StoredZip> {
  const { handle, size } = await openRegularFile(filePath, 'invalid_adapter');
  const what = path.basename(filePath);
  try {
    return new OpenZip(what, handle, await readDirectory(what, handle, size), size);
  } catch (error) {
    await handle.close();
    throw error;
  }
}

class OpenZip implements StoredZip {
  readonly sizes: ReadonlyMap<string, number>;

  constructor(
    private readonly what: string,
    private readonly handle: FileHandle,
    private readonly members: ReadonlyMap<string, Member>,
    private readonly fileSize: number,
  ) {
    this.sizes = new Map([...members].map(([name, { size }]) => [name, size]));
  }

  async read(name: string, from = 0, wanted?: number): Promise<Uint8Array | undefined> {
    const member = this.members.get(name);
    if (member === undefined) return undefined;
    const length = wanted ?? member.size - from;
    if (from < 0 || length < 0 || from + length > member.size || length > MAX_READ_BYTES) {
      throw damaged(
        this.what,
        `${length} bytes at ${from} of ${quoteName(name)} cannot be read, it has ${member.size}`,
      );
    }
    const local = await readRange(this.handle, member.headerOffset, LOCAL_BYTES);
    const view = viewOf(local);
    if (local.length < LOCAL_BYTES || view.getUint32(0, true) !== LOCAL_SIGNATURE) {
      throw damaged(this.what, `${quoteName(name)} is not where the archive's directory says`);
    }
    const start = member.headerOffset + LOCAL_BYTES + view.getUint16(26, true) + view.getUint16(28, true);
    if (start + member.size > this.fileSize) throw damaged(this.what, `${quoteName(name)} ends after the file`);
    const bytes = await readRange(this.handle, start + from, length);
    if (bytes.length !== length) throw damaged(this.what, `${quoteName(name)} is cut off`);
    return bytes;
  }

  close(): Promise<void> {
    return this.handle.close();
  }
}

async function readDirectory(what: string, handle: FileHandle, size: number): Promise<Map<string, Member>> {
  const tailBytes = Math.min(size, END_BYTES + MAX_COMMENT_BYTES);
  const tail = viewOf(await readRange(handle, size - tailBytes, tailBytes));
  let end = tail.byteLength - END_BYTES;
  while (end >= 0 && tail.getUint32(end, true) !== END_SIGNATURE) end -= 1;
  if (end < 0) throw damaged(what, 'it is no zip archive, or it is cut off');
  const own: Directory = {
    count: tail.getUint16(end + 10, true),
    bytes: tail.getUint32(end + 12, true),
    offset: tail.getUint32(end + 16, true),
  };
  const beyond = own.count === IN_ZIP64_16 || own.bytes === IN_ZIP64 || own.offset === IN_ZIP64;
  const endOffset = size - tailBytes + end;
  const { count, bytes, offset } = beyond ? await readZip64End(what, handle, endOffset) : own;
  if (count > MAX_MEMBERS || bytes > MAX_DIRECTORY_BYTES || offset + bytes > size) {
    throw damaged(what, `its directory (${count} members, ${bytes} bytes at ${offset}) does not fit the file`);
  }
  return parseDirectory(what, await readRange(handle, offset, bytes), count, size);
}

/** Where the directory of members lies. */
interface Directory {
  readonly count: number;
  readonly bytes: number;
  readonly offset: number;
}

/** Of the record that the locator before the end record points at. */
async function readZip64End(what: string, handle: FileHandle, endOffset: number): Promise<Directory> {
  const locatorAt = endOffset - LOCATOR_BYTES;
  const locator = viewOf(await readRange(handle, Math.max(0, locatorAt), LOCATOR_BYTES));
  if (locatorAt < 0 || locator.byteLength < LOCATOR_BYTES || locator.getUint32(0, true) !== LOCATOR_SIGNATURE) {
    throw damaged(what, 'its sizes are said to be in a zip64 record, and nothing says where that is');
  }
  const at = wide(what, locator, 8);
  const record = viewOf(at + END64_BYTES > locatorAt ? new Uint8Array(0) : await readRange(handle, at, END64_BYTES));
  if (record.byteLength < END64_BYTES || record.getUint32(0, true) !== END64_SIGNATURE) {
    throw damaged(what, `it has no zip64 record at ${at}`);
  }
  return { count: wide(what, record, 32), bytes: wide(what, record, 40), offset: wide(what, record, 48) };
}

/** A number of 64 bits. */
function wide(what: string, view: DataView, at: number): number {
  const value = view.getBigUint64(at, true);
  if (value > Number.MAX_SAFE_INTEGER) throw damaged(what, `a zip64 record holds ${value.toString()}`);
  return Number(value);
}

interface Sizes {
  readonly size: number;
  readonly packed: number;
  readonly headerOffset: number;
}

/** Of the entry at `at`; those that do not fit into 32 bits stand one after the other in its zip64 field. */
function sizesOf(what: string, view: DataView, at: number): Sizes {
  const fields = [view.getUint32(at + 24, true), view.getUint32(at + 20, true), view.getUint32(at + 42, true)];
  let field = at + ENTRY_BYTES + view.getUint16(at + 28, true);
  const end = field + view.getUint16(at + 30, true);
  if (fields.includes(IN_ZIP64)) {
    while (field + 4 <= end && view.getUint16(field, true) !== ZIP64_FIELD)
      field += 4 + view.getUint16(field + 2, true);
    const stop = field + 4 > end ? 0 : Math.min(end, field + 4 + view.getUint16(field + 2, true));
    let from = field + 4;
    fields.forEach((value, i) => {
      if (value !== IN_ZIP64) return;
      if (from + 8 > stop) throw damaged(what, 'a member has no zip64 field for a size that does not fit into 32 bits');
      fields[i] = wide(what, view, from);
      from += 8;
    });
  }
  const [size, packed, headerOffset] = fields as [number, number, number];
  return { size, packed, headerOffset };
}

function parseDirectory(what: string, bytes: Uint8Array, count: number, fileSize: number): Map<string, Member> {
  const view = viewOf(bytes);
  const members = new Map<string, Member>();
  let total = 0;
  let at = 0;
  for (let i = 0; i < count; i += 1) {
    if (at + ENTRY_BYTES > bytes.length || view.getUint32(at, true) !== ENTRY_SIGNATURE) {
      throw damaged(what, `member ${i} of its directory is damaged`);
    }
    const nameBytes = view.getUint16(at + 28, true);
    const next = at + ENTRY_BYTES + nameBytes + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    if (next > bytes.length) throw damaged(what, `member ${i} of its directory is cut off`);
    const nameAt = at + ENTRY_BYTES;
    const name = decodeUtf8(bytes.subarray(nameAt, nameAt + nameBytes), `${what}: a member's name`, 'invalid_adapter');
    checkName(what, name, members);
    const [flags, method] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true)];
    const { size, packed, headerOffset } = sizesOf(what, view, at);
    if ((flags & 1) !== 0 || method !== 0 || packed !== size) {
      throw damaged(what, `${quoteName(name)} is compressed or encrypted, which torch.save never does`);
    }
    total += size;
    if (headerOffset + size > fileSize || total > fileSize) {
      throw damaged(what, `${quoteName(name)} claims ${size} bytes, the file has ${fileSize} in all`);
    }
    members.set(name, { size, headerOffset });
    at = next;
  }
  return members;
}

/** No name is ever used as a path; one that tries to leave a folder shows what the file is for. */
function checkName(what: string, name: string, members: ReadonlyMap<string, Member>): void {
  const bad =
    name === '' || /[\\\0:]/.test(name) || name.split('/').some((part) => part === '..' || part === '.' || part === '');
  if (bad) throw damaged(what, `a member is named ${quoteName(name)}, which is no plain relative path`);
  if (members.has(name)) throw damaged(what, `two members are named ${quoteName(name)}`);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function damaged(what: string, problem: string): ManyfoldError {
  const mend = 'The file is damaged, hostile or not from torch.save; download it again, or save it again with PyTorch.';
  return new ManyfoldError('invalid_adapter', `${what}: ${problem}. ${mend}`);
}
