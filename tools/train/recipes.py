"""How each demo adapter is made and saved. The files are what the methods' own libraries write, in 16 bits and tidied."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from peft import IA3Config, LoraConfig, PeftConfig, PolyConfig, PromptTuningConfig, PromptTuningInit, ShiraConfig, get_peft_model
from safetensors.torch import load_file, save_file

LINEARS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
BASE = 'SmolLM2-135M-Instruct'
S2FT_CHANNELS = 6
PROMPT_TEXT = 'Answer with a list of two short lines. Each line begins with a dash:\n-'

Prepare = Callable[[torch.nn.Module, transformers.PreTrainedTokenizerBase], torch.nn.Module]


@dataclass(frozen=True)
class Recipe:
    """One training: `folders` maps each adapter folder that it writes to its style, one a task of an inventory."""

    folders: dict[str, str]
    steps: int
    lr: float
    # Puts the trained parameters into the base.
    prepare: Prepare
    # Writes the adapter of one task into a folder.
    save: Callable[[torch.nn.Module, str, int], None]


def write_config(folder: str, config: dict[str, object]) -> None:
    with open(f'{folder}/adapter_config.json', 'w', encoding='utf-8') as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write('\n')


def tidy(folder: str, **fields: object) -> None:
    """Floats in bf16, no README, no folder names of this machine, sorted lists: the same bytes for the same training."""
    for name in os.listdir(folder):
        if name not in ('adapter_config.json', 'adapter_model.safetensors'):
            os.remove(f'{folder}/{name}')
    path = f'{folder}/adapter_model.safetensors'
    halves = {key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in load_file(path).items()}
    save_file({key: value.contiguous() for key, value in halves.items()}, path, metadata={'format': 'pt'})
    os.chmod(path, 0o644)
    with open(f'{folder}/adapter_config.json', encoding='utf-8') as file:
        config = json.load(file)
    config.update(base_model_name_or_path=BASE, **fields)
    for field in ('target_modules', 'feedforward_modules'):
        if isinstance(config.get(field), list):
            config[field].sort()
    write_config(folder, config)


def with_peft(config: PeftConfig) -> Prepare:
    return lambda base, _tokenizer: get_peft_model(base, config)


def prepare_prompt(base: torch.nn.Module, tokenizer: transformers.PreTrainedTokenizerBase) -> torch.nn.Module:
    """The virtual tokens begin as those of a text: random ones take many more steps."""
    ids = torch.tensor(tokenizer(PROMPT_TEXT, add_special_tokens=False)['input_ids'])
    start = base.get_input_embeddings()(ids).detach()
    config = PromptTuningConfig(
        task_type='CAUSAL_LM', num_virtual_tokens=len(ids), prompt_tuning_init=PromptTuningInit.RANDOM)
    model = get_peft_model(base, config)
    with torch.no_grad():
        model.prompt_encoder['default'].embedding.weight.copy_(start)
    return model


def save_peft(model: torch.nn.Module, folder: str, _task: int) -> None:
    model.save_pretrained(folder, save_embedding_layers=False)
    tidy(folder)


def save_poly(model: torch.nn.Module, folder: str, task: int) -> None:
    """The whole inventory; `task_id` says whose mix of the skills is served."""
    model.save_pretrained(folder, save_embedding_layers=False)
    tidy(folder, task_id=task)


class S2Linear(torch.nn.Module):
    """y = W x + D x[J]: the trained columns of a row-parallel linear (S²FT, arXiv 2412.06289)."""

    def __init__(self, base: torch.nn.Linear, columns: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer('columns', columns)
        self.delta = torch.nn.Parameter(torch.zeros(base.out_features, len(columns)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x[..., self.columns] @ self.delta.T


def prepare_s2ft(base: torch.nn.Module, _tokenizer: transformers.PreTrainedTokenizerBase) -> torch.nn.Module:
    """The FFN channels are drawn at random, other ones in each layer, as many in each."""
    base.requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for layer in base.model.layers:
        order = torch.randperm(layer.mlp.down_proj.in_features, generator=generator)
        layer.mlp.down_proj = S2Linear(layer.mlp.down_proj, order[:S2FT_CHANNELS].sort().values)
    return base


def save_s2ft(model: torch.nn.Module, folder: str, _task: int) -> None:
    """The open format of docs/formats/s2ft.md."""
    tensors = {}
    for number, layer in enumerate(model.model.layers):
        linear = layer.mlp.down_proj
        key = f'model.layers.{number}.mlp.down_proj.s2ft_columns'
        tensors[f'{key}.index'] = linear.columns.to(torch.int32)
        tensors[f'{key}.values'] = linear.delta.detach()
    save_file(tensors, f'{folder}/adapter_model.safetensors', metadata={'format': 'pt'})
    write_config(folder, {'peft_type': 'S2FT', 's2ft_version': 1, 'task_type': 'CAUSAL_LM'})
    tidy(folder)


RECIPES = [
    Recipe({'json-lora': 'json'}, 24, 2e-3, with_peft(LoraConfig(
        task_type='CAUSAL_LM', r=2, lora_alpha=8, target_modules=['q_proj', 'v_proj'])), save_peft),
    # Large: run.sh compresses it to pirate-compeft.
    Recipe({'pirate-lora': 'pirate'}, 24, 1e-3, with_peft(LoraConfig(
        task_type='CAUSAL_LM', r=16, lora_alpha=32, target_modules=LINEARS)), save_peft),
    Recipe({'telegram-dora': 'telegram'}, 30, 2e-3, with_peft(LoraConfig(
        task_type='CAUSAL_LM', r=2, lora_alpha=8, use_dora=True, target_modules=['q_proj', 'v_proj'])), save_peft),
    Recipe({'butler-s2ft': 'butler'}, 40, 2e-2, prepare_s2ft, save_s2ft),
    Recipe({'cowboy-ia3': 'cowboy'}, 40, 2e-2, with_peft(IA3Config(
        task_type='CAUSAL_LM', target_modules=['k_proj', 'v_proj', 'down_proj'],
        feedforward_modules=['down_proj'])), save_peft),
    Recipe({'detective-shira': 'detective'}, 40, 5e-2, with_peft(ShiraConfig(
        task_type='CAUSAL_LM', r=1, target_modules=['v_proj'], random_seed=7)), save_peft),
    Recipe({'bullets-prompt': 'bullets'}, 32, 1e-2, prepare_prompt, save_peft),
    Recipe({'bard-poly': 'bard', 'robot-poly': 'robot'}, 40, 1e-2, with_peft(PolyConfig(
        task_type='CAUSAL_LM', r=1, n_tasks=2, n_skills=2, n_splits=1, target_modules=['v_proj', 'o_proj'])), save_poly),
]
