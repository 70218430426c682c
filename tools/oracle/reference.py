"""The adapter IR evaluated in float64: a plain transcription of src/core/terms.ts, one sequence at a time, no batch, no
cache. Called by term_goldens.py. Without terms it must agree with transformers, with LoRA terms with peft (generate.py
checks both), so that what it says of the other terms can be trusted.
"""

import math
from dataclasses import dataclass, field

import torch

Site = tuple[int, str]
F64 = torch.float64


@dataclass
class Term:
    """`kind` and `site` as in src/core/terms.ts; parts are tensors by the names there, options everything else."""

    kind: str
    layer: int
    site: str
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)


@dataclass
class Weights:
    """A transformers model taken apart, in float64. Norm weights are effective ones (Gemma's 1 + w)."""

    config: object
    matrices: dict[Site, torch.Tensor]
    biases: dict[Site, torch.Tensor]
    # For each layer: inverse frequencies, factor of cos and sin, window (0: none).
    rope: list[tuple[torch.Tensor, float]]
    windows: list[int]
    embed_scale: float
    attn_scale: float
    head_dim: int


LAYER_NAMES = {
    'input_layernorm': 'attnNorm', 'self_attn.q_proj': 'q', 'self_attn.k_proj': 'k', 'self_attn.v_proj': 'v',
    'self_attn.q_norm': 'qNorm', 'self_attn.k_norm': 'kNorm', 'self_attn.o_proj': 'o', 'mlp.gate_proj': 'gate',
    'mlp.up_proj': 'up', 'mlp.down_proj': 'down',
}
# The second norm of a layer is the MLP's in all families but Gemma, which has two more.
PLAIN_NORMS = {'post_attention_layernorm': 'mlpNorm'}
GEMMA_NORMS = {
    'post_attention_layernorm': 'postAttnNorm', 'pre_feedforward_layernorm': 'mlpNorm',
    'post_feedforward_layernorm': 'postMlpNorm',
}


def site_of(name: str, gemma: bool) -> Site:
    module = name.rsplit('.', 1)[0]
    once = {'model.embed_tokens': 'embedding', 'model.norm': 'finalNorm', 'lm_head': 'head'}
    if module in once:
        return (-1, once[module])
    layer, rest = module.removeprefix('model.layers.').split('.', 1)
    return (int(layer), {**LAYER_NAMES, **(GEMMA_NORMS if gemma else PLAIN_NORMS)}[rest])


def take_apart(model: torch.nn.Module) -> Weights:
    config = model.config
    gemma = config.model_type == 'gemma3_text'
    matrices, biases = {}, {}
    for name, parameter in model.named_parameters():
        site = site_of(name, gemma)
        values = parameter.detach().to(F64)
        if name.endswith('.bias'):
            biases[site] = values
        else:
            matrices[site] = values + 1 if gemma and site[1].lower().endswith('norm') else values
    matrices.setdefault((-1, 'head'), matrices[(-1, 'embedding')])
    types = getattr(config, 'layer_types', None) or [
        'sliding_attention' if getattr(config, 'sliding_window', None) else 'full_attention'
    ] * config.num_hidden_layers
    rotary = model.model.rotary_emb
    prefixes = [f'{kind}_' if gemma else '' for kind in types]
    head_dim = getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads
    return Weights(
        config=config, matrices=matrices, biases=biases,
        rope=[(getattr(rotary, f'{p}inv_freq').to(F64), getattr(rotary, f'{p}attention_scaling')) for p in prefixes],
        windows=[config.sliding_window if kind == 'sliding_attention' else 0 for kind in types],
        embed_scale=math.sqrt(config.hidden_size) if gemma else 1.0,
        attn_scale=(config.query_pre_attn_scalar if gemma else head_dim) ** -0.5, head_dim=head_dim,
    )


ACTIVATIONS = {
    'identity': lambda x: x,
    'relu': torch.relu,
    'gelu': lambda x: torch.nn.functional.gelu(x),
    'gelu_tanh': lambda x: torch.nn.functional.gelu(x, approximate='tanh'),
    'silu': lambda x: torch.nn.functional.silu(x),
    'tanh': torch.tanh,
}


