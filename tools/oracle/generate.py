"""Writes every golden below a folder: `python generate.py FOLDER [PART…]`. run.sh calls it.

Parts: models (tiny models, their LoRAs and logits), gguf and terms (both need `models` in the same folder), blocks, kinds and
s2ft (which need `models` too), text, smollm2.
"""

import os
import shutil
import stat
import subprocess
import sys
import time

import torch
import transformers

import block_goldens
import kinds
import s2ft_goldens
import smollm2
import term_goldens
import tiny_adapters
import tiny_gguf
import tiny_models
from logits import GoldenWriter, answer, check_against_double, random_prompts

BASE_LENGTHS = [5, 12, 33, 70]
BASE_STRIDE = 16
ADAPTER_LENGTHS = [9, 40]
ADAPTER_STRIDE = 32


def write_model(spec: tiny_models.TinyModel, folder: str) -> None:
    """The folder of one tiny model, its adapters, and the goldens of all of them."""
    tiny_models.save_model(spec, folder)
    model = tiny_models.load_model(spec, folder)
    vocab = model.config.vocab_size
    writer = GoldenWriter(spec.name, vocab)
    prompts = random_prompts(tiny_models.seed_of(spec.name, 'prompts'), BASE_LENGTHS, vocab)
    answers = [answer(model, prompt) for prompt in prompts]
    check_against_double(model, answers)
    for a in answers:
        writer.add(a, BASE_STRIDE, adapter=None)
    for name in spec.adapters:
        write_adapter(spec, folder, name, writer)
    writer.write(f'{folder}/goldens')


def write_adapter(spec: tiny_models.TinyModel, folder: str, name: str, writer: GoldenWriter) -> None:
    adapter_folder = f'{folder}/adapters/{name}'
    tiny_adapters.save_adapter(spec, tiny_models.load_model(spec, folder), name, adapter_folder)
    base = tiny_models.load_model(spec, folder)
    vocab = base.config.vocab_size
    prompts = random_prompts(tiny_models.seed_of(spec.name, name, 'prompts'), ADAPTER_LENGTHS, vocab)
    with torch.no_grad():
        plain = [base(torch.tensor([prompt])).logits for prompt in prompts]
    adapted = tiny_adapters.load_adapter(base, adapter_folder)
    answers = [answer(adapted, prompt) for prompt in prompts]
    for a, p in zip(answers, plain):
        effect = float(abs(torch.from_numpy(a.logits[: len(a.prompt)]) - p[0]).max() / p.abs().max())
        if effect < 0.05:
            raise SystemExit(f'{spec.name}/{name} moves the logits by {effect:.3f} of max|logit| only; a test would not see it')
    check_against_double(adapted, answers)
    for a in answers:
        writer.add(a, ADAPTER_STRIDE, adapter=name)


def write_models(out: str) -> None:
    for spec in tiny_models.MODELS:
        write_model(spec, f'{out}/models/{spec.name}')


def write_ggufs(out: str) -> None:
    for spec in tiny_models.MODELS:
        tiny_gguf.write_gguf(spec, f'{out}/models/{spec.name}')


def write_text(out: str) -> None:
    """text_goldens.py is a program of its own; it finds the hand-written corpus in the folder that it writes to."""
    here = os.path.dirname(os.path.abspath(__file__))
    corpus = f'{here}/../../test/goldens/text/corpus.txt'
    os.makedirs(f'{out}/text', exist_ok=True)
    if not os.path.exists(f'{out}/text/corpus.txt'):
        shutil.copy(corpus, f'{out}/text/corpus.txt')
    model, keep = smollm2.find_model()
    command = [sys.executable, '-W', 'ignore', f'{here}/text_goldens.py', os.path.abspath(f'{out}/text'), f'{model}/{smollm2.FILE}']
    subprocess.run(command, check=True, cwd=f'{here}/../..')
    del keep


PARTS = {
    'models': write_models,
    'gguf': write_ggufs,
    'terms': term_goldens.write,
    'blocks': block_goldens.write,
    'kinds': kinds.write,
    's2ft': s2ft_goldens.write,
    'text': write_text,
    'smollm2': smollm2.write,
}


NEED_MODELS = {'gguf', 'terms', 'kinds', 's2ft'}


def open_to_readers(out: str) -> None:
    """safetensors writes files that only the owner may read."""
    for folder, _, files in os.walk(out):
        for file in files:
            path = os.path.join(folder, file)
            os.chmod(path, os.stat(path).st_mode | stat.S_IRGRP | stat.S_IROTH)


def main() -> None:
    out, parts = sys.argv[1], sys.argv[2:] or list(PARTS)
    torch.set_num_threads(int(os.environ.get('ORACLE_THREADS', '2')))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if NEED_MODELS & set(parts) and 'models' not in parts and not os.path.exists(f'{out}/models'):
        parts = ['models', *parts]
    for part in parts:
        start = time.monotonic()
        PARTS[part](out)
        print(f'{part}: {time.monotonic() - start:.1f} s', flush=True)
    open_to_readers(out)


if __name__ == '__main__':
    main()
