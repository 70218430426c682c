"""Goldens of adapter kinds: small random adapters made by each method's own library, and that library's logits.

A group of kinds is a module kinds_GROUP.py with a list KINDS; this is the registry of groups and what they share. Called by
generate.py. ORACLE_KINDS=kinds_scale (or several names with commas) makes the kinds of these groups alone.

kinds/MODEL/KIND/ is the adapter as users have it on disk, with two files beside it: golden.json {prompt, vocab, stride, effect}
and golden.bin, for every token of the prompt the logits of the ids 0, stride, 2·stride … as float32, little endian. Rows of a
soft prompt are left out.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from logits import random_prompts
from tiny_adapters import tidy_config
from tiny_models import MODELS, TinyModel, load_model, round_bf16, seed_of

GROUPS = ['kinds_lora', 'kinds_scale', 'kinds_block', 'kinds_sparse', 'kinds_ours', 'kinds_saved']
STRIDE = 3
PROMPT_TOKENS = 10
LEAST_EFFECT = 0.05

# A library's model, or a function from token ids to logits [>= tokens, vocab]. The last rows belong to the tokens.
Answerer = torch.nn.Module | Callable[[list[int]], torch.Tensor]


@dataclass(frozen=True)
class Work:
    """What one kind on one model is made from."""

    spec: TinyModel
    kind: str
    # Of the tiny model; the adapter goes to `folder`, which exists and is empty.
    model_folder: str
    folder: str
    prompt: list[int]

    def load(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """A fresh copy of the base."""
        return load_model(self.spec, self.model_folder, dtype)

    def random(self, name: str) -> np.random.Generator:
        """One stream of random numbers for each name, the same on every machine."""
        return np.random.default_rng(seed_of('kinds', self.spec.name, self.kind, name))


@dataclass(frozen=True)
class Kind:
    """`make` writes the adapter to work.folder and returns what answers with it, read back from there."""

    name: str
    models: tuple[str, ...]
    make: Callable[[Work], Answerer]
    # Another prompt than the model's random one, made from it.
    prompt: Callable[[list[int]], list[int]] | None = None


# Values for a parameter, from normal noise of its shape and the parameter as the library initialised it.
Rule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def normal(std: float, mean: float = 0.0) -> Rule:
    return lambda noise, _: mean + std * noise


def fan_in(gain: float = 1.0) -> Rule:
    """Variance gain² / in of a matrix [out, in]."""
    return lambda noise, _: gain * noise / np.sqrt(noise.shape[-1])


def jitter(std: float) -> Rule:
    """The initial value times 1 + noise: for what must stay near it, such as DoRA's magnitudes."""
    return lambda noise, initial: initial * (1 + std * noise)


# LoRA's pair: A with variance 1 / in (an embedding's A is read by columns, so it is not divided), B strong enough to be seen.
LORA_RULES: dict[str, Rule] = {'lora_embedding_': normal(0.3), 'lora_A': fan_in(), 'lora_B': normal(0.3)}


