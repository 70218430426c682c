/**
 * Pulls a model from a hub (any endpoint with the Hugging Face hub's layout) into the cache folder:
 * `models/OWNER/NAME/COMMIT/FILE`. Called by `manyfold pull`, and by `serve` for a model that is not a path.
 */
import { createHash } from 'node:crypto';
import { mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';

import { DEFAULT_MAX_FAILURES, DEFAULT_STALL_TIMEOUT_MS, fetchFile } from './fetch-file.js';
import type { FetchContext } from './fetch-file.js';
import { failed, httpGet, networkFailure, RetryableFailure, statusFailure } from './http-get.js';
import type { HttpContext, HttpResponse } from './http-get.js';
import { INDEX_NAME, selectFiles } from './model-reference.js';
import type { HubFile, ModelReference, Selection } from './model-reference.js';
import { pauseAfter } from './retry.js';

export interface PullOptions extends Pick<
  FetchContext,
  'clock' | 'progress' | 'signal' | 'dispatcher' | 'sleep' | 'freeBytes'
> {
  /** For instance `https://hub.example`. */
  readonly endpoint: string;
  readonly cacheDir: string;
  /** Sent to the endpoint's origin only. */
  readonly token?: string;
  readonly stallTimeoutMs?: number;
  readonly maxFailures?: number;
}

/** Fewer than for files: a copy in the cache may do as well. */
const MAX_LISTING_FAILURES = 3;
const MAX_LISTING_BYTES = 32 << 20;
const MAX_LISTED_FILES = 100_000;
const MAX_FILE_BYTES = 2 ** 40;
const SHARD_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors$/;

/** Downloads what is missing. Resolves to the folder or GGUF file to open. */
export async function pullModel(reference: ModelReference, options: PullOptions): Promise<string> {
  return new Pull(reference, options).run();
}

interface Listing {
  readonly commit: string;
  readonly files: readonly HubFile[];
}

class Pull {
  private readonly endpoint: string;
  private readonly headers: Readonly<Record<string, string>>;
  private readonly context: FetchContext;
  /** Folder of the repository in the cache. */
  private readonly root: string;

  constructor(
    private readonly reference: ModelReference,
    options: PullOptions,
  ) {
    const { stallTimeoutMs = DEFAULT_STALL_TIMEOUT_MS, maxFailures = DEFAULT_MAX_FAILURES } = options;
    this.endpoint = options.endpoint.replace(/\/+$/, '');
    this.headers = options.token === undefined ? {} : { authorization: `Bearer ${options.token}` };
    this.context = { ...options, stallTimeoutMs, maxFailures };
    this.root = path.join(options.cacheDir, 'models', ...reference.id.split('/'));
  }

  async run(): Promise<string> {
    const listing = await this.listWithRetries();
    if (listing instanceof RetryableFailure) return this.withoutHub(listing);
    const selection = selectFiles(listing.files, this.reference);
    const folder = path.join(this.root, listing.commit);
    for (const file of selection.files) await this.fetch(file, listing.commit, folder);
    if (selection.index) {
      for (const file of await this.shards(folder, listing)) await this.fetch(file, listing.commit, folder);
    }
    return this.remember(folder, selection);
  }

  /** The failure when the hub cannot be reached. */
  private async listWithRetries(): Promise<Listing | RetryableFailure> {
    for (let failures = 1; ; failures += 1) {
      try {
        return await this.list();
      } catch (error) {
        if (!(error instanceof RetryableFailure)) throw error;
        if (failures >= Math.min(MAX_LISTING_FAILURES, this.context.maxFailures)) return error;
        await pauseAfter(error, failures, this.context);
      }
    }
  }

  private async list(): Promise<Listing> {
    const { id, revision } = this.reference;
    const url = `${this.endpoint}/api/models/${id}/revision/${encodeURIComponent(revision)}?blobs=true`;
    const response = await httpGet(url, { ...this.headers, accept: 'application/json' }, this.context);
    if (response.statusCode !== 200) {
      await response.body.dump();
      throw statusFailure(url, response);
    }
    const body = await readBody(response, url, this.context);
    return parseListing(body, `${this.endpoint}: the listing of ${id}`);
  }

  private async fetch(file: HubFile, commit: string, folder: string): Promise<void> {
    const { id } = this.reference;
    await fetchFile(
      {
        url: `${this.endpoint}/${id}/resolve/${commit}/${encodeURIComponent(file.name)}`,
        destination: path.join(folder, file.name),
        headers: this.headers,
        maxBytes: MAX_FILE_BYTES,
        ...(file.size === undefined ? {} : { size: file.size }),
        ...(file.sha256 === undefined ? {} : { sha256: file.sha256 }),
      },
      this.context,
    );
  }

  /** The files that the index names, which the hub must have listed. */
  private async shards(folder: string, listing: Listing): Promise<HubFile[]> {
    const wrong = (what: string): Error => failed(`${this.reference.id}: ${INDEX_NAME} ${what}. Use another model.`);
    const index = parseJson(await readFile(path.join(folder, INDEX_NAME), 'utf8'));
    const weightMap = field(index, 'weight_map');
    if (typeof weightMap !== 'object' || weightMap === null) throw wrong('has no weight_map');
    return [...new Set<unknown>(Object.values(weightMap))].map((name) => {
      if (typeof name !== 'string' || !SHARD_NAME.test(name))
        throw wrong('names a file that is no plain .safetensors name');
      const file = listing.files.find((candidate) => candidate.name === name);
      if (file === undefined) throw wrong(`names ${name}, which the repository does not have`);
      return file;
    });
  }

  /** Notes which commit the revision was, so that the next start can do without the hub. */
  private async remember(folder: string, selection: Selection): Promise<string> {
    const opened = path.join(folder, selection.open);
    const file = this.rememberedFile();
    await mkdir(path.dirname(file), { recursive: true });
    const temporary = `${file}.${process.pid}-${createHash('sha256').update(opened).digest('hex').slice(0, 8)}`;
    await writeFile(temporary, path.relative(this.root, opened));
    await rename(temporary, file);
    return opened;
  }

  private rememberedFile(): string {
    const { revision, file } = this.reference;
    return path.join(this.root, 'refs', encodeURIComponent(file === undefined ? revision : `${revision}:${file}`));
  }

  private async withoutHub(failure: RetryableFailure): Promise<string> {
    const relative = await readFile(this.rememberedFile(), 'utf8').catch(() => undefined);
    const opened = relative === undefined ? undefined : path.join(this.root, relative);
    if (opened === undefined || (await stat(opened).catch(() => undefined)) === undefined) {
      throw failed(`${failure.message}. Check the network and the endpoint, or give the path of a model.`, failure);
    }
    this.context.progress.note(`${failure.message}; using the copy of ${this.reference.id} that was downloaded before`);
    return opened;
  }
}

async function readBody(response: HttpResponse, url: string, context: HttpContext): Promise<string> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
      size += chunk.length;
      if (size > MAX_LISTING_BYTES) break;
      chunks.push(chunk);
    }
  } catch (error) {
    throw networkFailure(error, url, context.signal);
  }
  if (size > MAX_LISTING_BYTES) throw failed(`${url} sent more than ${MAX_LISTING_BYTES} bytes. Check the endpoint.`);
  return Buffer.concat(chunks).toString('utf8');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function field(value: unknown, key: string): unknown {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, key)
    ? (value as Record<string, unknown>)[key]
    : undefined;
}

