/**
 * The unfinished file of a download. It belongs to one process: its name says which, and it changes hands only by
 * rename, so two processes never write one file and no lock is needed. What a process leaves behind, in good order or
 * by a crash, the next one takes up. Used by fetch-file.
 *
 *   NAME.part-KEY                       left in good order
 *   NAME.part-KEY-HOST-PID-N            being written
 *   NAME.part-KEY.json                  what KEY stands for: the address and its validator (ETag)
 */
import { createHash } from 'node:crypto';
import type { Hash } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { hostname } from 'node:os';
import path from 'node:path';

import type { Clock } from '../core/clock.js';

/** What the bytes of a part are bytes of. */
export interface PartSource {
  readonly url: string;
  /** A strong ETag or a date, for If-Range; undefined when the server gave none. */
  readonly validator: string | undefined;
}

/** A part of another host that was not written for so long has no writer. */
const ABANDONED_SECONDS = 900;
const READ_BYTES = 1 << 20;
const PART = /^\.part-([0-9a-f]{16})(?:-([A-Za-z0-9_]+)-([0-9]+)-[0-9]+)?$/;

/** Parts that this process writes just now; its pid in a name is a dead process's otherwise. */
const heldPaths = new Set<string>();
const counter = { next: 0 };

export class PartFile {
  private constructor(
    private readonly destination: string,
    private readonly path: string,
    private readonly key: string,
    private readonly handle: FileHandle,
    readonly source: PartSource,
    private readonly hash: Hash,
    private size: number,
  ) {
    heldPaths.add(path);
  }

  /** Bytes that it holds. */
  get bytes(): number {
    return this.size;
  }

  /** SHA-256 of them, in hex. */
  sha256(): string {
    return this.hash.copy().digest('hex');
  }

  /** A new, empty part; the folder is made if need be. */
  static async create(destination: string, source: PartSource): Promise<PartFile> {
    await mkdir(path.dirname(destination), { recursive: true });
    const key = keyOf(source);
    await writeFile(sidecar(destination, key), JSON.stringify(source));
    const held = heldPath(destination, key);
    return new PartFile(destination, held, key, await open(held, 'w'), source, createHash('sha256'), 0);
  }

  /** The largest part of that address that an earlier process left; undefined when there is none. */
  static async claim(destination: string, url: string, clock: Clock): Promise<PartFile | undefined> {
    for (const { file, key } of await leftovers(destination, clock)) {
      const source = await readSidecar(destination, key);
      if (source?.url !== url) continue;
      const held = heldPath(destination, key);
      try {
        await rename(file, held);
      } catch {
        // Another process was faster; what it took is its own now.
        continue;
      }
      const handle = await open(held, 'r+');
      const { hash, size } = await hashOf(handle);
      return new PartFile(destination, held, key, handle, source, hash, size);
    }
    return undefined;
  }

  async append(chunk: Uint8Array): Promise<void> {
    let written = 0;
    while (written < chunk.length) {
      const { bytesWritten } = await this.handle.write(chunk, written, chunk.length - written, this.size + written);
      written += bytesWritten;
    }
    this.hash.update(chunk);
    this.size += chunk.length;
  }

  /** Makes it the destination: on disk first, then by one rename. */
  async complete(): Promise<void> {
    await this.handle.sync();
    await this.close();
    await rename(this.path, this.destination);
    const folder = await open(path.dirname(this.destination), 'r');
    await folder.sync().finally(() => folder.close());
    await rm(sidecar(this.destination, this.key), { force: true });
  }

  /** Leaves it for a later process. */
  async release(): Promise<void> {
    await this.close();
    if (this.size === 0) return this.remove();
    // Again, because another process that fetched the same file may have tidied it away.
    await writeFile(sidecar(this.destination, this.key), JSON.stringify(this.source));
    await rename(this.path, `${this.destination}.part-${this.key}`);
  }

  async discard(): Promise<void> {
    await this.close();
    await this.remove();
  }

  private async close(): Promise<void> {
    heldPaths.delete(this.path);
    await this.handle.close();
  }

  private async remove(): Promise<void> {
    await rm(this.path, { force: true });
    await rm(sidecar(this.destination, this.key), { force: true });
  }
}

function keyOf(source: PartSource): string {
  return createHash('sha256')
    .update(`${source.url}\n${source.validator ?? ''}`)
    .digest('hex')
    .slice(0, 16);
}

function host(): string {
  return hostname().replaceAll(/[^A-Za-z0-9]/g, '_') || 'host';
}

function heldPath(destination: string, key: string): string {
  counter.next += 1;
  return `${destination}.part-${key}-${host()}-${process.pid}-${counter.next}`;
}

function sidecar(destination: string, key: string): string {
  return `${destination}.part-${key}.json`;
}

async function readSidecar(destination: string, key: string): Promise<PartSource | undefined> {
  try {
    const value: unknown = JSON.parse(await readFile(sidecar(destination, key), 'utf8'));
    if (typeof value !== 'object' || value === null || !('url' in value) || typeof value.url !== 'string')
      return undefined;
    const validator = 'validator' in value && typeof value.validator === 'string' ? value.validator : undefined;
    const source = { url: value.url, validator };
    // A file that does not belong to its name was not written by us.
    return keyOf(source) === key ? source : undefined;
  } catch {
    return undefined;
  }
}

interface Leftover {
  readonly file: string;
  readonly key: string;
  readonly size: number;
}

/** Parts without a writer, largest first. */
async function leftovers(destination: string, clock: Clock): Promise<Leftover[]> {
  const folder = path.dirname(destination);
  const base = path.basename(destination);
  const names = await readdir(folder).catch(() => []);
  const found: Leftover[] = [];
  for (const name of names) {
    const match = name.startsWith(base) ? PART.exec(name.slice(base.length)) : null;
    const [, key, owner, pid] = match ?? [];
    if (key === undefined) continue;
    const file = path.join(folder, name);
    const info = await stat(file).catch(() => undefined);
    if (info?.isFile() !== true || info.size === 0) continue;
    const idleSeconds = clock.unixSeconds() - info.mtimeMs / 1000;
    if (pid === undefined || isOrphan(file, owner, Number(pid), idleSeconds))
      found.push({ file, key, size: info.size });
  }
  return found.sort((a, b) => b.size - a.size);
}

function isOrphan(file: string, owner: string | undefined, pid: number, idleSeconds: number): boolean {
  if (owner !== host()) return idleSeconds > ABANDONED_SECONDS;
  return pid === process.pid ? !heldPaths.has(file) : !isAlive(pid);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it lives and is another user's.
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}

async function hashOf(handle: FileHandle): Promise<{ hash: Hash; size: number }> {
  const hash = createHash('sha256');
  const chunk = Buffer.alloc(READ_BYTES);
  let size = 0;
  for (;;) {
    const { bytesRead } = await handle.read(chunk, 0, chunk.length, size);
    if (bytesRead === 0) return { hash, size };
    hash.update(chunk.subarray(0, bytesRead));
    size += bytesRead;
  }
}
