"""The tiny random models, one per family and kind of RoPE, as Hugging Face folders. Called by generate.py.

Classes and configs are those of transformers; the values come from numpy's PCG64, so that they are the same on every
machine, and are rounded to bf16 (and zero below 2^-14), so that bf16, f16 and f32 files hold exactly the same model.
"""

import json
import os
import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import tiny_tokenizer


@dataclass(frozen=True)
class TinyModel:
    name: str
    config: type
    model: type
    settings: dict
    dtype: torch.dtype = torch.bfloat16
    # Largest shard in bytes; 0 writes one file.
    shard_bytes: int = 0
    # config.json as transformers 4 wrote it: rope_theta and rope_scaling in place of rope_parameters, torch_dtype.
    old_config: bool = False
    with_bos: bool = False
    template_in_own_file: bool = False
    # Names of RECIPES in tiny_adapters.py.
    adapters: tuple[str, ...] = ()
    # GGUF types to write, and settings that GGUF cannot hold and that its model has otherwise.
    gguf: tuple[str, ...] = ()
    gguf_settings: dict = field(default_factory=dict)


def default_rope(theta: float) -> dict:
    return {'rope_type': 'default', 'rope_theta': theta}


COMMON = {
    'vocab_size': 320,
    'bos_token_id': tiny_tokenizer.ENDOFTEXT,
    'eos_token_id': tiny_tokenizer.IM_END,
    'pad_token_id': tiny_tokenizer.PAD,
    'max_position_embeddings': 256,
}

MODELS = [
    TinyModel(
        name='llama-gqa', config=LlamaConfig, model=LlamaForCausalLM, old_config=True,
        settings=dict(
            hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=default_rope(10000.0),
        ),
        adapters=('qkvo-r8', 'all-r3-rslora', 'patterns', 'regex-mlp-r1', 'layer1-r16', 'head-r8', 'embed-r3'),
        gguf=('F16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1'),
    ),
    TinyModel(
        name='llama3-bias', config=LlamaConfig, model=LlamaForCausalLM, shard_bytes=140_000, with_bos=True,
        settings=dict(
            vocab_size=331, hidden_size=72, intermediate_size=88, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1, head_dim=24, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True,
            tie_word_embeddings=False, eos_token_id=[tiny_tokenizer.IM_END, tiny_tokenizer.ENDOFTEXT],
            rope_parameters={
                'rope_type': 'llama3', 'rope_theta': 20000.0, 'factor': 8.0, 'low_freq_factor': 1.0,
                'high_freq_factor': 4.0, 'original_max_position_embeddings': 64,
            },
        ),
        adapters=('qkvo-r8', 'all-r3-rslora', 'patterns', 'head-r8'),
        gguf=('BF16',),
    ),
    TinyModel(
        name='llama-linear', config=LlamaConfig, model=LlamaForCausalLM, template_in_own_file=True,
        settings=dict(
            hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 4.0},
        ),
        adapters=('regex-mlp-r1', 'layer1-r16', 'all-r3-rslora', 'embed-r3'),
        gguf=('Q4_0',),
    ),
    TinyModel(
        name='llama-yarn', config=LlamaConfig, model=LlamaForCausalLM, dtype=torch.float32, old_config=True,
        settings=dict(
            hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            head_dim=24, rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={
                'rope_type': 'yarn', 'rope_theta': 10000.0, 'factor': 8.0, 'original_max_position_embeddings': 32,
            },
        ),
        adapters=('qkvo-r8', 'patterns', 'layer1-r16', 'head-r8'),
        gguf=('F32',),
    ),
    TinyModel(
        name='mistral-window', config=MistralConfig, model=MistralForCausalLM, dtype=torch.float16, old_config=True,
        settings=dict(
            hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            head_dim=40, rms_norm_eps=1e-5, tie_word_embeddings=False, sliding_window=16,
            rope_parameters=default_rope(10000.0),
        ),
        adapters=('qkvo-r8', 'all-r3-rslora', 'regex-mlp-r1', 'head-r8'),
    ),
    TinyModel(
        name='qwen2-window', config=Qwen2Config, model=Qwen2ForCausalLM,
        settings=dict(
            hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            rms_norm_eps=1e-6, tie_word_embeddings=True, use_sliding_window=True, sliding_window=12,
            max_window_layers=1, rope_parameters=default_rope(1000000.0),
        ),
        adapters=('qkvo-r8', 'patterns', 'regex-mlp-r1', 'layer1-r16'),
        gguf=('Q8_0',), gguf_settings=dict(use_sliding_window=False, sliding_window=None, layer_types=['full_attention'] * 3),
    ),
    TinyModel(
        name='qwen3', config=Qwen3Config, model=Qwen3ForCausalLM, old_config=True,
        settings=dict(
            hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=24, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters=default_rope(1000000.0),
        ),
        adapters=('qkvo-r8', 'all-r3-rslora', 'patterns', 'embed-r3'),
        gguf=('Q8_0',),
    ),
    TinyModel(
        name='gemma3', config=Gemma3TextConfig, model=Gemma3ForCausalLM, old_config=True, with_bos=True, template_in_own_file=True,
        settings=dict(
            hidden_size=64, intermediate_size=40, num_hidden_layers=7, num_attention_heads=2, num_key_value_heads=1,
            head_dim=24, rms_norm_eps=1e-6, query_pre_attn_scalar=40, sliding_window=10, tie_word_embeddings=True,
            rope_parameters={
                'full_attention': {'rope_type': 'linear', 'rope_theta': 1000000.0, 'factor': 8.0},
                'sliding_attention': default_rope(10000.0),
            },
        ),
        adapters=('qkvo-r8', 'regex-mlp-r1', 'head-r8', 'embed-r3'),
        gguf=('Q8_0',), gguf_settings=dict(query_pre_attn_scalar=24),
    ),
]


