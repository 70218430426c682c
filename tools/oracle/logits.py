"""Logits goldens: what is written of one model's answers, and how. Called by the modules that make goldens.

goldens.json lists cases; a case is a prompt, the 32 greedy tokens after it with the distance between the best and the
second logit at each, and a place in goldens.bin. There, for every row i of prompt + greedy: max|logit| and logsumexp
as float32, then the logits of the vocabulary ids c with c mod stride = i mod stride, each as int16 in units of
max|logit| / 32767 (so within 1.6e-5 of max|logit|; the tests allow 1e-4). Little endian, no padding.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch

GREEDY = 32


@dataclass(frozen=True)
class Answer:
    prompt: list[int]
    greedy: list[int]
    # [prompt + greedy, vocab] float32.
    logits: np.ndarray

    def margins(self) -> list[float]:
        rows = self.logits[len(self.prompt) - 1 : len(self.prompt) - 1 + len(self.greedy)]
        best = np.sort(rows, axis=1)[:, -2:]
        return [round(float(b - a), 6) for a, b in best]


def random_prompts(seed: int, lengths: list[int], vocab: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab, length).tolist() for length in lengths]


def answer(model: torch.nn.Module, prompt: list[int], count: int = GREEDY) -> Answer:
    """Greedy decoding without a KV cache: every token comes from a full forward pass."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    return Answer(prompt, ids[len(prompt) :], logits.to(torch.float32).numpy())


def check_against_double(model: torch.nn.Module, answers: list[Answer]) -> None:
    """The float32 answers again in float64 (where transformers uses it); they must agree far within the tolerance."""
    model.to(torch.float64)
    with torch.no_grad():
        for a in answers:
            exact = model(torch.tensor([a.prompt + a.greedy]), use_cache=False).logits[0].numpy()
            worst = float((np.abs(exact - a.logits).max(axis=1) / np.abs(exact).max(axis=1)).max())
            if worst > 2e-5:
                raise SystemExit(f'float32 and float64 differ by {worst:.1e} of max|logit|; the golden would be doubtful')
    model.to(torch.float32)


def write_row(row: np.ndarray, index: int, stride: int) -> bytes:
    largest = np.float32(np.abs(row).max())
    shifted = row.astype(np.float64) - row.max()
    logsumexp = np.float32(np.log(np.exp(shifted).sum()) + row.max())
    columns = row[index % stride :: stride].astype(np.float64)
    values = np.rint(columns / float(largest) * 32767).astype('<i2')
    return np.array([largest, logsumexp], dtype='<f4').tobytes() + values.tobytes()


class GoldenWriter:
    """Collects cases and writes `<stem>.json` and `<stem>.bin`."""

    def __init__(self, model: str, vocab: int) -> None:
        self.head = {'model': model, 'vocab': vocab}
        self.cases: list[dict] = []
        self.bytes = bytearray()

    def add(self, a: Answer, stride: int, **about: object) -> None:
        self.cases.append(
            {**about, 'prompt': a.prompt, 'greedy': a.greedy, 'margins': a.margins(), 'stride': stride, 'offset': len(self.bytes)}
        )
        for index, row in enumerate(a.logits):
            self.bytes += write_row(row, index, stride)

    def write(self, stem: str) -> None:
        with open(f'{stem}.bin', 'wb') as file:
            file.write(bytes(self.bytes))
        lines = ',\n'.join('    ' + json.dumps(case, separators=(',', ':')) for case in self.cases)
        head = json.dumps(self.head)[1:-1]
        with open(f'{stem}.json', 'w', encoding='utf-8') as file:
            file.write('{\n  ' + head + ',\n  "cases": [\n' + lines + '\n  ]\n}\n')
