"""What 8-bit and 4-bit weights cost the default model: mean KL divergence from float32 over this repository's text, emulated
in PyTorch.

Run by hand (`format_kl.py [WINDOWS [WORD ...]]`, formats whose names have one of the words); docs/benchmarks/cpu.md quotes the figures, and test/kl-formats.ts has its limits from
them. Q8_0 and Q4_0 stand for llama.cpp's classes of these names: weights in blocks of 32 with a scale each, inputs in 8-bit
blocks of 32, head and embedding in Q8_0. The text is that of test/kl-formats.ts, in windows of 512 tokens.

The default model's file is a 4-bit one (Q4_1), whose values a rounding in the same groups would find again. So 4-bit rounding
is measured on a shuffled model: the channels of the residual stream, of every head's values and of the feed-forward layers
are put in another order, in all matrices that know them, which leaves what the model computes as it is and mixes the groups.
"""

import glob
import os
import sys
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollm2 import FILE, find_model

WINDOW = 512
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..')


def committed_text() -> str:
    def below(folder: str, end: str) -> list[str]:
        found = glob.glob(os.path.join(ROOT, folder, '**', '*' + end), recursive=True)
        return sorted(found, key=lambda name: os.path.relpath(name, ROOT))

    names = [os.path.join(ROOT, 'LICENSE'), *below('docs', '.md'), *below('src', '.ts')]
    return '\n'.join(open(name, encoding='utf8').read() for name in names)


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """x as int8 with a half-precision scale for each group of the last dimension (0: one float32 scale for all of it)."""
    shape = x.shape
    x = x.reshape(-1, group or shape[-1])
    scale = x.abs().amax(-1, keepdim=True) / 127
    if group:
        scale = scale.half().float()
    q = torch.where(scale > 0, torch.round(x / scale.clamp_min(1e-30)), 0).clamp(-128, 127)
    return (q * scale).reshape(shape)


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """Orthonormal Walsh-Hadamard transform of blocks of the largest power of two that divides the last dimension."""
    shape, block = x.shape, 1
    while shape[-1] % (2 * block) == 0:
        block *= 2
    x, h = x.reshape(-1, block), 1
    while h < block:
        x = x.view(-1, block // (2 * h), 2, h)
        x = torch.stack([x[:, :, 0] + x[:, :, 1], x[:, :, 0] - x[:, :, 1]], 2).reshape(-1, block)
        h *= 2
    return (x / block**0.5).reshape(shape)


def half(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def q4_0(w: torch.Tensor) -> torch.Tensor:
    """Blocks of 32 with the scale that takes the value of largest magnitude to code 0 of 0 to 15."""
    x = w.reshape(-1, 32)
    most = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scale = most / -8
    inverse = torch.where(scale != 0, 1 / scale, 0)
    q = torch.floor(x * inverse + 8.5).clamp(0, 15) - 8
    return (q * half(scale)).reshape(w.shape)


def q4(w: torch.Tensor) -> torch.Tensor:
    """Groups of 32 as native/cpu/q4_rows.cpp rounds them: of several ranges the one of least squared error."""
    x = w.reshape(-1, 32)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    best, least = torch.zeros_like(x), torch.full_like(low, torch.inf)

    def codes(d: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return torch.where(d > 0, torch.round((x - m) / d.clamp_min(1e-30)), 0).clamp(0, 15)

    for step in range(12):
        cut = 0.035 * step * (high - low) / 2
        q = codes((high - low - 2 * cut) / 15, low + cut)
        n, product = q.sum(-1, keepdim=True), (q * x).sum(-1, keepdim=True)
        determinant = 32 * (q * q).sum(-1, keepdim=True) - n * n
        d = torch.where(determinant > 0, (32 * product - n * x.sum(-1, keepdim=True)) / determinant, 0)
        d, m = half(d), half((x.sum(-1, keepdim=True) - d * n) / 32)
        found = codes(d, m) * d + m
        error = ((found - x) ** 2).sum(-1, keepdim=True)
        best = torch.where(error < least, found, best)
        least = torch.minimum(error, least)
    return best.reshape(w.shape)


def blocks(x: torch.Tensor) -> torch.Tensor:
    return rounded(x, 32)


def rotated(x: torch.Tensor) -> torch.Tensor:
    return hadamard(rounded(hadamard(x), 0))


def rows(x: torch.Tensor) -> torch.Tensor:
    return rounded(x, 0)


def kept(x: torch.Tensor) -> torch.Tensor:
    return x


# Weights and inputs of linears, then of head and embedding.
FORMATS = {
    'q8_0: weights and inputs in blocks of 32': (blocks, blocks, blocks, blocks),
    'int8: a scale for each row': (rows, rows, rows, rows),
    'int8: a scale for each row, rotated': (rotated, rotated, rotated, rotated),
    'the file in llama.cpp: q4_1 as it is, head q8_0': (kept, blocks, blocks, blocks),
    'the file in q4: q4_1 as it is, head int8': (kept, blocks, rotated, rotated),
}
SHUFFLED_FORMATS = {
    'shuffled, float32: what the order of sums costs': (kept, kept, kept, kept),
    'shuffled, q4_0: blocks of 32, head q8_0': (q4_0, blocks, blocks, blocks),
    'shuffled, q4: groups of 32, head int8': (q4, blocks, rotated, rotated),
}


def shuffle(model: torch.nn.Module) -> None:
    """Another order of channels, of which the model computes the same."""
    torch.manual_seed(1)
    config = model.config
    hidden, size = torch.randperm(config.hidden_size), config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[:, hidden])
    model.lm_head.weight.copy_(model.lm_head.weight[:, hidden])
    model.model.norm.weight.copy_(model.model.norm.weight[hidden])
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.copy_(norm.weight[hidden])
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight.copy_(linear.weight[:, hidden])
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight.copy_(linear.weight[hidden])
        inner = torch.randperm(config.intermediate_size)
        mlp.gate_proj.weight.copy_(mlp.gate_proj.weight[inner])
        mlp.up_proj.weight.copy_(mlp.up_proj.weight[inner])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, inner])
        of_heads = [head * size + torch.randperm(size) for head in range(config.num_key_value_heads)]
        attention.v_proj.weight.copy_(attention.v_proj.weight[torch.cat(of_heads)])
        of_queries = [of_heads[q // group] % size + q * size for q in range(config.num_attention_heads)]
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, torch.cat(of_queries)])


