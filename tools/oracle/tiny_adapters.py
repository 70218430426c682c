"""Random LoRA adapters of the tiny models, made and saved by peft. Called by generate.py."""

import json
import os
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tiny_models import TinyModel, round_bf16, seed_of

# Fields of adapter_config.json that peft keeps as sets.
SET_FIELDS = ('target_modules', 'exclude_modules', 'feedforward_modules', 'modules_to_save')

LINEARS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']


@dataclass(frozen=True)
class Recipe:
    """Fields of LoraConfig, and the type of the saved tensors."""

    settings: dict
    dtype: torch.dtype = torch.bfloat16


RECIPES = {
    'qkvo-r8': Recipe(dict(r=8, lora_alpha=16, target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj'])),
    'all-r3-rslora': Recipe(dict(r=3, lora_alpha=4, target_modules=LINEARS, use_rslora=True)),
    'patterns': Recipe(
        dict(
            r=4, lora_alpha=8, target_modules=['q_proj', 'k_proj', 'up_proj', 'down_proj'],
            rank_pattern={'layers.0.self_attn.q_proj': 1, 'down_proj': 7}, alpha_pattern={'k_proj': 3, r'layers\.1\.mlp\.up_proj': 10},
        ),
        torch.float16,
    ),
    'regex-mlp-r1': Recipe(dict(r=1, lora_alpha=2, target_modules=r'.*\.layers\.[01]\.mlp\.(gate|up)_proj'), torch.float32),
    'layer1-r16': Recipe(
        dict(r=16, lora_alpha=8, target_modules=['q_proj', 'v_proj'], layers_to_transform=[1], layers_pattern='layers')
    ),
    'head-r8': Recipe(dict(r=8, lora_alpha=8, target_modules=['lm_head', 'o_proj'])),
    'embed-r3': Recipe(dict(r=3, lora_alpha=6, target_modules=['embed_tokens', 'v_proj'])),
}


def fill(model: PeftModel, seed_parts: tuple[str, ...]) -> None:
    """A with variance 1 / in, B so large that the adapter changes what the model says."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'lora_' not in name:
                continue
            generator = np.random.default_rng(seed_of(*seed_parts, name))
            noise = generator.standard_normal(tuple(parameter.shape))
            # An embedding's A is read by rows of a one-hot input, so it is not divided by the width.
            std = 0.3 if 'lora_B' in name or 'embedding' in name else 1 / np.sqrt(parameter.shape[1])
            parameter.copy_(round_bf16(std * noise))


def save_adapter(spec: TinyModel, model: torch.nn.Module, name: str, folder: str) -> None:
    recipe = RECIPES[name]
    peft_model = get_peft_model(model, LoraConfig(task_type='CAUSAL_LM', lora_dropout=0.0, **recipe.settings))
    fill(peft_model, (spec.name, name))
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    peft_model.unload()
    readme = f'{folder}/README.md'
    if os.path.exists(readme):
        os.remove(readme)
    tensors_path = f'{folder}/adapter_model.safetensors'
    tensors = {key: value.to(recipe.dtype).contiguous() for key, value in load_file(tensors_path).items()}
    save_file(tensors, tensors_path, metadata={'format': 'pt'})
    tidy_config(f'{folder}/adapter_config.json', spec.name)


def tidy_config(path: str, base: str) -> None:
    """peft writes sets in any order and the folder it ran in; the committed file has neither."""
    with open(path, encoding='utf-8') as file:
        config = json.load(file)
    config['base_model_name_or_path'] = base
    for field in SET_FIELDS:
        if isinstance(config.get(field), list):
            config[field].sort()
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(config, file, indent=2, sort_keys=True)


def load_adapter(model: torch.nn.Module, folder: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    """The model with the saved adapter, as peft reads it from the folder."""
    return PeftModel.from_pretrained(model, folder).to(dtype).eval()
