/** Questions to the server before the load: its models, adapters and version. None of them has to be answered. */
import { request } from 'undici';
import { z } from 'zod';
import type { Secret } from '../../src/config/secret.js';
import { ManyfoldError } from '../../src/core/errors.js';
import type { DialectFacts } from '../client/dialect.js';
import { printable } from '../client/classify.js';
import type { Scenario } from '../scenario/scenario.js';

export interface ServerFacts {
  readonly dialect: DialectFacts;
  /** The scenario's adapters, or those that the server lists. */
  readonly adapterNames: readonly string[];
  readonly version: string | null;
}

/** No longer than the scenario waits for a token. */
const MAX_TIMEOUT_MS = 5000;
const MAX_BYTES = 64 * 1024 * 1024;

const ModelList = z.object({ data: z.array(z.object({ id: z.string(), parent: z.string().nullish() })) });
const Version = z.object({ version: z.string() });
const LoraList = z.array(z.object({ id: z.int(), path: z.string() }));

/** Throws 'not_found' only where the run cannot be planned without the answer: adapters from the server. */
export async function probeServer(scenario: Scenario, apiKey: Secret | undefined): Promise<ServerFacts> {
  const { target, adapters, limits } = scenario;
  const timeoutMs = Math.min(MAX_TIMEOUT_MS, limits.firstTokenMs);
  const get = (path: string): Promise<Answer | undefined> => getJson(target.url + path, apiKey, timeoutMs);
  const wantsIds = target.dialect === 'llama-server' && target.loraIds === undefined;
  const [list, versionAnswer, loras] = await Promise.all([
    get('/v1/models'),
    get('/version'),
    wantsIds ? get('/lora-adapters') : undefined,
  ]);
  const models = ModelList.safeParse(list?.json);
  const entries = models.success ? models.data.data : [];
  const base = entries.find(({ parent }) => parent == null)?.id;
  const loraIds = target.loraIds ?? loraIdsOf(loras);
  const listed = target.dialect === 'llama-server' ? Object.keys(loraIds) : adaptersOf(entries);
  const version = Version.safeParse(versionAnswer?.json);
  return {
    // LoRAX lists no models; there an empty name is the base. Elsewhere a server that does not answer will answer no
    // request either, and the name does not matter.
    dialect: { model: target.model ?? base ?? (target.dialect === 'lorax' ? '' : 'default'), loraIds },
    adapterNames: adapters.pool.kind === 'names' ? adapters.pool.names : take(listed, adapters.pool.count, target.url),
    version: describeVersion(list?.server, version.success ? version.data.version : undefined),
  };
}

function adaptersOf(entries: readonly { id: string; parent?: string | null | undefined }[]): string[] {
  return entries.filter(({ parent }) => parent != null).map(({ id }) => id);
}

function take(listed: readonly string[], count: number | undefined, url: string): readonly string[] {
  if (listed.length > 0 && listed.length >= (count ?? 1)) return listed.slice(0, count);
  throw new ManyfoldError(
    'not_found',
    `${url} lists ${listed.length} adapters, and the scenario takes ${count ?? 'all'} of them (from-server: true). ` +
      'Check that the server runs and has its adapters loaded, or write adapters.names.',
  );
}

/** llama-server knows files; people know them by their name without folder and ending. */
function loraIdsOf(answer: Answer | undefined): Record<string, number> {
  const list = LoraList.safeParse(answer?.json);
  if (!list.success) return {};
  return Object.fromEntries(
    list.data.map(({ id, path }) => [(path.split(/[\\/]/).at(-1) ?? path).replace(/\.gguf$/i, ''), id]),
  );
}

function describeVersion(server: string | undefined, version: string | undefined): string | null {
  const parts = [server, version].filter((part) => part !== undefined && part !== '').map(String);
  return parts.length === 0 ? null : printable(parts.join(' '));
}

interface Answer {
  readonly json: unknown;
  readonly server: string | undefined;
}

async function getJson(url: string, apiKey: Secret | undefined, timeoutMs: number): Promise<Answer | undefined> {
  try {
    const headers = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey.reveal()}` };
    const response = await request(url, { headers, signal: AbortSignal.timeout(timeoutMs) });
    const chunks: Buffer[] = [];
    let bytes = 0;
    for await (const chunk of response.body as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      if (bytes > MAX_BYTES) return undefined;
      chunks.push(chunk);
    }
    if (response.statusCode !== 200) return undefined;
    const { server } = response.headers;
    const json: unknown = JSON.parse(Buffer.concat(chunks).toString('utf8'));
    return { json, server: typeof server === 'string' ? server : undefined };
  } catch {
    return undefined; // Unreachable or not JSON: the load itself will tell and count it.
  }
}
