/** Every system that is measured, in the form in which it is started. A pure table: paths in, commands out. */
import path from 'node:path';
import type { AdapterUse } from './load.js';

export type Weights = 'bf16' | 'int8' | '4-bit';
export type Product = 'manyfold' | 'vllm' | 'openvino' | 'llama.cpp';

export interface Shape {
  /** Folder below the peers' folder. */
  readonly folder: string;
  readonly title: string;
  /** Of the rows with many streams, and adapters that lie in `folder`/loras. */
  readonly streams: number;
}

export const SHAPES: Readonly<Record<'smol' | '1b', Shape>> = {
  smol: { folder: 'smol', title: 'SmolLM2-135M-Instruct', streams: 32 },
  '1b': { folder: '1b', title: 'shape of Llama-3.2-1B, random weights', streams: 8 },
};

export interface SystemId {
  readonly product: Product;
  /** `tool`: llama-bench, which measures itself. */
  readonly how: 'process' | 'http' | 'tool';
  readonly weights: Weights;
  /** The most adapters that are loaded. */
  readonly adapters: AdapterUse;
}

export interface Start {
  readonly file: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** A path that answers 200 when the server can be used. */
  readonly health?: string;
}

export interface Place {
  readonly peers: string;
  readonly repository: string;
  readonly node: string;
  readonly shape: Shape;
  readonly threads: number;
}

export function nameOf({ product, how, weights, adapters }: SystemId): string {
  const form = { process: 'in process', http: 'HTTP', tool: 'llama-bench' }[how];
  const loras = { none: '', one: ', one LoRA', distinct: ', LoRAs loaded' }[adapters];
  return `${product} ${weights} ${form}${loras}`;
}

const GGUF = { bf16: 'bf16', int8: 'Q8_0', '4-bit': 'Q4_0' } as const;
const OPENVINO = { bf16: 'fp16', int8: 'int8', '4-bit': 'int4' } as const;
/** What `--dtype` of `manyfold serve` is called. */
export const OWN_DTYPE = { bf16: 'bf16', int8: 'int8', '4-bit': 'q4' } as const;

export function adapterName(index: number): string {
  return `l${String(index).padStart(2, '0')}`;
}

function loraNames(id: SystemId, { shape }: Place): string[] {
  const count = { none: 0, one: 1, distinct: shape.streams }[id.adapters];
  return Array.from({ length: count }, (_, i) => adapterName(i));
}

/** Files that must be there; the first that is not says what is not installed. */
export function neededFiles(id: SystemId, place: Place): string[] {
  const { peers, shape } = place;
  const model = path.join(peers, shape.folder);
  const loras = loraNames(id, place);
  switch (id.product) {
    case 'manyfold':
      return [ownModel(id, place), ...loras.map((name) => path.join(model, 'loras', name))];
    case 'vllm':
      return [path.join(peers, 'vllm/stamp'), path.join(model, 'hf/model.safetensors')];
    case 'openvino':
      return [path.join(peers, 'openvino/stamp'), path.join(openvinoModel(id, place), 'openvino_model.xml')];
    case 'llama.cpp':
      return [path.join(peers, 'llama.cpp/stamp'), ggufModel(id, place), ...loras.map((name) => ggufLora(name, place))];
  }
}

/** The command that starts it on `port`, or reading stdin when it is in process. */
export function startOf(id: SystemId, place: Place, port: number): Start {
  switch (id.product) {
    case 'manyfold':
      return ownStart(id, place, port);
    case 'vllm':
      return vllmStart(id, place, port);
    case 'openvino':
      return openvinoStart(id, place);
    case 'llama.cpp':
      return llamaStart(id, place, port);
  }
}

/** 4 bits are served from the very file that llama.cpp gets, the others from the checkpoint. */
function ownModel({ weights }: SystemId, { peers, shape }: Place): string {
  return path.join(peers, shape.folder, weights === '4-bit' ? 'gguf/Q4_0.gguf' : 'hf');
}

