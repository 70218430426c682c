/**
 * The globals that a pickle of tensors may name, and the plain value that each makes of its arguments: torch's tensors and
 * storages, ordered dictionaries, sizes, and numpy's single numbers. Called by pickle.ts.
 */
import type { SafetensorsDtype } from './safetensors.js';

export type PickleKey = string | number;
export type PickleValue =
  | null
  | boolean
  | number
  | string
  | Uint8Array
  | PickleValue[]
  | Map<PickleKey, PickleValue>
  | Global
  | NumpyDtype
  | TorchStorage
  | TorchTensor;

type Fail = (problem: string) => never;

/** A flat piece of memory that tensors look into. */
export class TorchStorage {
  constructor(
    /** Name of its member in the archive. */
    readonly key: string,
    readonly dtype: SafetensorsDtype,
    readonly elements: number,
  ) {}
}

/** A view: element (i, j, …) is storage[offset + i·strides[0] + j·strides[1] + …]; checked to lie within the storage. */
export class TorchTensor {
  constructor(
    readonly storage: TorchStorage,
    readonly offset: number,
    readonly shape: readonly number[],
    readonly strides: readonly number[],
  ) {}
}

/** A numpy dtype, for single numbers only. */
export class NumpyDtype {
  constructor(readonly code: string) {}

  setState(state: readonly PickleValue[], fail: Fail): void {
    const order = state[1];
    if (order !== '<' && order !== '|') {
      fail(`numpy numbers have byte order ${typeof order === 'string' ? order : typeof order}, expected "<"`);
    }
  }

  /** The number that these bytes are. */
  number(bytes: Uint8Array, fail: Fail): number {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const reader = NUMPY_NUMBERS.get(this.code);
    if (reader === undefined) return fail(`a numpy number is of type ${this.code}, which is not read`);
    if (bytes.length !== reader.bytes) return fail(`a numpy number of type ${this.code} has ${bytes.length} bytes`);
    const value = reader.read(view);
    if (typeof value === 'bigint' && !Number.isSafeInteger(Number(value))) return fail('a number is larger than 2^53');
    return Number(value);
  }
}

interface NumpyReader {
  readonly bytes: number;
  readonly read: (view: DataView) => number | bigint;
}

const NUMPY_NUMBERS: ReadonlyMap<string, NumpyReader> = new Map<string, NumpyReader>([
  ['i4', { bytes: 4, read: (view) => view.getInt32(0, true) }],
  ['i8', { bytes: 8, read: (view) => view.getBigInt64(0, true) }],
  ['f4', { bytes: 4, read: (view) => view.getFloat32(0, true) }],
  ['f8', { bytes: 8, read: (view) => view.getFloat64(0, true) }],
]);

const STORAGES: Readonly<Record<string, SafetensorsDtype>> = {
  'torch.BFloat16Storage': 'BF16',
  'torch.BoolStorage': 'BOOL',
  'torch.ByteStorage': 'U8',
  'torch.CharStorage': 'I8',
  'torch.DoubleStorage': 'F64',
  'torch.FloatStorage': 'F32',
  'torch.HalfStorage': 'F16',
  'torch.IntStorage': 'I32',
  'torch.LongStorage': 'I64',
  'torch.ShortStorage': 'I16',
};

type Apply = (args: readonly PickleValue[], fail: Fail) => PickleValue;

/** Names of functions, and what they make. numpy has its scalars in two places, by version. */
const FUNCTIONS: Readonly<Record<string, Apply>> = {
  '_codecs.encode': encodeLatin1,
  'collections.OrderedDict': orderedDict,
  'numpy._core.multiarray.scalar': numpyScalar,
  'numpy.core.multiarray.scalar': numpyScalar,
  'numpy.dtype': numpyDtype,
  'torch.Size': torchSize,
  'torch._utils._rebuild_parameter': rebuildParameter,
  'torch._utils._rebuild_tensor_v2': rebuildTensor,
};

