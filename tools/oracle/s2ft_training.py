"""S²FT as its paper's code trains and saves it (arXiv 2412.06289), transcribed for the goldens of the format and its importer.

In each layer the rows of up and gate and the columns of down move into one order of FFN channels, the head blocks of q, k, v
(rows) and o (columns) into one order of heads, so that what is trained is contiguous; then

    S2Column  (v_proj, up_proj)    y = W x;  y[..., start:end] += x @ s2.T         s2 [end - start, in]
    S2Row     (o_proj, down_proj)  y = W x + x[..., start:end] @ s2.T              s2 [out, end - start]

The order is: only the column linear's, both, only the row linear's, the rest.
"""

from dataclasses import dataclass

import numpy as np
import torch


class S2Column(torch.nn.Module):
    def __init__(self, linear: torch.nn.Linear, start: int, s2: torch.Tensor) -> None:
        super().__init__()
        self.linear, self.start, self.s2 = linear, start, s2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x).clone()
        y[..., self.start : self.start + self.s2.shape[0]] += x @ self.s2.T
        return y

    def fuse(self) -> None:
        self.linear.weight.data[self.start : self.start + self.s2.shape[0]] += self.s2


class S2Row(torch.nn.Module):
    def __init__(self, linear: torch.nn.Linear, start: int, s2: torch.Tensor) -> None:
        super().__init__()
        self.linear, self.start, self.s2 = linear, start, s2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + x[..., self.start : self.start + self.s2.shape[1]] @ self.s2.T

    def fuse(self) -> None:
        self.linear.weight.data[:, self.start : self.start + self.s2.shape[1]] += self.s2


@dataclass(frozen=True)
class Layer:
    """Channels of one layer that are trained, ascending, in the base's numbers: heads of v and o, FFN channels of up and down."""

    v: list[int]
    o: list[int]
    up: list[int]
    down: list[int]


def contiguous(first: list[int], second: list[int], count: int) -> tuple[list[int], int, int, int]:
    """The order, and where in it both end and start: first's is [0, b), second's is [a, c)."""
    only_first = [i for i in first if i not in second]
    both = [i for i in first if i in second]
    only_second = [i for i in second if i not in first]
    chosen = only_first + both + only_second
    order = chosen + [i for i in range(count) if i not in chosen]
    return order, len(only_first), len(only_first) + len(both), len(chosen)


def move(linear: torch.nn.Linear, axis: int, order: list[int], block: int) -> None:
    index = torch.tensor([i * block + j for i in order for j in range(block)])
    linear.weight.data = linear.weight.data.index_select(axis, index)


# Values of s2 for (module name, shape).
Values = 'Callable[[str, tuple[int, int]], torch.Tensor]'


def prepare_ffn(mlp: torch.nn.Module, chosen: Layer, name: str, values: Values) -> list[int]:
    order, a, b, c = contiguous(chosen.up, chosen.down, mlp.gate_proj.out_features)
    for linear, axis in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
        move(linear, axis, order, 1)
    if b > 0:
        mlp.up_proj = S2Column(mlp.up_proj, 0, values(f'{name}.up_proj', (b, mlp.up_proj.in_features)))
    if c > a:
        mlp.down_proj = S2Row(mlp.down_proj, a, values(f'{name}.down_proj', (mlp.down_proj.out_features, c - a)))
    return order


def prepare_attention(attention: torch.nn.Module, chosen: Layer, name: str, values: Values) -> list[int]:
    """With as many KV heads as heads; the paper's code permutes no others."""
    d = attention.head_dim
    order, a, b, c = contiguous(chosen.v, chosen.o, attention.o_proj.in_features // d)
    for linear, axis in ((attention.q_proj, 0), (attention.k_proj, 0), (attention.v_proj, 0), (attention.o_proj, 1)):
        move(linear, axis, order, d)
    if b > 0:
        attention.v_proj = S2Column(attention.v_proj, 0, values(f'{name}.v_proj', (b * d, attention.v_proj.in_features)))
    if c > a:
        attention.o_proj = S2Row(attention.o_proj, a * d, values(f'{name}.o_proj', (attention.o_proj.out_features, (c - a) * d)))
    return order


def sample(generator: np.random.Generator, layers: int, count: int, ratio: float) -> list[list[int]]:
    """The paper's random choice is over all layers at once, so layers are ragged and may be empty."""
    chosen: list[list[int]] = [[] for _ in range(layers)]
    for at in sorted(generator.choice(layers * count, int(layers * count * ratio), replace=False).tolist()):
        chosen[at // count].append(at % count)
    return chosen


def fuse(model: torch.nn.Module) -> None:
    """Every s2 into its weight, in the weight's type, and the plain linears back in their places."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (S2Column, S2Row)):
                child.fuse()
                setattr(module, name, child.linear)


def original_deltas(model: torch.nn.Module, orders: dict[str, tuple[list[int], int]]) -> dict[str, tuple[str, list[int], torch.Tensor]]:
    """Before fuse(): module → ('rows' or 'columns', ascending channels of the base, values in that order)."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, (S2Column, S2Row)):
            continue
        order, block = orders[name]
        axis = 0 if isinstance(module, S2Column) else 1
        base = [order[i // block] * block + i % block for i in range(module.start, module.start + module.s2.shape[axis])]
        sorting = np.argsort(base)
        found[name] = ('rows' if axis == 0 else 'columns', [base[i] for i in sorting], module.s2.index_select(axis, torch.tensor(sorting)))
    return found
