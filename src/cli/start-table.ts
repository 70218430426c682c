/** What the server prints when it is ready: a table of what is loaded, and a curl to paste. Called by serve.ts. */
import { demoAdapterFolder } from './demo-adapters.js';
import { humanBytes } from './human-bytes.js';
import type { RunningServer } from '../server/listen.js';
import type { Composition } from './compose.js';

const MAX_ADAPTER_ROWS = 20;

export function startTable(composition: Composition, server: RunningServer, seconds: number): string {
  const rows = [...modelRows(composition), ...adapterRows(composition)];
  const width = Math.max(...rows.map(([label]) => label.length));
  const lines = rows.map(([label, text]) => `  ${label.padEnd(width)}  ${text}`);
  return [
    '',
    ...lines,
    '',
    `Manyfold is ready on ${usableUrl(server)}${listensEverywhere(server) ? ' (it listens on all interfaces)' : ''} after ${seconds.toFixed(1)} s. Try it:`,
    '',
    curl(composition, server),
    '',
  ].join('\n');
}

function listensEverywhere({ host }: RunningServer): boolean {
  return host === '0.0.0.0' || host === '::';
}

/** An address to paste: those that mean all interfaces are no address of a server. */
function usableUrl(server: RunningServer): string {
  return listensEverywhere(server) ? `http://localhost:${server.port}` : server.url;
}

type Row = readonly [label: string, text: string];

function modelRows({ checkpoint, plan, engine, service, config }: Composition): Row[] {
  const { info } = engine;
  const { config: model } = checkpoint;
  const chosen = config.engine.dtype !== 'auto' && config.origins.dtype.kind !== 'default';
  const faster = chosen || plan.native.backend !== 'cpu' ? '' : fasterThan(info.dtype);
  const dequantised = checkpoint.fileDtype !== info.dtype ? ` (file: ${checkpoint.fileDtype})` : '';
  return [
    ['model', service.models.base.servedNames.join(', ')],
    ['file', checkpoint.path],
    [
      'family',
      `${model.family}, ${model.layers.length} layers, hidden ${model.hiddenSize}, vocabulary ${model.vocabSize}`,
    ],
    ['weights', `${info.dtype}${dequantised}, ${humanBytes(info.weightBytes)}${faster}`],
    ['kernels', kernelsText(plan.native.backend, info)],
    [
      'context',
      `${info.maxModelLen} tokens a sequence, ${info.maxNumSeqs} sequences at once, ${info.maxQueue} may wait`,
    ],
    [
      'KV pool',
      `${plan.kvTokens} tokens, ${humanBytes(info.kvBytes)}${plan.native.kvCacheDtype === 'int8' ? ', int8' : ''}`,
    ],
    ['API keys', config.server.apiKeys.length === 0 ? 'none needed' : String(config.server.apiKeys.length)],
  ];
}

function kernelsText(backend: string, { isa, threads }: { isa: string; threads: number }): string {
  return backend === 'cpu' ? `cpu ${isa}, ${threads} ${threads === 1 ? 'thread' : 'threads'}` : `${backend} ${isa}`;
}

/** What of smaller formats there is, for who chose none. */
function fasterThan(dtype: string): string {
  if (dtype === 'bf16') return '; --dtype int8 takes half of that, --dtype q4 a third, and both decode faster';
  if (dtype === 'int8') return '; --dtype q4 takes two thirds of that and decodes faster';
  return '';
}

function adapterRows({ registry, engine, config }: Composition): Row[] {
  const bytes = new Map(engine.stats().residentAdapters.map((adapter) => [adapter.version, adapter.bytes]));
  const served = registry
    .list()
    .map(({ name, version }): Row => [
      'adapter',
      `${name}  ${version.slice(0, 19)}  ${humanBytes(bytes.get(version) ?? 0)}`,
    ]);
  const refused = registry.refused().map(({ name, error }): Row => ['refused', `${name}: ${error.message}`]);
  const all = [...served, ...refused];
  const yours = '--adapter NAME=PATH or --adapter-dir DIR serves yours';
  if (demoAdapterFolder(config) !== undefined)
    all.unshift(['adapters', `those of examples/adapters; ${yours} instead`]);
  if (all.length === 0) return [['adapters', `none; ${yours}`]];
  if (all.length <= MAX_ADAPTER_ROWS) return all;
  return [...all.slice(0, MAX_ADAPTER_ROWS), ['', `and ${all.length - MAX_ADAPTER_ROWS} more`]];
}

function curl({ registry, service, config }: Composition, server: RunningServer): string {
  const model = registry.list()[0]?.name ?? service.models.base.servedNames[0];
  const body = {
    model,
    messages: [{ role: 'user', content: 'What is the capital of France?' }],
    max_tokens: 64,
    temperature: 0,
  };
  const key = config.server.apiKeys.length === 0 ? '' : ` -H "authorization: Bearer $API_KEY"`;
  return `curl ${usableUrl(server)}/v1/chat/completions -H 'content-type: application/json'${key} -d '${JSON.stringify(body)}'`;
}
