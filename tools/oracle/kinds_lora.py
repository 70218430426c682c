"""Kinds of the LoRA family: every variant of PEFT's LORA, ADALORA, and the LoRA files of MLX-LM and llama.cpp."""

import json
import os
import shutil

import gguf
import numpy as np
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from safetensors.torch import load_file

from kinds import LORA_RULES, Kind, Rule, Work, fill, jitter, normal, peft_adapter, save_tensors, tidy_peft_folder

MODELS = ('llama-gqa', 'gemma3')
ATTENTION = ['q_proj', 'v_proj']
RULES: dict[str, Rule] = {
    'magnitude': jitter(0.2),
    'lora_B.default.bias': normal(0.3),
    'lora_diag': normal(0.3, 1.0),
    'lora_E': normal(0.5),
    **LORA_RULES,
    'trainable_tokens_delta': normal(0.2),
    'embed_tokens.modules_to_save': jitter(0.4),
    'lm_head.modules_to_save': jitter(0.4),
    'norm': jitter(0.3),
    'bias': normal(0.4),
}


def lora(**settings: object) -> LoraConfig:
    """On one layer, to keep the files small; a pattern chooses for itself."""
    targets = settings.get('target_modules', ATTENTION)
    if isinstance(targets, list):
        settings = {'layers_to_transform': [1], 'layers_pattern': 'layers', **settings}
    return LoraConfig(**{'task_type': 'CAUSAL_LM', 'lora_dropout': 0.0, 'r': 2, 'lora_alpha': 4, 'target_modules': ATTENTION, **settings})


def made(**settings: object):
    """A kind that is nothing but fields of LoraConfig."""
    return lambda work: peft_adapter(work, lora(**settings), RULES)


def qalora(work: Work) -> PeftModel:
    """peft offers QA-LoRA for GPTQ bases only, but its maths is a plain function of the linear's input."""
    from peft.tuners.lora import layer, variants

    resolve = layer.Linear.resolve_lora_variant
    layer.Linear.resolve_lora_variant = lambda self, *, config, **rest: (
        variants.QALoraLinearVariant() if config.use_qalora else resolve(self, config=config, **rest)
    )
    try:
        return peft_adapter(work, lora(use_qalora=True, qalora_group_size=4), RULES)
    finally:
        layer.Linear.resolve_lora_variant = resolve


def adalora(work: Work) -> PeftModel:
    """As after a training that pruned ranks: rank_pattern holds the masks, and the file the ranks that are left."""
    config = AdaLoraConfig(
        task_type='CAUSAL_LM', init_r=4, target_r=2, lora_alpha=8, target_modules=['q_proj', 'o_proj'], total_step=10, lora_dropout=0.0,
        layers_to_transform=[1], layers_pattern='layers',
    )
    model = get_peft_model(work.load(), config)
    fill(model, work, RULES)
    names = [name for name, _ in model.named_parameters() if 'lora_E' in name]
    config.rank_pattern = {name.removeprefix('base_model.model.'): [(i + at) % 3 > 0 for i in range(4)] for at, name in enumerate(names)}
    with torch.no_grad():
        # Training itself zeroes the pruned singular values.
        for name, parameter in model.named_parameters():
            if 'lora_E' in name:
                keep = config.rank_pattern[name.removeprefix('base_model.model.')]
                parameter *= torch.tensor(keep).unsqueeze(1)
    model.save_pretrained(work.folder, save_embedding_layers=False)
    tidy_peft_folder(work)
    return PeftModel.from_pretrained(work.load(), work.folder).to(torch.float32).eval()


def modules_to_save(work: Work) -> PeftModel:
    """Norms, and where the model has few layers a whole embedding."""
    embedding = ['embed_tokens'] if work.spec.name == 'llama-gqa' else []
    return peft_adapter(work, lora(modules_to_save=['norm', 'input_layernorm', *embedding]), RULES)


INVOCATION = [7, 8]


def alora(work: Work) -> PeftModel:
    return peft_adapter(work, lora(target_modules=['q_proj', 'v_proj', 'down_proj'], alora_invocation_tokens=INVOCATION), RULES)


def twice_invoked(prompt: list[int]) -> list[int]:
    """Only the last occurrence counts."""
    return [*prompt[:2], *INVOCATION, *prompt[4:6], *INVOCATION, *prompt[8:]]


