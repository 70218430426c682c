"""Hand-built terms of every kind in one batch, answered by the float64 reference. Called by generate.py.

terms/<model>.json lists sequences, each with its tokens (-1 - i: row i of its embeddings), terms and rank gates; every
tensor is {shape, dtype, offset} into terms/<model>.bin, where it lies as float32 (indices as uint32; values of dtype bf16,
f16 and ternary are exact in it; int8 as its float32 scales, a row each, and then its float32 integers). The logits of a sequence lie at its `offset` as logits.py writes them, with its stride.
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

    def coded(self, dtype: str, *shape: int, std: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Values of a codec, and the scales of int8."""
        if dtype == 'ternary':
            scale = float(np.float32(1.6 * std))
            return scale * torch.sign(self.normal(*shape)) * (self.normal(*shape).abs() > 0.8), None
        if dtype == 'int8':
            scales = self.normal(shape[0], 1, std=0.3, mean=1.0).to(torch.float32).to(F64) * std / 64
            scales = scales.to(torch.float32).to(F64)
            return scales * self.normal(*shape, std=64).round().clamp(-127, 127), scales[:, 0]
        return self.rounded(self.normal(*shape, std=std), dtype), None

    def coded_term(self, term: Term, coded: dict[str, tuple[str, tuple[torch.Tensor, torch.Tensor | None]]]) -> Term:
        """The term with these parts added: name → codec and what `coded` gave."""
        for name, (dtype, (values, scales)) in coded.items():
            term.parts[name] = values
            term.options.setdefault('dtypes', {})[name] = dtype
            if scales is not None:
                term.options.setdefault('scales', {})[name] = scales
        return term

    def coded_lowrank(self, layer: int, site: str, rank: int, a: str, b: str, matrix: bool = False) -> Term:
        out, wide = self.shapes[site]
        term = Term('lowrank', layer, site, {}, {'scale': 0.5})
        factors = {'a': (a, self.coded(a, rank, wide, std=wide**-0.5)), 'b': (b, self.coded(b, out, rank, std=0.5))}
        if matrix:
            factors['midMatrix'] = ('f32', (self.normal(rank, rank, std=rank**-0.5), None))
        return self.coded_term(term, factors)

    def index(self, count: int, below: int) -> torch.Tensor:
        return torch.from_numpy(np.sort(self.random.permutation(below)[:count]).astype(np.int64))

    def rowcol(self, layer: int, site: str, side: str, count: int, dtype: str = 'f32') -> Term:
        out, wide = self.shapes[site]
        term = Term('rowcol', layer, site, {'index': self.index(count, wide if side == 'in' else out)}, {'placement': side, 'scale': 1.25})
        shape = (out, count) if side == 'in' else (count, wide)
        std = count**-0.5 if side == 'in' else 1.5 * wide**-0.5
        return self.coded_term(term, {'values': (dtype, self.coded(dtype, *shape, std=std))})

    def sparse(self, layer: int, site: str, count: int, dtype: str = 'f32') -> Term:
        out, wide = self.shapes[site]
        places = self.index(count, out * wide)
        start = torch.cat((torch.zeros(1, dtype=torch.int64), torch.bincount(places // wide, minlength=out).cumsum(0)))
        term = Term('sparse', layer, site, {'rowStart': start, 'columns': places % wide}, {'scale': 0.75})
        std = 0.7 * (out / count) ** 0.5
        return self.coded_term(term, {'values': (dtype, self.coded(dtype, 1, count, std=std))})

    def chain(self, layer: int, site: str, placement: str) -> Term:
        """Blocks of four near the identity on shuffled values for pre and post; through a narrow middle for additive."""
        out, wide = self.shapes[site]
        options = {'placement': placement, 'scale': 0.5 if placement == 'additive' else 1.0}
        if placement == 'additive':
            # Each middle value is read twice; some inputs are not read at all.
            parts = {
                'gather0': torch.from_numpy(self.random.integers(0, wide, 24)), 'blocks0': self.normal(8, 2, 3, std=0.6),
                'gather1': torch.from_numpy(self.random.integers(0, 16, 32)), 'blocks1': self.normal(4, out // 4 + 1, 8, std=0.35),
                'output': torch.from_numpy(self.random.permutation(4 * (out // 4 + 1))[:out]),
            }
            return Term('blockdiag', layer, site, parts, {**options, 'stages': 2})
        width = wide if placement == 'pre' else out
        order = torch.from_numpy(self.random.permutation(width))
        back = torch.argsort(order)
        blocks = [(torch.eye(4, dtype=F64) + self.normal(width // 4, 4, 4, std=0.25)).to(torch.float32).to(F64) for _ in range(2)]
        if placement == 'pre':
            return Term('blockdiag', layer, site, {'blocks0': blocks[0], 'gather1': order, 'blocks1': blocks[1], 'output': back}, {**options, 'stages': 2})
        return Term('blockdiag', layer, site, {'gather0': order, 'blocks0': blocks[0], 'output': back}, {**options, 'stages': 1})

    def normed(self, term: Term) -> Term:
        """A bottleneck that reads its input through a LayerNorm."""
        h = self.w.config.hidden_size
        term.parts |= {'normWeight': self.normal(h, std=0.3, mean=1.0), 'normBias': self.normal(h, std=0.2)}
        term.options['normEps'] = 1e-5
        return term

    def mixture(self, first: int, last: int) -> list[Term]:
        """Every kind of a linear on one site, in no order of theirs."""
        return [
            self.chain(first, 'q', 'additive'), self.sparse(first, 'q', 90), self.chain(first, 'q', 'post'), self.diag(first, 'q', 'hgc'),
            self.rowcol(first, 'q', 'out', 5), self.lowrank(first, 'q', 3), self.chain(first, 'q', 'pre'), self.rowcol(first, 'q', 'in', 4, 'bf16'),
            self.sparse(last, 'down', 60), self.chain(last, 'down', 'pre'), self.lowrank(last, 'down', 2, 'bf16'), self.rowcol(last, 'down', 'in', 7),
            self.diag(last, 'v', 'gc'), self.chain(last, 'v', 'post'), self.rowcol(last, 'k', 'out', 3), self.lowrank(last, 'k', 2),
        ]

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
    rowcols = [
        maker.rowcol(first, 'q', 'in', 9), maker.rowcol(first, 'q', 'out', 6, 'ternary'), maker.rowcol(last, 'o', 'in', 10, 'int8'),
        maker.rowcol(last, 'down', 'in', 12, 'bf16'), maker.rowcol(last, 'gate', 'out', 8, 'f16'), maker.rowcol(-1, 'head', 'in', 3, 'ternary'),
        maker.rowcol(-1, 'head', 'out', 4, 'int8'),
    ]
    coded = [
        maker.coded_lowrank(first, 'q', 6, 'ternary', 'ternary'), maker.coded_lowrank(first, 'v', 3, 'int8', 'int8'),
        maker.coded_lowrank(last, 'gate', 5, 'ternary', 'bf16'), maker.coded_lowrank(last, 'up', 4, 'f32', 'ternary'),
        maker.coded_lowrank(last, 'down', 33, 'int8', 'ternary'),
    ]
    normed = [
        maker.bottleneck(first, 'residualAttn', 'sequential', 'relu'), maker.normed(maker.bottleneck(first, 'residualAttn', 'sequential', 'gelu')),
        maker.normed(maker.bottleneck(last, 'residualMlp', 'parallel', 'silu')), maker.bottleneck(last, 'residualMlp', 'sequential', 'tanh', False),
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
        'rowcol': (rowcols, {}),
        'sparse': ([maker.sparse(first, 'v', 70, 'bf16'), maker.sparse(last, 'up', 120), maker.sparse(last, 'o', 300, 'ternary')], {}),
        'blockdiag pre': ([maker.chain(first, 'k', 'pre'), maker.chain(last, 'gate', 'pre'), maker.chain(last, 'o', 'pre')], {}),
        'blockdiag post': ([maker.chain(first, 'v', 'post'), maker.chain(last, 'up', 'post'), maker.chain(last, 'q', 'post')], {}),
        'blockdiag additive': ([maker.chain(first, 'v', 'additive'), maker.chain(last, 'down', 'additive'), maker.chain(last, 'gate', 'additive')], {}),
        'coded lowrank': (coded, {}),
        'mid matrix and rank gates': (
            [maker.coded_lowrank(last, 'o', 7, 'f32', 'bf16', True), maker.coded_lowrank(first, 'up', 3, 'ternary', 'int8', True)],
            {'gates': maker.normal(len(prompts[17]), 6)},
        ),
        'bottlenecks with norms': (normed, {}),
        'mixture': (maker.mixture(first, last), {}),
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
        dense = {'a': term.options.get('dtype', 'f32'), 'b': term.options.get('dtype', 'f32')}
        dtypes = {**dense, **term.options.get('dtypes', {})}
        scales = term.options.get('scales', {})
        parts = {}
        for name, values in term.parts.items():
            dtype = dtypes.get(name, 'f32') if values.dtype == F64 else 'u32'
            if name in scales:
                place = self.tensor(scales[name])
                self.tensor((values / scales[name][:, None]).round())
                parts[name] = {**place, 'shape': list(values.shape), 'dtype': dtype}
            else:
                parts[name] = self.tensor(values, dtype)
        options = {name: value for name, value in term.options.items() if name not in ('dtype', 'dtypes', 'scales')}
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
    prompts = random_prompts(seed_of(name, 'term prompts'), [9, 12, 7, 20, 5, 11, 8, 24, 13, 10, 14, 9, 22, 16, 8, 9, 12, 10, 9, 16, 9, 22, 16], vocab)
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
