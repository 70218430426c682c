"""Hand-built terms of every kind in one batch, answered by the float64 reference. Called by generate.py.

terms/<model>.json lists sequences, each with its tokens (-1 - i: row i of its embeddings), terms and rank gates; every
tensor is {shape, dtype, offset} into terms/<model>.bin, where it lies as float32 (rows of overrides as uint32; values of
dtype bf16 or f16 are exact in it). The logits of a sequence lie at its `offset` as logits.py writes them, with its stride.
"""

import json
import os

import numpy as np
import torch
from safetensors.torch import load_file

from logits import random_prompts, write_row
from reference import F64, Reference, Term, Weights, take_apart
from tiny_models import MODELS, load_model, seed_of

STRIDE = 4
KINDS_ORDER = ('attnNorm', 'mlpNorm', 'qNorm', 'kNorm', 'postAttnNorm', 'postMlpNorm')


class Maker:
    """Random terms for one model."""

    def __init__(self, weights: Weights, seed: int) -> None:
        self.w = weights
        self.random = np.random.default_rng(seed)
        c, d = weights.config, weights.head_dim
        q, kv, h = c.num_attention_heads * d, c.num_key_value_heads * d, c.hidden_size
        self.shapes = {
            'q': (q, h), 'k': (kv, h), 'v': (kv, h), 'o': (h, q), 'gate': (c.intermediate_size, h),
            'up': (c.intermediate_size, h), 'down': (h, c.intermediate_size), 'head': (c.vocab_size, h),
        }

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        """Float32 values, so that the file holds them exactly."""
        return torch.from_numpy((mean + std * self.random.standard_normal(shape)).astype(np.float32)).to(F64)

    def lowrank(self, layer: int, site: str, rank: int, dtype: str = 'f32', diagonals: bool = False) -> Term:
        if site == 'embedding':
            out, wide, std = self.w.config.hidden_size, self.w.config.vocab_size, 0.3
        else:
            (out, wide), std = self.shapes[site], self.shapes[site][1] ** -0.5
        parts = {'a': self.rounded(self.normal(rank, wide, std=std), dtype), 'b': self.rounded(self.normal(out, rank, std=0.4), dtype)}
        if diagonals:
            parts |= {'mid': self.normal(rank, mean=1.0), 'outDiag': self.normal(out, std=0.5, mean=1.0)}
        return Term('lowrank', layer, site, parts, {'scale': 0.75, 'dtype': dtype})

    def rounded(self, values: torch.Tensor, dtype: str) -> torch.Tensor:
        kinds = {'f32': torch.float32, 'bf16': torch.bfloat16, 'f16': torch.float16}
        return values.to(kinds[dtype]).to(F64)

    def diag(self, layer: int, site: str, parts: str) -> Term:
        out, wide = self.shapes[site]
        made = {'h': (wide, 1.0), 'g': (out, 1.0), 'c': (out, 0.0)}
        return Term('diag', layer, site, {part: self.normal(made[part][0], std=0.4, mean=made[part][1]) for part in parts})

    def override(self, layer: int, site: str, rows: list[int] | None = None) -> Term:
        if rows is None:
            return Term('override', layer, site, {'values': self.normal(1, len(self.w.matrices[(layer, site)]), std=0.3, mean=1.0)})
        values = self.normal(len(rows), self.w.config.hidden_size, std=0.2)
        return Term('override', layer, site, {'rows': torch.tensor(rows), 'values': values})

    def prefix(self, layer: int, length: int, gate: float | None = None) -> Term:
        shape = (length, self.w.config.num_key_value_heads, self.w.head_dim)
        options = {} if gate is None else {'gate': float(np.float32(gate))}
        return Term('prefix', layer, 'attention', {'k': self.normal(*shape), 'v': self.normal(*shape)}, options)

    def bottleneck(self, layer: int, site: str, placement: str, activation: str, biases: bool = True) -> Term:
        h, m = self.w.config.hidden_size, 6
        parts = {'down': self.normal(m, h, std=h**-0.5), 'up': self.normal(h, m, std=0.4)}
        if biases:
            parts |= {'downBias': self.normal(m, std=0.3), 'upBias': self.normal(h, std=0.3)}
        return Term('bottleneck', layer, site, parts, {'placement': placement, 'activation': activation, 'scale': 0.5})

    def everything(self, layers: list[int], prompt: list[int]) -> list[Term]:
        """Kinds on top of each other: what holds for one alone must hold for all together."""
        first, last = layers[0], layers[-1]
        return [
            self.lowrank(first, 'q', 5), self.diag(first, 'q', 'hgc'), self.lowrank(first, 'q', 2), self.lowrank(last, 'down', 3, 'bf16'),
            self.diag(last, 'down', 'h'), self.override(first, 'attnNorm'), self.override(-1, 'embedding', sorted({prompt[1], prompt[4]})),
            self.lowrank(-1, 'embedding', 2), self.override(-1, 'head', [0, 17, 300]), self.lowrank(-1, 'head', 4),
            self.bottleneck(first, 'residualAttn', 'parallel', 'tanh'), self.bottleneck(last, 'residualMlp', 'sequential', 'silu'),
        ]


