"""Compares two folders of goldens: `python compare.py COMMITTED REGENERATED`. Exits 1 and says what differs. run.sh calls it.

Weights, GGUF files, tokenizers and terms must be the same byte for byte; logits within 4e-5 of max|logit| (two units of
their int16 and the rounding of float32 sums on another machine); greedy tokens up to the first whose margin is below 1e-4;
other JSON the same but for floats within 1e-6 + 1e-4 relative.
"""

import gzip
import json
import os
import sys

import numpy as np

LOGIT_TOLERANCE = 4e-5
GREEDY = 32
MARGIN = 1e-4


def files_of(folder: str) -> set[str]:
    found = set()
    for place, _, names in os.walk(folder):
        found |= {os.path.relpath(os.path.join(place, name), folder) for name in names if name != 'README.md'}
    return found


def read_json(path: str) -> object:
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def read_bytes(path: str) -> bytes:
    with open(path, 'rb') as file:
        return file.read()


def read_unpacked(path: str) -> bytes:
    """Another zlib may pack the same bytes otherwise."""
    with gzip.open(path) as file:
        return file.read()


def same_json(a: object, b: object, where: str) -> list[str]:
    if isinstance(a, float) and isinstance(b, (float, int)):
        return [] if abs(a - b) <= 1e-6 + 1e-4 * abs(a) else [f'{where}: {a} and {b}']
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [line for key in a for line in same_json(a[key], b[key], f'{where}.{key}')]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b)) for line in same_json(x, y, f'{where}[{i}]')]
    return [] if a == b else [f'{where}: {str(a)[:80]} and {str(b)[:80]}']


def agreed(a: dict, b: dict) -> int:
    """How many greedy tokens agree before an allowed difference; -1: they differ where they must not."""
    for i, (x, y) in enumerate(zip(a['greedy'], b['greedy'])):
        if x != y:
            return i if a['margins'][i] < MARGIN else -1
    return len(a['greedy'])


def rows_at(data: bytes, offset: int, rows: int, vocab: int, stride: int) -> list[np.ndarray]:
    """Every row as [max, logsumexp, logits…]."""
    result = []
    for row in range(rows):
        count = len(range(row % stride, vocab, stride))
        head = np.frombuffer(data, '<f4', 2, offset).astype(np.float64)
        values = np.frombuffer(data, '<i2', count, offset + 8) * (head[0] / 32767)
        result.append(np.concatenate((head, values)))
        offset += 8 + 2 * count
    return result


def same_rows(a: list[np.ndarray], b: list[np.ndarray], where: str) -> list[str]:
    for i, (x, y) in enumerate(zip(a, b)):
        worst = float(np.abs(x - y).max() / x[0])
        if worst > LOGIT_TOLERANCE:
            return [f'{where} row {i}: differs by {worst:.1e} of max|logit|']
    return []


def same_cases(old: str, new: str, stem: str) -> list[str]:
    """A goldens.json with its .bin."""
    a, b = read_json(f'{old}/{stem}.json'), read_json(f'{new}/{stem}.json')
    data_a, data_b = read_bytes(f'{old}/{stem}.bin'), read_bytes(f'{new}/{stem}.bin')
    if len(a['cases']) != len(b['cases']):
        return [f'{stem}: {len(a["cases"])} and {len(b["cases"])} cases']
    found = []
    for i, (x, y) in enumerate(zip(a['cases'], b['cases'])):
        where = f'{stem} case {i}'
        fixed = ('prompt', 'adapter', 'seed', 'text', 'user', 'stride', 'offset')
        found += same_json({k: x.get(k) for k in fixed}, {k: y.get(k) for k in fixed}, where)
        tokens = agreed(x, y)
        if tokens < 0:
            found.append(f'{where}: greedy tokens differ where the margin is above {MARGIN}')
            continue
        if 'offset' not in x:
            continue  # tokens only
        # The default model's cases have more tokens than rows.
        rows = len(x['prompt']) + min(tokens, GREEDY)
        pair = [rows_at(d, x['offset'], rows, a['vocab'], x['stride']) for d in (data_a, data_b)]
        found += same_rows(*pair, where)
    return found


