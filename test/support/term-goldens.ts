/**
 * Reads the hand-built terms that tools/oracle/term_goldens.py answered in float64. Used by parity-terms.test.ts and by
 * tests that need a term set of every kind.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import type { SiteName, SiteRef } from '../../src/core/model-config.js';
import type {
  BlockStage,
  BottleneckActivation,
  DenseTensor,
  LayerNorm,
  Term,
  TermTensor,
} from '../../src/core/terms.js';
import { GOLDENS, readRows, type GoldenRow } from './goldens.js';

interface Place {
  readonly shape: readonly number[];
  readonly dtype: 'f32' | 'bf16' | 'f16' | 'int8' | 'ternary' | 'u32';
  readonly offset: number;
}

interface TermJson {
  readonly kind: Term['kind'];
  readonly layer: number;
  readonly site: SiteName;
  readonly scale?: number;
  readonly gate?: number;
  readonly placement?: 'sequential' | 'parallel' | 'pre' | 'post' | 'additive' | 'in' | 'out';
  readonly stages?: number;
  readonly normEps?: number;
  readonly activation?: BottleneckActivation;
  readonly [part: string]: Place | string | number | undefined;
}

interface SequenceJson {
  readonly name: string;
  readonly tokens: readonly number[];
  readonly terms: readonly TermJson[];
  readonly gates?: Place;
  readonly embeddings?: Place;
  readonly stride: number;
  readonly offset: number;
}

export interface TermSequence {
  readonly name: string;
  /** -1 - i: row i of the embeddings. */
  readonly tokens: readonly number[];
  readonly terms: readonly Term[];
  readonly gates: readonly Float32Array[] | undefined;
  readonly embeddings: readonly Float32Array[];
  readonly rows: readonly GoldenRow[];
}

/** Sequences of `test/goldens/terms/<model>`. */
export function readTermGoldens(model: string): TermSequence[] {
  const stem = path.join(GOLDENS, 'terms', model);
  const json = JSON.parse(readFileSync(`${stem}.json`, 'utf8')) as { vocab: number; sequences: SequenceJson[] };
  const bytes = readFileSync(`${stem}.bin`);
  return json.sequences.map((sequence) => ({
    name: sequence.name,
    tokens: sequence.tokens,
    terms: sequence.terms.map((term) => readTerm(bytes, term)),
    gates: sequence.gates === undefined ? undefined : matrixRows(bytes, sequence.gates),
    embeddings: sequence.embeddings === undefined ? [] : matrixRows(bytes, sequence.embeddings),
    rows: readRows(bytes, { ...sequence, vocab: json.vocab, count: sequence.tokens.length }),
  }));
}

function values(bytes: Buffer, place: Place): Float32Array {
  const count = place.shape.reduce((product, size) => product * size, 1);
  return Float32Array.from({ length: count }, (_, i) => bytes.readFloatLE(place.offset + 4 * i));
}

function matrixRows(bytes: Buffer, place: Place): Float32Array[] {
  const all = values(bytes, place);
  const [rows = 0, width = 0] = place.shape;
  return Array.from({ length: rows }, (_, i) => all.slice(i * width, (i + 1) * width));
}

function placeOf(term: TermJson, part: string): Place | undefined {
  const place = term[part];
  return typeof place === 'object' ? place : undefined;
}

function tensor(bytes: Buffer, term: TermJson, part: string): DenseTensor {
  const place = placeOf(term, part);
  if (place === undefined) throw new Error(`the golden's ${term.kind} has no ${part}`);
  const data = values(bytes, place);
  if (place.dtype === 'bf16')
    return { dtype: 'bf16', shape: place.shape, data: Uint16Array.from(data, (v) => bits(v) >>> 16) };
  if (place.dtype === 'f16') return { dtype: 'f16', shape: place.shape, data: Uint16Array.from(data, halfBits) };
  return { dtype: 'f32', shape: place.shape, data };
}

/** A tensor of any codec. int8 lies as its scales and then its integers, all float32. */
function coded(bytes: Buffer, term: TermJson, part: string): TermTensor {
  const place = placeOf(term, part);
  if (place?.dtype === 'ternary') return ternary(place.shape, values(bytes, place));
  if (place?.dtype !== 'int8') return tensor(bytes, term, part);
  const [rows = 0] = place.shape;
  const integers = values(bytes, { ...place, offset: place.offset + 4 * rows });
  return {
    dtype: 'int8',
    shape: place.shape,
    data: Int8Array.from(integers),
    scales: values(bytes, { ...place, shape: [rows] }),
  };
}

function ternary(shape: readonly number[], all: Float32Array): TermTensor {
  const [rows = 0, cols = 0] = shape;
  const stride = Math.ceil(cols / 32);
  const positive = new Uint32Array(rows * stride);
  const negative = new Uint32Array(rows * stride);
  all.forEach((value, i) => {
    if (value === 0) return;
    const plane = value > 0 ? positive : negative;
    const word = Math.floor(i / cols) * stride + Math.floor((i % cols) / 32);
    plane[word] = ((plane[word] ?? 0) | (1 << ((i % cols) % 32))) >>> 0;
  });
  return { dtype: 'ternary', shape, positive, negative, scale: all.reduce((a, v) => Math.max(a, Math.abs(v)), 0) };
}