def sequences(maker: Maker, layers: list[int], prompts: list[list[int]], shared_prefix: bool) -> dict[str, tuple[list[Term], dict]]:
    """Name → terms and the rest of a sequence. `layers` are the ones that terms go to."""
    first, last = layers[0], layers[-1]
    norms = [maker.override(last, name) for name in KINDS_ORDER if (last, name) in maker.w.matrices]
    bottlenecks = [
        maker.bottleneck(first, 'residualAttn', 'sequential', 'relu'), maker.bottleneck(first, 'residualMlp', 'parallel', 'gelu'),
        maker.bottleneck(last, 'residualAttn', 'parallel', 'gelu_tanh'), maker.bottleneck(last, 'residualMlp', 'sequential', 'identity', False),
    ]
    loras = [maker.lowrank(last, site, rank) for site, rank in zip(('q', 'k', 'v', 'o', 'gate', 'up', 'down'), (8, 3, 1, 16, 2, 5, 17))]
    made = {
        'base': ([], {}),
        'lowrank': (loras + [maker.lowrank(first, 'q', 4, 'f16', True), maker.lowrank(-1, 'head', 3, 'bf16', True)], {}),
        'diag h on q only': ([maker.diag(first, 'q', 'h')], {}),
        'diag g': ([maker.diag(first, 'k', 'g'), maker.diag(last, 'up', 'g'), maker.diag(-1, 'head', 'g')], {}),
        'diag': ([maker.diag(first, 'o', 'hc'), maker.diag(last, 'down', 'hg'), maker.diag(last, 'v', 'c'), maker.diag(last, 'gate', 'hgc')], {}),
        'override norms': (norms + [maker.override(-1, 'finalNorm')], {}),
        'override rows': ([maker.override(-1, 'head', [3, 99, 318]), maker.override(-1, 'embedding', sorted(set(prompts[6][:3])))], {}),
        'prefix gated': ([maker.prefix(last, 3, 0.6), maker.prefix(first, 18, -1.25)], {}),
        'bottleneck': (bottlenecks, {}),
        'everything': (maker.everything(layers, prompts[9]), {}),
        'rank gates': (loras + [maker.lowrank(-1, 'embedding', 4)], {'gates': maker.normal(len(prompts[10]), 6)}),
        'embedding rows': ([maker.lowrank(first, 'v', 3)], {'embeddings': maker.normal(3, maker.w.config.hidden_size, std=0.5)}),
    }
    if shared_prefix:
        made['prefix'] = ([maker.prefix(layer, 5) for layer in range(maker.w.config.num_hidden_layers)], {})
        made['prefix and gated prefix'] = (
            [maker.prefix(layer, 19) for layer in layers] + [maker.lowrank(last, 'k', 2), maker.diag(first, 'q', 'g')], {}
        )
    return made


class Writer:
    def __init__(self) -> None:
        self.bytes = bytearray()

    def tensor(self, values: torch.Tensor, dtype: str = 'f32') -> dict:
        place = {'shape': list(values.shape), 'dtype': dtype, 'offset': len(self.bytes)}
        self.bytes += values.numpy().astype('<u4' if dtype == 'u32' else '<f4').tobytes()
        return place

    def term(self, term: Term) -> dict:
        dtypes = {'a': term.options.get('dtype', 'f32'), 'b': term.options.get('dtype', 'f32'), 'rows': 'u32'}
        parts = {name: self.tensor(values, dtypes.get(name, 'f32')) for name, values in term.parts.items()}
        options = {name: value for name, value in term.options.items() if name != 'dtype'}
        return {'kind': term.kind, 'layer': term.layer, 'site': term.site, **options, **parts}

    def logits(self, values: torch.Tensor) -> int:
        offset = len(self.bytes)
        for index, row in enumerate(values.numpy()):
            self.bytes += write_row(row, index, STRIDE)
        # Tensors that follow start at a multiple of four.
        self.bytes += bytes(-len(self.bytes) % 4)
        return offset


