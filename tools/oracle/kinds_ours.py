"""Kinds in our own formats (docs/formats): ComPEFT of a LoRA and of an IA3, in the paper's mode with one threshold and one scale.

Beside the packed adapter lies `source`, the adapter that was compressed. The packed file is made here, by a numpy transcription
of the paper's Algorithm 1 and a writer of its own, and read back by the code block of docs/formats/compeft.md; the logits are
peft's, of a plain adapter with the values that were read.
"""

import json
import os
import re
import shutil
import struct
import tempfile

import numpy as np
import torch
from peft import IA3Config, LoraConfig, PeftModel
from safetensors.torch import load_file

import s2ft_goldens
from kinds import Kind, Rule, Work, normal, peft_adapter, save_config, save_tensors

MODELS = ('llama-gqa', 'gemma3')


def algorithm_1(tensors: dict[str, np.ndarray], density: float, alpha: float) -> tuple[dict[str, np.ndarray], float]:
    """Signs (-1, 0, 1) of every tensor and the one scale, over all tensors flattened in the order of their names."""
    tau = np.concatenate([tensors[name].astype(np.float64).ravel() for name in sorted(tensors)])
    kth = np.sort(np.abs(tau))[tau.size - int(tau.size * density) - 1]
    signs = np.sign(tau) * (np.abs(tau) >= kth)
    assert np.count_nonzero(signs) >= int(tau.size * density) + 1 or kth == 0
    out, at = {}, 0
    for name in sorted(tensors):
        size = tensors[name].size
        out[name] = signs[at : at + size].astype(np.int8).reshape(tensors[name].shape)
        at += size
    return out, float(np.float32(alpha * tau.std(ddof=1)))


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def golomb(signs: np.ndarray, b: int) -> list[int]:
    bits, before = [], -1
    for position in np.flatnonzero(signs):
        gap = int(position) - before - 1
        bits += [1] * (gap >> b) + [0] + [gap >> i & 1 for i in range(b)] + [int(signs[position] < 0)]
        before = int(position)
    return bits


def pack(signs: dict[str, np.ndarray], scale: float) -> bytes:
    directory, bits, before = b'CPFT\x01' + varint(len(signs)), [], b''
    for name in sorted(signs):
        flat, raw = signs[name].ravel(), name.encode()
        shared = len(os.path.commonprefix([raw, before]))
        b = min(range(31), key=lambda b: len(golomb(flat, b)))
        count = int(np.count_nonzero(flat))
        directory += varint(shared) + varint(len(raw) - shared) + raw[shared:] + bytes([signs[name].ndim])
        directory += b''.join(varint(size) for size in signs[name].shape) + varint(count)
        if count:
            directory += bytes([b]) + struct.pack('<f', scale)
            bits += golomb(flat, b)
        before = raw
    return directory + np.packbits(np.array(bits, dtype=np.uint8), bitorder='little').tobytes()


def documented_reader():
    """read_compeft, as the page about the format has it."""
    page = os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../docs/formats/compeft.md')
    with open(page, encoding='utf-8') as file:
        code = re.search(r'```python\n(.*?)```', file.read(), re.DOTALL).group(1)
    scope: dict = {}
    exec(code, scope)
    return scope['read_compeft']


def compress(work: Work, config, rules: dict[str, Rule], init: float, density: float, alpha: float, keep: tuple[str, ...]) -> PeftModel:
    """Writes the source and its compression; returns peft's model with what was read from the packed file."""
    folder = work.folder
    peft_adapter(work, config, rules)
    os.makedirs(f'{folder}/source')
    for name in os.listdir(folder):
        if name != 'source':
            shutil.move(f'{folder}/{name}', f'{folder}/source/{name}')
    source = {key: value.to(torch.float32).numpy() for key, value in load_file(f'{folder}/source/adapter_model.safetensors').items()}
    with open(f'{folder}/source/adapter_config.json', encoding='utf-8') as file:
        plain = json.load(file)
    signs, scale = algorithm_1({key: value - np.float32(init) for key, value in source.items()}, density, alpha)
    payload = torch.frombuffer(bytearray(pack(signs, scale)), dtype=torch.uint8)
    save_tensors(folder, {'compeft': payload})
    kept = {key: plain[key] for key in keep}
    about = {'density': density, 'alpha': alpha, 'scope': 'global'}
    save_config(work, {
        'peft_type': 'COMPEFT', 'compeft_version': 1, 'task_type': 'CAUSAL_LM', 'source_type': plain['peft_type'], 'source': kept,
        'compression': about,
    })
    _, read = documented_reader()(folder)
    with tempfile.TemporaryDirectory() as dense:
        for key, sign in signs.items():
            if not np.array_equal(read[key], sign.astype(np.float32) * np.float32(scale)):
                raise SystemExit(f'{work.kind}: the documented reader gives other values for {key}')
        save_tensors(dense, {key: torch.from_numpy(np.float32(init) + value) for key, value in read.items()})
        shutil.copy(f'{folder}/source/adapter_config.json', f'{dense}/adapter_config.json')
        return PeftModel.from_pretrained(work.load(), dense).to(torch.float32).eval()


def compeft_lora(work: Work) -> PeftModel:
    config = LoraConfig(task_type='CAUSAL_LM', r=5, lora_alpha=10, lora_dropout=0.0, target_modules=['q_proj', 'v_proj', 'down_proj'])
    rules: dict[str, Rule] = {'lora_A': normal(0.2), 'lora_B': normal(0.2)}
    return compress(work, config, rules, 0.0, 0.2, 1.0, ('lora_alpha', 'r'))


def compeft_ia3(work: Work) -> PeftModel:
    config = IA3Config(task_type='CAUSAL_LM', target_modules=['k_proj', 'v_proj', 'down_proj'], feedforward_modules=['down_proj'])
    return compress(work, config, {'ia3_l': normal(0.3, 1.0)}, 1.0, 0.3, 1.5, ())


def s2ft(work: Work):
    return s2ft_goldens.make_kind(work)


KINDS = [Kind('compeft-lora', MODELS, compeft_lora), Kind('compeft-ia3', MODELS, compeft_ia3), Kind('s2ft', MODELS, s2ft)]