function vector(bytes: Buffer, term: TermJson, part: string): Float32Array | undefined {
  const place = placeOf(term, part);
  return place === undefined ? undefined : values(bytes, place);
}

const scratch = new DataView(new ArrayBuffer(4));

function bits(value: number): number {
  scratch.setFloat32(0, value);
  return scratch.getUint32(0);
}

/** Of a value that binary16 holds exactly. */
function halfBits(value: number): number {
  const pattern = bits(value);
  const sign = (pattern >>> 16) & 0x8000;
  const exponent = ((pattern >>> 23) & 0xff) - 112;
  const mantissa = (pattern & 0x7fffff) | 0x800000;
  if (value === 0) return sign;
  return exponent > 0
    ? sign | (exponent << 10) | ((mantissa & 0x7fffff) >>> 13)
    : sign | (mantissa >>> (14 - exponent));
}

/** The parts that are there, under their names. */
function vectors(bytes: Buffer, term: TermJson, names: readonly string[]): Record<string, Float32Array> {
  const found = names.map((name) => [name, vector(bytes, term, name)] as const);
  return Object.fromEntries(found.filter((pair): pair is readonly [string, Float32Array] => pair[1] !== undefined));
}

function readTerm(bytes: Buffer, term: TermJson): Term {
  const site: SiteRef = { layer: term.layer, site: term.site };
  const scale = term.scale ?? 1;
  const gate = term.gate === undefined ? {} : { gate: term.gate };
  switch (term.kind) {
    case 'lowrank':
      return {
        kind: 'lowrank',
        site,
        scale,
        a: coded(bytes, term, 'a'),
        b: coded(bytes, term, 'b'),
        ...(placeOf(term, 'midMatrix') && { midMatrix: tensor(bytes, term, 'midMatrix') }),
        ...vectors(bytes, term, ['mid', 'outDiag']),
      };
    case 'diag':
      return { kind: 'diag', site, ...vectors(bytes, term, ['h', 'g', 'c']) };
    case 'override':
      return { kind: 'override', site, values: tensor(bytes, term, 'values'), ...overrideRows(bytes, term) };
    case 'rowcol':
      return {
        kind: 'rowcol',
        site,
        scale,
        side: term.placement === 'out' ? 'out' : 'in',
        index: indices(bytes, term, 'index') ?? new Uint32Array(0),
        values: coded(bytes, term, 'values'),
      };
    case 'sparse':
      return {
        kind: 'sparse',
        site,
        scale,
        rowStart: indices(bytes, term, 'rowStart') ?? new Uint32Array(0),
        columns: indices(bytes, term, 'columns') ?? new Uint32Array(0),
        values: coded(bytes, term, 'values'),
      };
    case 'blockdiag':
      return readBlockDiag(bytes, term, site);
    case 'prefix':
      return { kind: 'prefix', site, k: tensor(bytes, term, 'k'), v: tensor(bytes, term, 'v'), ...gate };
    case 'bottleneck':
      return {
        kind: 'bottleneck',
        site,
        scale,
        placement: term.placement === 'parallel' ? 'parallel' : 'sequential',
        activation: term.activation ?? 'relu',
        down: tensor(bytes, term, 'down'),
        up: tensor(bytes, term, 'up'),
        ...vectors(bytes, term, ['downBias', 'upBias']),
        ...readNorm(bytes, term),
      };
  }
}

function readNorm(bytes: Buffer, term: TermJson): { norm?: LayerNorm } {
  const weight = vector(bytes, term, 'normWeight');
  const bias = vector(bytes, term, 'normBias');
  return weight === undefined || bias === undefined ? {} : { norm: { weight, bias, eps: term.normEps ?? 0 } };
}

function readBlockDiag(bytes: Buffer, term: TermJson, site: SiteRef): Term {
  const stages = Array.from({ length: term.stages ?? 0 }, (_, i): BlockStage => {
    const gather = indices(bytes, term, `gather${i}`);
    return { blocks: tensor(bytes, term, `blocks${i}`), ...(gather && { gather }) };
  });
  const placement = term.placement === 'pre' || term.placement === 'post' ? term.placement : 'additive';
  const output = indices(bytes, term, 'output');
  return { kind: 'blockdiag', site, placement, stages, scale: term.scale ?? 1, ...(output && { output }) };
}

function indices(bytes: Buffer, term: TermJson, part: string): Uint32Array | undefined {
  const place = placeOf(term, part);
  if (place === undefined) return undefined;
  return Uint32Array.from({ length: place.shape[0] ?? 0 }, (_, i) => bytes.readUInt32LE(place.offset + 4 * i));
}

function overrideRows(bytes: Buffer, term: TermJson): { rows?: Uint32Array } {
  const rows = indices(bytes, term, 'rows');
  return rows === undefined ? {} : { rows };
}