class RoundedInputs:
    """Makes every linear of the model round its inputs while it has a function for that."""

    def __init__(self, linears: list[torch.nn.Linear]) -> None:
        self.convert: dict[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]] = {}
        for linear in linears:
            linear.register_forward_pre_hook(lambda module, args: (self.convert.get(module, kept)(args[0]),))


class Measure:
    def __init__(self, windows: int) -> None:
        folder, _kept = find_model()
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
        self.model.lm_head.weight = torch.nn.Parameter(self.model.model.embed_tokens.weight.clone())
        text = committed_text()[: windows * WINDOW * 8]
        ids = tokenizer(text, add_special_tokens=False)['input_ids'][: windows * WINDOW]
        self.ids = torch.tensor(ids).view(-1, WINDOW)
        self.matrices = [m for m in self.model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))]
        self.inputs = RoundedInputs([m for m in self.matrices if isinstance(m, torch.nn.Linear)])
        self.expected = [self.log_probabilities(row) for row in self.ids]

    def log_probabilities(self, row: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.model(row[None]).logits[0], -1)

    def print(self, formats: dict[str, tuple], words: list[str]) -> None:
        weights = [matrix.weight.clone() for matrix in self.matrices]
        ends = (self.model.lm_head, self.model.model.embed_tokens)
        for name, (of_weights, of_inputs, of_ends, of_head_inputs) in formats.items():
            if words and not any(word in name for word in words):
                continue
            self.inputs.convert = {m: of_head_inputs if m in ends else of_inputs for m in self.matrices}
            for matrix, weight in zip(self.matrices, weights, strict=True):
                matrix.weight.copy_((of_ends if matrix in ends else of_weights)(weight))
            total = 0.0
            for row, p in zip(self.ids, self.expected, strict=True):
                total += (p.exp() * (p - self.log_probabilities(row))).sum().item()
            print(f'{name}: mean KL {total / self.ids.numel():.3e} over {self.ids.numel()} tokens', flush=True)
        for matrix, weight in zip(self.matrices, weights, strict=True):
            matrix.weight.copy_(weight)


@torch.no_grad()
def main() -> None:
    measure = Measure(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
    words = sys.argv[2:]
    measure.print(FORMATS, words)
    shuffle(measure.model)
    measure.print(SHUFFLED_FORMATS, words)


main()