/** One allowed name, as a value on the pickle's stack. */
export class Global {
  private constructor(readonly name: string) {}

  static readonly #all: ReadonlyMap<string, Global> = new Map(
    [...Object.keys(FUNCTIONS), ...Object.keys(STORAGES)].map((name) => [name, new Global(name)]),
  );

  /** Undefined for every name that is not on the list. */
  static find(name: string): Global | undefined {
    return Global.#all.get(name);
  }

  /** Of a storage's class. */
  get dtype(): SafetensorsDtype | undefined {
    return Object.hasOwn(STORAGES, this.name) ? STORAGES[this.name] : undefined;
  }
}

/** What Python would get by calling the global. */
export function applyGlobal({ name }: Global, args: readonly PickleValue[], fail: Fail): PickleValue {
  const apply = Object.hasOwn(FUNCTIONS, name) ? FUNCTIONS[name] : undefined;
  return apply === undefined ? fail(`the pickle calls ${name}, which is only a name`) : apply(args, fail);
}

/** Bytes are written as a latin-1 string by protocol 2. */
function encodeLatin1([text, encoding]: readonly PickleValue[], fail: Fail): PickleValue {
  if (typeof text !== 'string' || encoding !== 'latin1') return fail('bytes are not written as latin1');
  return Uint8Array.from(Buffer.from(text, 'latin1'));
}

function orderedDict(args: readonly PickleValue[], fail: Fail): PickleValue {
  return args.length === 0 ? new Map<PickleKey, PickleValue>() : fail('an OrderedDict is made of something');
}

function numpyDtype([code]: readonly PickleValue[], fail: Fail): PickleValue {
  return typeof code === 'string' ? new NumpyDtype(code) : fail('a numpy dtype has no name');
}

function numpyScalar([dtype, bytes]: readonly PickleValue[], fail: Fail): PickleValue {
  const fits = dtype instanceof NumpyDtype && bytes instanceof Uint8Array;
  return fits ? dtype.number(bytes, fail) : fail('a numpy number has no bytes');
}

function torchSize([sizes]: readonly PickleValue[], fail: Fail): PickleValue {
  return counts(sizes, 'a torch.Size', fail);
}

function rebuildParameter([tensor]: readonly PickleValue[], fail: Fail): PickleValue {
  return tensor instanceof TorchTensor ? tensor : fail('a parameter has no tensor');
}

function rebuildTensor(args: readonly PickleValue[], fail: Fail): PickleValue {
  const [storage, offset] = args;
  if (!(storage instanceof TorchStorage)) return fail('a tensor has no storage');
  const shape = counts(args[2], "a tensor's shape", fail);
  const strides = counts(args[3], "a tensor's strides", fail);
  if (typeof offset !== 'number' || !Number.isSafeInteger(offset) || offset < 0 || shape.length !== strides.length) {
    return fail('a tensor has no whole offset, or not as many strides as dimensions');
  }
  const count = shape.reduce((product, size) => product * size, 1);
  const last =
    count === 0 ? offset - 1 : shape.reduce((at, size, i) => at + (size - 1) * (strides[i] as number), offset);
  // More elements than the storage has means strides of 0: a few bytes that claim to be a large tensor.
  if (last >= storage.elements || count > storage.elements) {
    return fail(`a tensor of shape [${shape.join(', ')}] does not fit its storage of ${storage.elements} elements`);
  }
  return new TorchTensor(storage, offset, shape, strides);
}

const MAX_DIMS = 8;

function counts(value: PickleValue | undefined, what: string, fail: Fail): number[] {
  if (!Array.isArray(value) || value.length > MAX_DIMS) return fail(`${what} is no list of at most ${MAX_DIMS} sizes`);
  return value.map((size) =>
    typeof size === 'number' && Number.isSafeInteger(size) && size >= 0 ? size : fail(`${what} holds no whole number`),
  );
}