/** `{ sha, siblings: [{ rfilename, size, lfs: { sha256, size } }] }`; names become file names, so they are checked. */
function parseListing(text: string, what: string): Listing {
  const json = parseJson(text);
  const commit = field(json, 'sha');
  const siblings = field(json, 'siblings');
  if (typeof commit !== 'string' || !/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(commit)) {
    throw failed(`${what} has no commit. Check the endpoint.`);
  }
  if (!Array.isArray(siblings) || siblings.length > MAX_LISTED_FILES) {
    throw failed(`${what} has no list of files. Check the endpoint.`);
  }
  const files = siblings.flatMap((sibling: unknown): HubFile[] => {
    const name = field(sibling, 'rfilename');
    // Files whose names could mean something to the file system are none of those that are looked for.
    if (typeof name !== 'string' || !/^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$/.test(name)) return [];
    const lfs = field(sibling, 'lfs');
    const size = field(lfs, 'size') ?? field(sibling, 'size');
    const sha256 = field(lfs, 'sha256');
    return [
      {
        name,
        size: typeof size === 'number' && Number.isSafeInteger(size) && size >= 0 ? size : undefined,
        sha256: typeof sha256 === 'string' && /^[0-9a-fA-F]{64}$/.test(sha256) ? sha256 : undefined,
      },
    ];
  });
  return { commit, files };
}
