/** Writes pickles for tests as Python does, a few opcodes at a time; hostile ones are put together from raw bytes. */

export type Piece = Buffer;

export const op = (code: number, ...rest: readonly (Buffer | string)[]): Piece =>
  Buffer.concat([Buffer.from([code]), ...rest.map((part) => Buffer.from(part))]);

export const text = (value: string): Piece => {
  const bytes = Buffer.from(value);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(bytes.length);
  return op(0x58, length, bytes);
};

export const int = (value: number): Piece => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return op(0x4a, bytes);
};

export const global = (module: string, name: string): Piece => op(0x63, `${module}\n${name}\n`);
export const tuple = (...items: readonly Piece[]): Piece => Buffer.concat([op(0x28), ...items, op(0x74)]);
export const list = (...items: readonly Piece[]): Piece => Buffer.concat([op(0x5d), op(0x28), ...items, op(0x65)]);
export const call = (callee: Piece, ...args: readonly Piece[]): Piece =>
  Buffer.concat([callee, tuple(...args), op(0x52)]);
export const dict = (items: Readonly<Record<string, Piece>>): Piece =>
  Buffer.concat([op(0x7d), op(0x28), ...Object.entries(items).flatMap(([key, value]) => [text(key), value]), op(0x75)]);

/** A tensor over storage `key`, which has `elements` elements. */
export function tensor(
  storage: { readonly kind: string; readonly key: string; readonly elements: number },
  offset: number,
  shape: readonly number[],
  strides: readonly number[],
): Piece {
  const id = tuple(
    text('storage'),
    global('torch', storage.kind),
    text(storage.key),
    text('cpu'),
    int(storage.elements),
  );
  return call(
    global('torch._utils', '_rebuild_tensor_v2'),
    Buffer.concat([id, op(0x51)]),
    int(offset),
    tuple(...shape.map(int)),
    tuple(...strides.map(int)),
    op(0x89),
    call(global('collections', 'OrderedDict')),
  );
}

/** A whole pickle of protocol 2. */
export const pickle = (...pieces: readonly Piece[]): Buffer =>
  Buffer.concat([Buffer.from([0x80, 2]), ...pieces, op(0x2e)]);
