/** JSON in pieces: a report of many requests is longer than one string should be, and writing it must not hold the loop. */

/** The same text as `JSON.stringify(value)`, but every array at the top of the object element by element. */
export function* jsonPieces(value: object): Generator<string> {
  let head = '{';
  for (const [key, part] of Object.entries(value) as [string, unknown][]) {
    if (part === undefined) continue;
    yield `${head}\n${JSON.stringify(key)}:`;
    head = ',';
    if (Array.isArray(part)) yield* arrayPieces(part);
    else yield JSON.stringify(part);
  }
  yield head === '{' ? '{}\n' : '\n}\n';
}

function* arrayPieces(elements: readonly unknown[]): Generator<string> {
  for (const [index, part] of elements.entries()) yield `${index === 0 ? '[' : ','}\n${JSON.stringify(part)}`;
  yield elements.length === 0 ? '[]' : ']';
}