def write_terms(name: str, layers: list[int], shared_prefix: bool, folder: str, out: str) -> None:
    spec = next(spec for spec in MODELS if spec.name == name)
    weights = take_apart(load_model(spec, folder, F64))
    vocab = weights.config.vocab_size
    prompts = random_prompts(seed_of(name, 'term prompts'), [9, 12, 7, 20, 5, 11, 8, 24, 13, 10, 14, 9, 22, 16], vocab)
    maker = Maker(weights, seed_of(name, 'terms'))
    writer, entries = Writer(), []
    base_logits = {}
    for index, (label, (terms, rest)) in enumerate(sequences(maker, layers, prompts, shared_prefix).items()):
        tokens = prompts[index]
        if 'embeddings' in rest:
            tokens = [-1, -2, -3] + tokens
        logits = Reference(weights, terms, rest.get('gates')).logits(tokens, rest.get('embeddings'))
        base_logits[label] = Reference(weights, []).logits(tokens, rest.get('embeddings'))
        effect = float((logits - base_logits[label]).abs().max() / logits.abs().max())
        if terms and effect < 0.02:
            raise SystemExit(f'{name}: {label} moves the logits by {effect:.4f} of max|logit| only; a test would not see it')
        entries.append(
            {
                'name': label, 'tokens': tokens, 'terms': [writer.term(term) for term in terms],
                **{key: writer.tensor(values) for key, values in rest.items()}, 'stride': STRIDE, 'offset': writer.logits(logits),
            }
        )
    os.makedirs(f'{out}/terms', exist_ok=True)
    with open(f'{out}/terms/{name}.bin', 'wb') as file:
        file.write(bytes(writer.bytes))
    with open(f'{out}/terms/{name}.json', 'w', encoding='utf-8') as file:
        lines = ',\n'.join('    ' + json.dumps(entry, separators=(',', ':'), ensure_ascii=False) for entry in entries)
        file.write(f'{{\n  "model": "{name}", "vocab": {vocab},\n  "sequences": [\n{lines}\n  ]\n}}\n')


def lora_terms(folder: str) -> list[Term]:
    """A saved adapter of one rank as terms, read from its tensors and config alone."""
    tensors = load_file(f'{folder}/adapter_model.safetensors')
    with open(f'{folder}/adapter_config.json', encoding='utf-8') as file:
        config = json.load(file)
    sites = {f'{name}_proj': name for name in ('q', 'k', 'v', 'o', 'gate', 'up', 'down')}
    terms = []
    for key in (key for key in tensors if key.endswith('lora_A.weight')):
        module = key.removeprefix('base_model.model.').removesuffix('.lora_A.weight').split('.')
        scale = config['lora_alpha'] / (config['r'] ** 0.5 if config['use_rslora'] else config['r'])
        parts = {'a': tensors[key].to(F64), 'b': tensors[key.replace('lora_A', 'lora_B')].to(F64)}
        terms.append(Term('lowrank', int(module[2]), sites[module[-1]], parts, {'scale': scale}))
    return terms


def check_reference(folder_of: dict[str, str]) -> None:
    """The reference against transformers, and with LoRA terms against peft, on every model that has the adapter."""
    from tiny_adapters import load_adapter

    for spec in MODELS:
        folder = folder_of[spec.name]
        model = load_model(spec, folder, F64)
        weights = take_apart(model)
        tokens = random_prompts(seed_of(spec.name, 'reference'), [48], weights.config.vocab_size)[0]
        pairs = [([], model)]
        for name in ('qkvo-r8', 'all-r3-rslora'):
            if name in spec.adapters:
                adapter = f'{folder}/adapters/{name}'
                pairs.append((lora_terms(adapter), load_adapter(load_model(spec, folder, F64), adapter, F64)))
        for terms, theirs in pairs:
            with torch.no_grad():
                expected = theirs(torch.tensor([tokens]), use_cache=False).logits[0]
            found = Reference(weights, terms).logits(tokens)
            worst = float((found - expected).abs().max() / expected.abs().max())
            if worst > 5e-6:
                raise SystemExit(f'{spec.name}: the float64 reference differs by {worst:.1e} of max|logit|')


def write(out: str) -> None:
    check_reference({spec.name: f'{out}/models/{spec.name}' for spec in MODELS})
    write_terms('llama3-bias', [0, 1], True, f'{out}/models/llama3-bias', out)
    # Gemma's windows leave open what a prefix before position 0 means for a local layer, so there is none here.
    write_terms('gemma3', [1, 5], False, f'{out}/models/gemma3', out)
