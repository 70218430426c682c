/**
 * ComPEFT (arXiv 2311.13171): another adapter with each tensor as signs and one scale, packed as docs/formats/compeft.md has
 * it. The tensors stay ternary: bit planes as factors of LOWRANK, values of ROWCOL and values of SPARSE. IA3 alone becomes a
 * dense DIAG, which is one vector a module.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';

import { isJsonObject, quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import { bug } from '../../core/errors.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder, AdapterLimits } from '../adapter-folder.js';
import { sourceOf } from '../compeft/sources.js';
import type { PackedSource, PackedTensors } from '../compeft/sources.js';
import { COMPEFT_VERSION, PAYLOAD_TENSOR, readPayload, readStream } from '../compeft/payload.js';
import type { Payload } from '../compeft/payload.js';
import { planeBytes } from '../compeft/planes.js';
import type { SignedPositions } from '../compeft/rice.js';
import { refused, refuseUnknownFields, show } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { wrongTensor } from '../tensor-values.js';

export const compeftImporter: AdapterImporter = {
  method: 'COMPEFT',
  matches: (config) => config['peft_type'] === 'COMPEFT',
  compile: compileCompeft,
};

const FORMAT = 'docs/formats/compeft.md has the format.';

async function compileCompeft(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  const source = parseConfig(folder);
  const payload = readPayload(await folder.read(payloadTensor(folder)));
  if (payload.entries.length === 0) {
    throw wrongTensor('it packs no tensors, so it would be the base under another name', 'Compress the adapter again.');
  }
  // Everything that the directory says is checked before the stream is read.
  const plan = source.plan(packedFolder(folder, payload), context);
  checkBudget(payload, context.limits);
  const tensors: PackedTensors = { entries: new Map(), positions: new Map<string, SignedPositions>() };
  let at = 0;
  for (const positions of readStream(payload)) {
    const entry = payload.entries[at++];
    if (entry === undefined) break;
    tensors.entries.set(entry.name, entry);
    tensors.positions.set(entry.name, positions);
    await nextTurn();
  }
  const terms: Term[] = [];
  const inert: string[] = [];
  for (const module of plan) {
    const made = module.terms(tensors);
    if (made.length === 0) inert.push(module.path);
    terms.push(...made);
    await nextTurn();
  }
  const note = `The compression left nothing of ${inert.length} of ${plan.length} modules, which stay as the base.`;
  return { terms: { terms }, notes: inert.length > 0 ? [note] : [] };
}

function parseConfig({ config }: AdapterFolder): PackedSource {
  const version = config['compeft_version'];
  if (version !== COMPEFT_VERSION) {
    throw refused('compeft_version', `${show(version)}, expected ${COMPEFT_VERSION}`, `Compress it again; ${FORMAT}`);
  }
  // `compression` says how the file was made.
  refuseUnknownFields(config, ['compeft_version', 'compression', 'source', 'source_type']);
  const source = config['source'] ?? {};
  if (!isJsonObject(source)) throw refused('source', `${show(source)}, expected an object`, FORMAT);
  return sourceOf(config['source_type'], source);
}

function payloadTensor({ tensors }: AdapterFolder): string {
  const [tensor, other] = [...tensors.values()];
  if (tensor?.name !== PAYLOAD_TENSOR || tensor.dtype !== 'U8' || tensor.shape.length !== 1 || other !== undefined) {
    const found = [...tensors.values()].map(({ name, dtype }) => `${quoteName(name)} (${dtype})`).slice(0, 3);
    throw wrongTensor(
      `it holds ${found.join(', ') || 'nothing'}, expected one tensor "${PAYLOAD_TENSOR}" of U8 [n]`,
      `Compress the adapter again; ${FORMAT}`,
    );
  }
  return tensor.name;
}

/** The folder with the entries in the place of tensors, for what looks at headers alone. */
function packedFolder(folder: AdapterFolder, { entries }: Payload): AdapterFolder {
  const tensors = new Map<string, SafetensorsTensor>(
    entries.map(({ name, shape, count }) => [name, { name, dtype: 'U8', shape, offset: 0, byteLength: count }]),
  );
  return {
    directory: folder.directory,
    config: folder.config,
    tensors,
    read: (name) => bug(`${name} is no tensor of the file`),
    readTexts: () => folder.readTexts(),
    close: () => folder.close(),
  };
}

/** Positions, and the planes of what is a matrix. Bounds what a small file may make the server allocate. */
function checkBudget({ entries }: Payload, { maxBytes }: AdapterLimits): void {
  let bytes = 0;
  for (const { shape, count } of entries) {
    const [rows = 0, cols] = shape;
    bytes += 10 * count + (cols === undefined ? 0 : planeBytes(rows, cols));
  }
  if (bytes <= maxBytes) return;
  throw wrongTensor(
    `it unpacks to ${bytes} bytes, at most ${maxBytes} are allowed`,
    'Serve an adapter of this size as a model of its own: merge it into its base and use --model.',
  );
}
