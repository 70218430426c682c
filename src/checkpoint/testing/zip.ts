/** Writes zip archives of stored members for tests, good ones and bad ones. */

export interface ZipEntry {
  readonly name: string;
  readonly data: Uint8Array;
  /** What the directory claims, where it lies. */
  readonly method?: number;
  readonly claimedSize?: number;
}

export interface ZipOptions {
  /** Sizes and places stand in zip64 records, as torch.save has them beyond 4 GiB. */
  readonly zip64?: boolean;
  /** Bytes before the first member that are not written, as if they were. */
  readonly offset?: number;
}

/** The archive; with `offset`, the part of it from there on. */
export function zipBytes(entries: readonly ZipEntry[], { zip64 = false, offset: start = 0 }: ZipOptions = {}): Buffer {
  const locals: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = start;
  for (const { name, data, method = 0, claimedSize = data.length } of entries) {
    const nameBytes = Buffer.from(name);
    const local = Buffer.alloc(30);
    local.writeUInt32LE(0x04034b50, 0);
    local.writeUInt16LE(method, 8);
    local.writeUInt32LE(data.length, 18);
    local.writeUInt32LE(data.length, 22);
    local.writeUInt16LE(nameBytes.length, 26);
    const entry = Buffer.alloc(46);
    entry.writeUInt32LE(0x02014b50, 0);
    entry.writeUInt16LE(method, 10);
    const extra = zip64 ? zip64Field(claimedSize, offset) : Buffer.alloc(0);
    entry.writeUInt32LE(zip64 ? 0xffffffff : claimedSize, 20);
    entry.writeUInt32LE(zip64 ? 0xffffffff : claimedSize, 24);
    entry.writeUInt16LE(nameBytes.length, 28);
    entry.writeUInt16LE(extra.length, 30);
    entry.writeUInt32LE(zip64 ? 0xffffffff : offset, 42);
    locals.push(local, nameBytes, Buffer.from(data));
    directory.push(entry, nameBytes, extra);
    offset += 30 + nameBytes.length + data.length;
  }
  const central = Buffer.concat(directory);
  return Buffer.concat([...locals, central, endOf({ count: entries.length, bytes: central.length, offset }, zip64)]);
}

/** Behind a field of another kind, size, packed size and place. */
function zip64Field(size: number, offset: number): Buffer {
  const extra = Buffer.alloc(6 + 28);
  extra.writeUInt16LE(0x4246, 0);
  extra.writeUInt16LE(2, 2);
  extra.writeUInt16LE(1, 6);
  extra.writeUInt16LE(24, 8);
  [size, size, offset].forEach((value, i) => extra.writeBigUInt64LE(BigInt(value), 10 + 8 * i));
  return extra;
}

interface Central {
  readonly count: number;
  readonly bytes: number;
  readonly offset: number;
}

function endOf({ count, bytes, offset }: Central, zip64: boolean): Buffer {
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(zip64 ? 0xffff : count, 8);
  end.writeUInt16LE(zip64 ? 0xffff : count, 10);
  end.writeUInt32LE(zip64 ? 0xffffffff : bytes, 12);
  end.writeUInt32LE(zip64 ? 0xffffffff : offset, 16);
  if (!zip64) return end;
  const record = Buffer.alloc(56);
  record.writeUInt32LE(0x06064b50, 0);
  record.writeBigUInt64LE(44n, 4);
  [count, count, bytes, offset].forEach((value, i) => record.writeBigUInt64LE(BigInt(value), 24 + 8 * i));
  const locator = Buffer.alloc(20);
  locator.writeUInt32LE(0x07064b50, 0);
  locator.writeBigUInt64LE(BigInt(offset + bytes), 8);
  locator.writeUInt32LE(1, 16);
  return Buffer.concat([record, locator, end]);
}