def same_terms(old: str, new: str, stem: str) -> list[str]:
    a, b = read_json(f'{old}/{stem}.json'), read_json(f'{new}/{stem}.json')
    data_a, data_b = read_bytes(f'{old}/{stem}.bin'), read_bytes(f'{new}/{stem}.bin')
    found = same_json(a, b, stem)
    if found or len(data_a) != len(data_b):
        return found or [f'{stem}.bin: {len(data_a)} and {len(data_b)} bytes']
    start = 0
    for entry in a['sequences']:
        # Tensors of the sequence, exactly; then its logits.
        if data_a[start : entry['offset']] != data_b[start : entry['offset']]:
            found.append(f'{stem} {entry["name"]}: tensors differ')
        rows = len(entry['tokens'])
        pair = [rows_at(d, entry['offset'], rows, a['vocab'], entry['stride']) for d in (data_a, data_b)]
        found += same_rows(*pair, f'{stem} {entry["name"]}')
        sizes = [8 + 2 * len(range(row % entry['stride'], a['vocab'], entry['stride'])) for row in range(rows)]
        start = entry['offset'] + sum(sizes) + (-sum(sizes) % 4)
    return found


def same_kind(old: str, new: str, stem: str) -> list[str]:
    """golden.json and golden.bin of an adapter kind; form: kinds.py."""
    a, b = read_json(f'{old}/{stem}.json'), read_json(f'{new}/{stem}.json')
    columns = len(range(0, a['vocab'], a['stride']))
    x, y = (np.frombuffer(read_bytes(f'{place}/{stem}.bin'), '<f4').reshape(-1, columns) for place in (old, new))
    # The effect is rounded to three digits.
    found = same_json({**a, 'effect': 0}, {**b, 'effect': 0}, stem)
    if found or x.shape != y.shape:
        return found or [f'{stem}.bin: {len(x)} and {len(y)} rows']
    worst = float((np.abs(x - y).max(axis=1) / np.abs(x).max(axis=1)).max())
    return [f'{stem}: differs by {worst:.1e} of max|logit|'] if worst > LOGIT_TOLERANCE else []


def same_file(old: str, new: str, name: str) -> list[str]:
    stem, kind = os.path.splitext(name)
    in_old = os.path.exists(f'{old}/{stem}.json') and os.path.exists(f'{old}/{stem}.bin')
    if in_old and kind == '.bin' and not stem.startswith('blocks/'):
        return []  # compared with its .json
    if in_old and kind == '.json' and not stem.startswith('blocks/'):
        part = stem.split('/')[0]
        return {'terms': same_terms, 'kinds': same_kind, 's2ft': same_kind}.get(part, same_cases)(old, new, stem)
    if kind == '.json':
        return same_json(read_json(f'{old}/{name}'), read_json(f'{new}/{name}'), name)
    read = read_unpacked if kind == '.gz' else read_bytes
    return [] if read(f'{old}/{name}') == read(f'{new}/{name}') else [f'{name}: bytes differ']


def main() -> None:
    old, new = sys.argv[1], sys.argv[2]
    # Only folders that were regenerated are compared, so that a part can be checked alone.
    parts = sorted(os.listdir(new))
    names = {part: files_of(f'{old}/{part}') for part in parts}, {part: files_of(f'{new}/{part}') for part in parts}
    before, after = ({f'{part}/{name}' for part in parts for name in side[part]} for side in names)
    # With ORACLE_KINDS only some kinds were regenerated; the others are not asked for.
    if os.environ.get('ORACLE_KINDS'):
        made = {os.path.dirname(name) for name in after}
        before = {name for name in before if not name.startswith('kinds/') or os.path.dirname(name) in made}
    # The GGUF files lie in the models' folders and are a part of their own.
    if not any('/gguf/' in name for name in after):
        before = {name for name in before if '/gguf/' not in name}
    found = [f'{name}: only committed' for name in sorted(before - after)]
    found += [f'{name}: only regenerated' for name in sorted(after - before)]
    for name in sorted(before & after):
        found += same_file(old, new, name)
    print('\n'.join(found) or f'{len(before)} files agree')
    sys.exit(1 if found else 0)


if __name__ == '__main__':
    main()
