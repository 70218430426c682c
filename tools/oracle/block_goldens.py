"""Random blocks of every GGUF type and what gguf-py makes of them. Called by generate.py.

blocks/blocks.json lists, for each type, the number of values and two offsets into blocks/blocks.bin: the file bytes, and
the values as float32.
"""

import json
import os

import gguf
import numpy as np
from gguf.quants import dequantize

from tiny_models import seed_of

BLOCKS = 12
# Type → byte offsets of the half-precision scales in a block.
SCALES = {
    'Q8_0': [0], 'Q4_0': [0], 'Q4_1': [0, 2], 'Q5_0': [0], 'Q5_1': [0, 2], 'Q4_K': [0, 2], 'Q5_K': [0, 2], 'Q6_K': [208],
}
# Zero, the smallest and largest subnormal, the smallest normal number and 60000: what a converter may write at the edges.
EDGES = np.array([0.0, 2.0**-24, 2.0**-14 - 2.0**-24, 2.0**-14, 60000.0], dtype=np.float16)


def random_blocks(kind: str, generator: np.random.Generator) -> np.ndarray:
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = generator.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scales = (generator.standard_normal(BLOCKS) * 0.02).astype(np.float16)
        scales[: len(EDGES)] = EDGES if place == SCALES[kind][0] else scales[: len(EDGES)]
        scales[len(EDGES)] = -scales[len(EDGES) + 1]
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(BLOCKS, 2)
    return blocks


def plain_values(kind: str, generator: np.random.Generator) -> np.ndarray:
    values = (generator.standard_normal(256) * 10.0 ** generator.integers(-7, 4, 256)).astype(np.float32)
    if kind == 'F32':
        return values.view(np.uint8)
    if kind == 'F16':
        return values.astype(np.float16).view(np.uint8)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def write(out: str) -> None:
    os.makedirs(f'{out}/blocks', exist_ok=True)
    entries, data = [], bytearray()
    for kind in ['F32', 'F16', 'BF16', *SCALES]:
        generator = np.random.default_rng(seed_of('blocks', kind))
        raw = random_blocks(kind, generator) if kind in SCALES else plain_values(kind, generator).reshape(1, -1)
        values = dequantize(raw, gguf.GGMLQuantizationType[kind]).astype('<f4').reshape(-1)
        entries.append(
            {
                'type': kind.lower(), 'values': values.size, 'bytes': raw.size, 'bytesOffset': len(data),
                'valuesOffset': len(data) + raw.size,
            }
        )
        data += raw.tobytes() + values.tobytes()
    with open(f'{out}/blocks/blocks.bin', 'wb') as file:
        file.write(bytes(data))
    with open(f'{out}/blocks/blocks.json', 'w', encoding='utf-8') as file:
        json.dump(entries, file, indent=1)
        file.write('\n')