class Reference:
    """One forward pass of one sequence under one term set."""

    def __init__(self, weights: Weights, terms: list[Term], gates: torch.Tensor | None = None) -> None:
        self.w = weights
        self.terms = terms
        # [rows, width] rank gates of lowrank terms; ranks beyond the width count as 1.
        self.gates = gates

    def at(self, site: Site, kind: str) -> list[Term]:
        return [term for term in self.terms if (term.layer, term.site) == site and term.kind == kind]

    def gate(self, rows: int, ranks: int) -> torch.Tensor:
        full = torch.ones(rows, ranks, dtype=F64)
        if self.gates is not None:
            width = min(ranks, self.gates.shape[1])
            full[:, :width] = self.gates[:, :width]
        return full

    def lowrank(self, term: Term, reduced: torch.Tensor) -> torch.Tensor:
        """scale · e ⊙ B (γ ⊙ D reduced) with reduced = A x."""
        if 'midMatrix' in term.parts:
            reduced = reduced @ term.parts['midMatrix'].T
        scaled = reduced * self.gate(*reduced.shape) * term.parts.get('mid', torch.ones(1, dtype=F64))
        return term.options['scale'] * term.parts.get('outDiag', torch.ones(1, dtype=F64)) * (scaled @ term.parts['b'].T)

    def chains(self, site: Site, placement: str) -> list[Term]:
        return [term for term in self.at(site, 'blockdiag') if term.options['placement'] == placement]

    def chain(self, term: Term, t: torch.Tensor) -> torch.Tensor:
        """Stages, each blocks · t[gather], then values[output]; t is [rows, length]."""
        for stage in range(term.options['stages']):
            if f'gather{stage}' in term.parts:
                t = t[:, term.parts[f'gather{stage}']]
            blocks = term.parts[f'blocks{stage}']
            t = torch.einsum('bpq,rbq->rbp', blocks, t.reshape(len(t), len(blocks), -1)).reshape(len(t), -1)
        return t[:, term.parts['output']] if 'output' in term.parts else t

    def rowcol(self, term: Term, x: torch.Tensor, width: int) -> torch.Tensor:
        index, values = term.parts['index'], term.parts['values']
        if term.options['placement'] == 'in':
            return term.options['scale'] * (x[:, index] @ values.T)
        delta = torch.zeros(len(x), width, dtype=F64)
        delta[:, index] = term.options['scale'] * (x @ values.T)
        return delta

    def sparse(self, term: Term, x: torch.Tensor, width: int) -> torch.Tensor:
        """The dense matrix that the entries stand for, times x."""
        start = term.parts['rowStart']
        dense = torch.zeros(width, x.shape[1], dtype=F64)
        rows = torch.arange(width).repeat_interleave(start[1:] - start[:-1])
        dense[rows, term.parts['columns']] = term.parts['values'][0]
        return term.options['scale'] * (x @ dense.T)

    def linear(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        weight = self.replaced(site, self.w.matrices[site])
        width = len(weight)
        diag = next(iter(self.at(site, 'diag')), Term('diag', *site))
        u = x * diag.parts['h'] if 'h' in diag.parts else x
        for term in self.chains(site, 'pre'):
            u = self.chain(term, u)
        y = u @ weight.T
        if 'g' in diag.parts:
            y = y * diag.parts['g']
        for term in self.chains(site, 'post'):
            y = self.chain(term, y)
        for term in self.at(site, 'lowrank'):
            y = y + self.lowrank(term, x @ term.parts['a'].T)
        for term in self.at(site, 'rowcol'):
            y = y + self.rowcol(term, x, width)
        for term in self.at(site, 'sparse'):
            y = y + self.sparse(term, x, width)
        for term in self.chains(site, 'additive'):
            y = y + term.options['scale'] * self.chain(term, x)
        if site in self.w.biases:
            y = y + self.w.biases[site]
        return y + diag.parts['c'] if 'c' in diag.parts else y

    def replaced(self, site: Site, weight: torch.Tensor) -> torch.Tensor:
        for term in self.at(site, 'override'):
            if 'rows' not in term.parts:
                return term.parts['values'][0]
            weight = weight.clone()
            weight[term.parts['rows']] = term.parts['values']
        return weight

    def norm(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        weight = self.replaced(site, self.w.matrices[site])
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.w.config.rms_norm_eps) * weight

    def embed(self, tokens: list[int], embeddings: torch.Tensor | None) -> torch.Tensor:
        """Negative tokens -1 - i name row i of `embeddings`, which is taken as it is."""
        site = (-1, 'embedding')
        ids = torch.tensor([max(token, 0) for token in tokens])
        rows = self.replaced(site, self.w.matrices[site])[ids]
        for term in self.at(site, 'lowrank'):
            rows = rows + self.lowrank(term, term.parts['a'].T[ids])
        rows = rows * self.w.embed_scale
        for row, token in enumerate(tokens):
            if token < 0:
                rows[row] = embeddings[-1 - token]
        return rows

    def rotate(self, layer: int, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        inv_freq, factor = self.w.rope[layer]
        angles = positions[:, None].to(F64) * inv_freq
        cos, sin = (torch.cat((f(angles), f(angles)), -1)[:, None] * factor for f in (torch.cos, torch.sin))
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    def attention(self, layer: int, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        rows, d = x.shape[0], self.w.head_dim
        q, k, v = (self.linear((layer, name), x).view(rows, -1, d) for name in ('q', 'k', 'v'))
        if (layer, 'qNorm') in self.w.matrices:
            q, k = self.norm((layer, 'qNorm'), q), self.norm((layer, 'kNorm'), k)
        q, k = self.rotate(layer, q, positions), self.rotate(layer, k, positions)
        key_positions = positions
        context = torch.zeros_like(q)
        for term in self.at((layer, 'attention'), 'prefix'):
            if 'gate' in term.options:
                context = context + term.options['gate'] * self.softmax(q, term.parts['k'], term.parts['v'], None)
            else:
                k, v = torch.cat((term.parts['k'], k)), torch.cat((term.parts['v'], v))
                key_positions = torch.cat((torch.arange(len(term.parts['k'])), positions))
        seen = key_positions[None, :] <= positions[:, None]
        if self.w.windows[layer]:
            seen &= key_positions[None, :] > positions[:, None] - self.w.windows[layer]
        context = context + self.softmax(q, k, v, seen)
        return self.linear((layer, 'o'), context.reshape(rows, -1))

    def softmax(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """q [rows, heads, d]; k, v [keys, kv_heads, d]; query head h reads KV head h / (heads / kv_heads)."""
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum('rhd,khd->hrk', q, k) * self.w.attn_scale
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        return torch.einsum('hrk,khd->rhd', scores.softmax(-1), v)

    def mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        gemma = self.w.config.model_type == 'gemma3_text'
        gate = ACTIVATIONS['gelu_tanh' if gemma else 'silu'](self.linear((layer, 'gate'), x))
        return self.linear((layer, 'down'), gate * self.linear((layer, 'up'), x))

    def join(self, site: Site, residual: torch.Tensor, normed: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The residual stream after a sub-block with output t and input `normed`."""
        for term in self.at(site, 'bottleneck'):
            n = {'sequential': t, 'parallel': normed, 'sum': residual + t, 'residual': residual}[term.options['placement']]
            if 'normWeight' in term.parts:
                centred = n - n.mean(-1, keepdim=True)
                spread = torch.sqrt((centred * centred).mean(-1, keepdim=True) + term.options['normEps'])
                n = centred / spread * term.parts['normWeight'] + term.parts['normBias']
            inner = ACTIVATIONS[term.options['activation']](n @ term.parts['down'].T + term.parts.get('downBias', 0))
            t = t + term.options['scale'] * (inner @ term.parts['up'].T + term.parts.get('upBias', 0))
        return residual + t

    def logits(self, tokens: list[int], embeddings: torch.Tensor | None = None) -> torch.Tensor:
        shared = [t for t in self.terms if t.kind == 'prefix' and 'gate' not in t.options]
        first = len(shared[0].parts['k']) if shared else 0
        positions = torch.arange(first, first + len(tokens))
        x = self.embed(tokens, embeddings)
        for layer in range(self.w.config.num_hidden_layers):
            x = self.block(layer, 'attnNorm', 'postAttnNorm', 'residualAttn', x, lambda n: self.attention(layer, n, positions))
            x = self.block(layer, 'mlpNorm', 'postMlpNorm', 'residualMlp', x, lambda n: self.mlp(layer, n))
        return self.linear((-1, 'head'), self.norm((-1, 'finalNorm'), x))

    def block(self, layer: int, before: str, after: str, residual: str, x: torch.Tensor, inner) -> torch.Tensor:
        normed = self.norm((layer, before), x)
        t = inner(normed)
        if (layer, after) in self.w.matrices:
            t = self.norm((layer, after), t)
        return self.join((layer, residual), x, normed, t)