def seed_of(*parts: str) -> int:
    return zlib.crc32('/'.join(parts).encode())


def round_bf16(values: np.ndarray) -> torch.Tensor:
    """float32 values that bf16 and f16 both hold exactly."""
    rounded = torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16).to(torch.float32)
    return torch.where(rounded.abs() < 2.0**-14, torch.zeros_like(rounded), rounded)


def random_value(name: str, shape: tuple[int, ...], generator: np.random.Generator, gemma: bool) -> torch.Tensor:
    noise = generator.standard_normal(shape)
    if name.endswith('norm.weight'):
        return round_bf16(0.25 * noise + (0.0 if gemma else 1.0))
    if name.endswith('.bias'):
        return round_bf16(0.3 * noise)
    if 'embed_tokens' in name or 'lm_head' in name:
        return round_bf16((0.06 if gemma else 0.15) * noise)
    # Strong attention scores and sub-blocks: a tied model would else only repeat its last token.
    gain = 1.4 if 'q_proj' in name or 'k_proj' in name else 2.0 if 'o_proj' in name or 'down_proj' in name else 1.0
    return round_bf16(gain * noise / np.sqrt(shape[-1]))


def make_model(spec: TinyModel, extra_settings: dict | None = None) -> torch.nn.Module:
    """The model in float32; extra_settings change the config but no value."""
    config = spec.config(**{**COMMON, **spec.settings, **(extra_settings or {})})
    config._attn_implementation = 'eager'
    model = spec.model(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = np.random.default_rng(seed_of(spec.name, name))
            parameter.copy_(random_value(name, tuple(parameter.shape), generator, spec.name.startswith('gemma')))
    return model


def write_old_config(folder: str) -> None:
    path = f'{folder}/config.json'
    with open(path, encoding='utf-8') as file:
        config = json.load(file)
    rope = config.pop('rope_parameters')
    if 'full_attention' in rope:
        # Gemma 3: local layers have a base of their own, and which ones they are is told by a period.
        config['rope_local_base_freq'] = rope['sliding_attention']['rope_theta']
        config['sliding_window_pattern'] = config.pop('_sliding_window_pattern')
        del config['layer_types']
        rope = rope['full_attention']
    config['rope_theta'] = rope.pop('rope_theta')
    config['rope_scaling'] = None if rope['rope_type'] == 'default' else rope
    config['torch_dtype'] = config.pop('dtype')
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(config, file, indent=2)


def save_model(spec: TinyModel, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    model = make_model(spec).to(spec.dtype)
    model.save_pretrained(folder, max_shard_size=spec.shard_bytes or '5GB')
    if spec.old_config:
        write_old_config(folder)
    tiny_tokenizer.save(folder, spec.with_bos, spec.template_in_own_file)


def load_model(spec: TinyModel, folder: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """What transformers makes of the folder, which is what the goldens are about."""
    return spec.model.from_pretrained(folder, dtype=dtype, attn_implementation='eager').eval()
