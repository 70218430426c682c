"""What 8-bit blocks cost the default model: mean KL divergence from float32 over this repository's text, emulated in PyTorch.

Run by hand (`format_kl.py [WINDOWS]`); docs/benchmarks/cpu.md quotes the figures, and test/kl-formats.ts has its limit for
int8 from them. Q8_0 stands for llama.cpp's class of that name: weights and inputs in blocks of 32 with a scale each, head
and embedding too. The text is that of test/kl-formats.ts, in windows of 512 tokens.
"""

import glob
import os
import sys

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


FORMATS = {
    'q8_0: weights and inputs in blocks of 32': lambda x: rounded(x, 32),
    'int8: a scale for each row': lambda x: rounded(x, 0),
    'int8: a scale for each row, rotated': lambda x: hadamard(rounded(hadamard(x), 0)),
}


class RoundedInputs:
    """Makes every linear of the model round its inputs while `convert` is set."""

    def __init__(self, linears: list[torch.nn.Linear]) -> None:
        self.convert = None
        for linear in linears:
            linear.register_forward_pre_hook(lambda _, args: (self.convert(args[0]),) if self.convert else None)


@torch.no_grad()
def main() -> None:
    windows = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    folder, _kept = find_model()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.clone())
    text = committed_text()[: windows * WINDOW * 8]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)['input_ids'][: windows * WINDOW]).view(-1, WINDOW)
    matrices = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))]
    weights = [matrix.weight.clone() for matrix in matrices]
    inputs = RoundedInputs([m for m in matrices if isinstance(m, torch.nn.Linear)])
    expected = [torch.log_softmax(model(row[None]).logits[0], -1) for row in ids]
    for name, convert in FORMATS.items():
        inputs.convert = convert
        for matrix, weight in zip(matrices, weights, strict=True):
            matrix.weight.copy_(convert(weight))
        total = 0.0
        for row, p in zip(ids, expected, strict=True):
            q = torch.log_softmax(model(row[None]).logits[0], -1)
            total += (p.exp() * (p - q)).sum().item()
        print(f'{name}: mean KL {total / ids.numel():.3e} over {ids.numel()} tokens', flush=True)


main()