def plain_beside(work: Work) -> tuple[PeftModel, dict[str, torch.Tensor], dict]:
    """A plain LoRA whose folder is emptied again: for files of other programs with the same adapter."""
    model = peft_adapter(work, lora(r=2, lora_alpha=5, target_modules=['q_proj', 'k_proj', 'down_proj'], layers_to_transform=[1]), RULES, torch.float16)
    tensors = load_file(f'{work.folder}/adapter_model.safetensors')
    with open(f'{work.folder}/adapter_config.json', encoding='utf-8') as file:
        config = json.load(file)
    shutil.rmtree(work.folder)
    os.makedirs(work.folder)
    return model, {key.removeprefix('base_model.model.'): value for key, value in tensors.items()}, config


def mlx(work: Work) -> PeftModel:
    """As mlx_lm.lora saves: A and B transposed, the scale as it multiplies."""
    model, tensors, config = plain_beside(work)
    renamed = {key.replace('lora_A.weight', 'lora_a').replace('lora_B.weight', 'lora_b'): value.T for key, value in tensors.items()}
    save_tensors(work.folder, renamed, 'adapters.safetensors')
    parameters = {'rank': config['r'], 'scale': config['lora_alpha'] / config['r'], 'dropout': 0.0}
    parameters['keys'] = ['self_attn.q_proj', 'self_attn.k_proj', 'mlp.down_proj']
    saved = {'fine_tune_type': 'lora', 'lora_parameters': parameters, 'num_layers': -1, 'model': work.spec.name}
    with open(f'{work.folder}/adapter_config.json', 'w', encoding='utf-8') as file:
        json.dump(saved, file, indent=2, sort_keys=True)
    return model


GGUF_NAMES = {'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'mlp.down_proj': 'ffn_down'}


def permuted(b: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k in the order of llama.cpp's RoPE, as its converter of Llama writes them."""
    return b.reshape(heads, 2, b.shape[0] // heads // 2, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def llama_cpp(work: Work) -> PeftModel:
    """As convert_lora_to_gguf.py writes."""
    model, tensors, config = plain_beside(work)
    architecture = 'llama' if work.spec.name.startswith('llama') else 'gemma3'
    writer = gguf.GGUFWriter(f'{work.folder}/adapter.gguf', architecture)
    writer.add_type('adapter')
    writer.add_string('adapter.type', 'lora')
    writer.add_float32('adapter.lora.alpha', float(config['lora_alpha']))
    for key, value in sorted(tensors.items()):
        parts = key.split('.')
        name, factor = '.'.join(parts[3:5]), parts[-2][-1].lower()
        data = value.numpy()
        if architecture == 'llama' and factor == 'b' and name != 'mlp.down_proj':
            heads = work.spec.settings['num_attention_heads' if name.endswith('q_proj') else 'num_key_value_heads']
            data = permuted(data, heads)
        writer.add_tensor(f'blk.{parts[2]}.{GGUF_NAMES[name]}.weight.lora_{factor}', np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


ONE_LAYER = r'.*\.layers\.1\.(self_attn\.(q|o)_proj|mlp\.up_proj)'
KINDS = [
    Kind('lora', MODELS, made(target_modules=['q_proj', 'k_proj', 'down_proj'])),
    Kind('dora', MODELS, made(target_modules=['q_proj', 'v_proj', 'down_proj'], use_dora=True)),
    Kind('dora-rslora-embedding', MODELS, made(target_modules=r'.*(embed_tokens|layers\.1\.self_attn\.o_proj)', use_dora=True, use_rslora=True)),
    Kind('lora-bias', MODELS, made(lora_bias=True)),
    Kind('bias-all', ('qwen2-window', 'llama3-bias'), made(bias='all')),
    Kind('modules-to-save', MODELS, modules_to_save),
    Kind('trainable-tokens', MODELS, made(trainable_token_indices=[130, 139, 153, 125, 174])),
    Kind('pissa', MODELS, made(target_modules=ONE_LAYER, init_lora_weights='pissa')),
    Kind('olora', MODELS, made(target_modules=ONE_LAYER, init_lora_weights='olora')),
    Kind('qalora', MODELS, qalora),
    Kind('bdlora', MODELS, made(r=4, use_bdlora=BdLoraConfig(target_modules_bd_a=['q_proj'], target_modules_bd_b=['v_proj'], nblocks=2))),
    Kind('kasa', MODELS, made(target_modules=ONE_LAYER, kasa_config=KasaConfig())),
    Kind('adalora', MODELS, adalora),
    Kind('alora', MODELS, alora, twice_invoked),
    Kind('mlx-lora', MODELS, mlx),
    Kind('gguf-lora', MODELS, llama_cpp),
]
