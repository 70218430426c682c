"""Kinds in our own formats (docs/formats): S2FT, and ComPEFT of four kinds in the paper's mode with one threshold and one scale.

Beside a packed ComPEFT adapter lies `source`, the adapter that was compressed. The packed file is made here, by a numpy
transcription of the paper's Algorithm 1 and a writer of its own, and read back by the code block of docs/formats/compeft.md. The
logits are peft's, of a plain LoRA or IA3 with the values that were read; of S2FT and SFT, those of the base plus the values.
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
from tiny_models import round_bf16

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


def golomb(signs: np.ndarray, b: int, signed: bool) -> list[int]:
    bits, before = [], -1
    for position in np.flatnonzero(signs):
        gap = int(position) - before - 1
        bits += [1] * (gap >> b) + [0] + [gap >> i & 1 for i in range(b)]
        bits += [int(signs[position] < 0)] if signed else []
        before = int(position)
    return bits


def pack(signs: dict[str, np.ndarray], scale: float, indices: dict[str, np.ndarray] | None = None) -> bytes:
    """`indices`: ascending numbers, written as the index that ends at the last of them."""
    sets = {name: np.bincount(members).astype(np.int8) for name, members in (indices or {}).items()}
    entries = {**signs, **sets}
    directory, bits, before = b'CPFT\x01' + varint(len(entries)), [], b''
    for name in sorted(entries):
        flat, raw, signed = entries[name].ravel(), name.encode(), name not in sets
        shared = len(os.path.commonprefix([raw, before]))
        b = min(range(31), key=lambda b: len(golomb(flat, b, signed)))
        count = int(np.count_nonzero(flat))
        directory += varint(shared) + varint(len(raw) - shared) + raw[shared:] + bytes([entries[name].ndim + (0 if signed else 128)])
        directory += b''.join(varint(size) for size in entries[name].shape) + varint(count)
        if count:
            directory += bytes([b]) + (struct.pack('<f', scale) if signed else b'')
            bits += golomb(flat, b, signed)
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


def save_packed(work: Work, payload: bytes, source_type: str, source: dict, density: float, alpha: float) -> dict[str, np.ndarray]:
    """Writes the packed adapter and returns its entries as the documented reader gives them."""
    save_tensors(work.folder, {'compeft': torch.frombuffer(bytearray(payload), dtype=torch.uint8)})
    about = {'density': density, 'alpha': alpha, 'scope': 'global'}
    save_config(work, {
        'peft_type': 'COMPEFT', 'compeft_version': 1, 'task_type': 'CAUSAL_LM', 'source_type': source_type, 'source': source,
        'compression': about,
    })
    return documented_reader()(work.folder)[1]


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
    read = save_packed(work, pack(signs, scale), plain['peft_type'], {key: plain[key] for key in keep}, density, alpha)
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


def save_source(work: Work, config: dict, tensors: dict[str, torch.Tensor]) -> None:
    os.makedirs(f'{work.folder}/source')
    save_tensors(f'{work.folder}/source', tensors)
    with open(f'{work.folder}/source/adapter_config.json', 'w', encoding='utf-8') as file:
        json.dump({'base_model_name_or_path': work.spec.name, **config}, file, indent=2, sort_keys=True)


def random_tensor(work: Work, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return round_bf16(0.2 * work.random(name).standard_normal(shape))


def compeft_s2ft(work: Work) -> torch.nn.Module:
    """Columns of down_proj and rows of v_proj; the model is the base with the compressed values added to its weights."""
    model = work.load()
    values, indices = {}, {}
    for path, part, count in [('mlp.down_proj', 'columns', 9), ('self_attn.v_proj', 'rows', 7)]:
        for layer in range(2):
            name = f'model.layers.{layer}.{path}.s2ft_{part}'
            weight = model.get_submodule(f'model.layers.{layer}.{path}').weight
            chosen = work.random(f'{name}.index').permutation(weight.shape[1 if part == 'columns' else 0])[:count]
            indices[f'{name}.index'] = np.sort(chosen)
            shape = (weight.shape[0], count) if part == 'columns' else (count, weight.shape[1])
            values[f'{name}.values'] = random_tensor(work, name, shape)
    numbers = {name: torch.from_numpy(members.astype(np.int32)) for name, members in indices.items()}
    save_source(work, {'peft_type': 'S2FT', 's2ft_version': 1}, {**numbers, **{k: v.to(torch.bfloat16) for k, v in values.items()}})
    density, alpha = 0.3, 1.0
    signs, scale = algorithm_1({name: value.numpy() for name, value in values.items()}, density, alpha)
    read = save_packed(work, pack(signs, scale, indices), 'S2FT', {}, density, alpha)
    with torch.no_grad():
        for name in values:
            weight = model.get_submodule(name.split('.s2ft_')[0]).weight
            members, delta = read[name.replace('.values', '.index')], torch.from_numpy(read[name])
            if '_columns' in name:
                weight[:, members] += delta
            else:
                weight[members] += delta
    return model


def compeft_sft(work: Work) -> torch.nn.Module:
    """Single entries of q_proj and up_proj; the model is the base with the compressed values added to its weights."""
    model = work.load()
    flat, values = {}, {}
    for path in ('self_attn.q_proj', 'mlp.up_proj'):
        for layer in range(2):
            name = f'base_model.model.model.layers.{layer}.{path}.sft_delta'
            size = model.get_submodule(f'model.layers.{layer}.{path}').weight.numel()
            flat[name] = np.sort(work.random(f'{name}.indices').permutation(size)[: size // 12])
            values[f'{name}.values'] = random_tensor(work, name, (size // 12,))
    numbers = {f'{name}.indices': torch.from_numpy(members.astype(np.int32)) for name, members in flat.items()}
    save_source(work, {'peft_type': 'SFT', 'density': 0.08}, {**numbers, **values})
    density, alpha = 0.4, 2.0
    chosen, scale = algorithm_1({name: value.numpy() for name, value in values.items()}, density, alpha)
    signs = {name: np.zeros(members[-1] + 1, dtype=np.int8) for name, members in flat.items()}
    for name, members in flat.items():
        signs[name][members] = chosen[f'{name}.values']
    read = save_packed(work, pack(signs, scale), 'SFT', {}, density, alpha)
    with torch.no_grad():
        for name, delta in read.items():
            weight = model.get_submodule(name.removeprefix('base_model.model.').removesuffix('.sft_delta')).weight
            weight.view(-1)[: delta.size] += torch.from_numpy(delta)
    return model


def s2ft(work: Work):
    return s2ft_goldens.make_kind(work)


KINDS = [
    Kind('compeft-lora', MODELS, compeft_lora),
    Kind('compeft-ia3', MODELS, compeft_ia3),
    Kind('compeft-s2ft', MODELS, compeft_s2ft),
    Kind('compeft-sft', MODELS, compeft_sft),
    Kind('s2ft', MODELS, s2ft),
]