def fill(model: torch.nn.Module, work: Work, rules: dict[str, Rule]) -> None:
    """Every trainable parameter by the first rule whose key is a part of its name, rounded so that bf16 and f16 hold it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            rule = next((rule for key, rule in rules.items() if key in name), None)
            if rule is None:
                raise SystemExit(f'{work.kind}: no rule for the trainable parameter {name}')
            noise = torch.from_numpy(work.random(name).standard_normal(tuple(parameter.shape)))
            parameter.copy_(round_bf16(rule(noise, parameter.detach().to(torch.float64)).numpy()))


def save_tensors(folder: str, tensors: dict[str, torch.Tensor], name: str = 'adapter_model.safetensors') -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, f'{folder}/{name}', metadata={'format': 'pt'})


def save_config(work: Work, config: dict) -> None:
    """adapter_config.json of a format that no library writes."""
    with open(f'{work.folder}/adapter_config.json', 'w', encoding='utf-8') as file:
        json.dump({'base_model_name_or_path': work.spec.name, **config}, file, indent=2, sort_keys=True)


def tidy_peft_folder(work: Work, dtype: torch.dtype | None = torch.bfloat16, keep: Iterable[str] = ()) -> None:
    """After save_pretrained: no README, floats in `dtype` (but not tensors with a part of `keep` in the name), tidy config."""
    readme, path = f'{work.folder}/README.md', f'{work.folder}/adapter_model.safetensors'
    if os.path.exists(readme):
        os.remove(readme)
    tensors = load_file(path)
    for key, value in tensors.items():
        if dtype is not None and value.is_floating_point() and not any(part in key for part in keep):
            tensors[key] = value.to(dtype)
    save_tensors(work.folder, tensors)
    tidy_config(f'{work.folder}/adapter_config.json', work.spec.name)


def peft_adapter(
    work: Work, config: PeftConfig, rules: dict[str, Rule], dtype: torch.dtype | None = torch.bfloat16, keep: Iterable[str] = (), **save: object
) -> PeftModel:
    """An adapter that peft makes from `config`, filled by `rules`, saved, and read again onto a fresh base."""
    model = get_peft_model(work.load(), config)
    fill(model, work, rules)
    model.save_pretrained(work.folder, **{'save_embedding_layers': False, **save})
    tidy_peft_folder(work, dtype, keep)
    return PeftModel.from_pretrained(work.load(), work.folder).to(torch.float32).eval()


def logits_of(answerer: Answerer, tokens: list[int]) -> np.ndarray:
    """[tokens, vocab] float32."""
    with torch.no_grad():
        if isinstance(answerer, torch.nn.Module):
            logits = answerer(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        else:
            logits = answerer(tokens)
    return logits[-len(tokens) :].to(torch.float32).numpy()


def write_kind(kind: Kind, spec: TinyModel, out: str) -> None:
    folder, model_folder = f'{out}/kinds/{spec.name}/{kind.name}', f'{out}/models/{spec.name}'
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    prompt = random_prompts(seed_of(spec.name, 'kinds', 'prompt'), [PROMPT_TOKENS], 320)[0]
    if kind.prompt is not None:
        prompt = kind.prompt(prompt)
    work = Work(spec, kind.name, model_folder, folder, prompt)
    # Some libraries draw random numbers when they build a module; what is saved must not depend on the kinds before.
    torch.manual_seed(seed_of(spec.name, kind.name))
    plain = logits_of(work.load(), prompt)
    logits = logits_of(kind.make(work), prompt)
    effect = float(np.abs(logits - plain).max() / np.abs(plain).max())
    if not np.isfinite(logits).all() or effect < LEAST_EFFECT:
        raise SystemExit(f'{spec.name}/{kind.name} moves the logits by {effect:.3f} of max|logit|; a test would not see it')
    head = {'prompt': prompt, 'vocab': logits.shape[1], 'stride': STRIDE, 'effect': round(effect, 3)}
    with open(f'{folder}/golden.json', 'w', encoding='utf-8') as file:
        file.write(json.dumps(head) + '\n')
    with open(f'{folder}/golden.bin', 'wb') as file:
        file.write(np.ascontiguousarray(logits[:, ::STRIDE]).astype('<f4').tobytes())


def kinds_of(group: str) -> list[Kind]:
    return importlib.import_module(group).KINDS


def write(out: str) -> None:
    asked = [name for name in os.environ.get('ORACLE_KINDS', '').split(',') if name]
    unknown = set(asked) - set(GROUPS)
    if unknown:
        raise SystemExit(f'ORACLE_KINDS names {sorted(unknown)}, expected some of {GROUPS}')
    specs = {spec.name: spec for spec in MODELS}
    seen: set[str] = set()
    for group in asked or GROUPS:
        if importlib.util.find_spec(group) is None:
            continue
        for kind in kinds_of(group):
            for name in kind.models:
                if f'{name}/{kind.name}' in seen:
                    raise SystemExit(f'two kinds have the name {kind.name}')
                seen.add(f'{name}/{kind.name}')
                write_kind(kind, specs[name], out)