function ownStart(id: SystemId, place: Place, port: number): Start {
  const { peers, shape, threads } = place;
  const folder = path.join(peers, shape.folder, 'loras');
  const flags = [
    ...['--model', ownModel(id, place), '--dtype', OWN_DTYPE[id.weights], '--threads', String(threads)],
    ...['--max-num-seqs', '32', '--log-level', 'error', '--served-model-name', 'base'],
    ...loraNames(id, place).flatMap((name) => ['--adapter', `${name}=${path.join(folder, name)}`]),
  ];
  if (id.how === 'process') {
    return { file: place.node, args: [path.join(place.repository, 'dist/bench/peers-engine.js'), ...flags] };
  }
  const script = path.join(place.repository, 'scripts/manyfold.mjs');
  return { file: place.node, args: [script, 'serve', ...flags, '--port', String(port)], health: '/readyz' };
}

function vllmStart(id: SystemId, place: Place, port: number): Start {
  const { peers, shape, threads } = place;
  const venv = path.join(peers, 'vllm');
  const model = path.join(peers, shape.folder);
  const names = loraNames(id, place);
  // One slot more than adapters: with every slot taken, requests of the base model get the last adapter.
  const slots = String(names.length + 1);
  const lora = [
    ...['--enable-lora', '--max-loras', slots, '--max-cpu-loras', slots, '--max-lora-rank', '16'],
    ...['--lora-modules', ...names.map((name) => `${name}=${path.join(model, 'loras', name)}`)],
  ];
  const args = [
    ...['serve', path.join(model, 'hf'), '--served-model-name', 'base', '--host', '127.0.0.1', '--port', String(port)],
    ...['--dtype', 'bfloat16', '--max-model-len', '1024', '--max-num-seqs', '32', '--no-enable-prefix-caching'],
    ...(names.length > 0 ? lora : []),
  ];
  const tcmalloc = path.join(venv, 'tcmalloc/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4');
  const env = {
    LD_PRELOAD: `${tcmalloc}:${path.join(venv, 'lib/libiomp5.so')}`,
    VLLM_CPU_KVCACHE_SPACE: '2',
    VLLM_CPU_OMP_THREADS_BIND: `0-${threads - 1}`,
    HF_HUB_OFFLINE: '1',
    VLLM_NO_USAGE_STATS: '1',
    DO_NOT_TRACK: '1',
  };
  return { file: path.join(venv, 'bin/vllm'), args, env, health: '/health' };
}

function openvinoModel({ weights }: SystemId, { peers, shape }: Place): string {
  return path.join(peers, shape.folder, 'openvino', OPENVINO[weights]);
}

function openvinoStart(id: SystemId, place: Place): Start {
  const [first] = loraNames(id, place);
  // alpha ÷ rank of tools/peers/make_model.py: OpenVINO does not read adapter_config.json.
  const loraFile = path.join(place.peers, place.shape.folder, 'loras', first ?? '', 'adapter_model.safetensors');
  return {
    file: path.join(place.peers, 'openvino/bin/python'),
    args: [
      path.join(place.repository, 'tools/peers/openvino_worker.py'),
      openvinoModel(id, place),
      String(place.threads),
      ...(first === undefined ? [] : [loraFile, '2.0']),
    ],
  };
}

function ggufModel({ weights }: SystemId, { peers, shape }: Place): string {
  return path.join(peers, shape.folder, 'gguf', `${GGUF[weights]}.gguf`);
}

function ggufLora(name: string, { peers, shape }: Place): string {
  return path.join(peers, shape.folder, 'gguf', `${name}.gguf`);
}

function llamaStart(id: SystemId, place: Place, port: number): Start {
  const bin = path.join(place.peers, 'llama.cpp/bin');
  const threads = String(place.threads);
  if (id.how === 'tool') {
    return { file: path.join(bin, 'llama-bench'), args: ['-m', ggufModel(id, place), '-t', threads, '-o', 'jsonl'] };
  }
  const { streams } = place.shape;
  const loras = loraNames(id, place).map((name) => ggufLora(name, place));
  const args = [
    ...['-m', ggufModel(id, place), '--host', '127.0.0.1', '--port', String(port), '-np', String(streams)],
    ...['-c', String(640 * streams), '-t', threads, '-tb', threads, '--cache-ram', '0', '--no-webui', '--offline'],
    ...(loras.length > 0 ? ['--lora-init-without-apply', '--lora', loras.join(',')] : []),
  ];
  return { file: path.join(bin, 'llama-server'), args, health: '/health' };
}
