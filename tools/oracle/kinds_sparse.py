"""Kinds that change single weights, put prompts or prefixes before the text, or stand behind a sub-block.

peft makes those that it has. SFT, composable SFT and AdapterHub's bottlenecks are transcribed in float64 from their own code.
composable-sft and sft have a pickle beside the folder, as users have it: `manyfold adapters convert` must make the folder of it.
"""

import json
import os

import numpy as np
import torch
from peft import (
    AdaptionPromptConfig,
    CartridgeConfig,
    CPTConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    ShiraConfig,
    SupertuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file

from kinds import Kind, Rule, Work, fan_in, fill, normal, peft_adapter, save_config, save_tensors
from tiny_models import round_bf16

BOTH = ('llama-gqa', 'gemma3')
TASK = 'CAUSAL_LM'


def shira(work: Work):
    config = ShiraConfig(r=1, target_modules=['q_proj', 'v_proj', 'down_proj'], random_seed=7, task_type=TASK)
    return peft_adapter(work, config, {'shira_weight': normal(0.5)})


def supertuning(work: Work):
    config = SupertuningConfig(sparsity=0.98, r=1, lora_alpha=3, target_modules=['k_proj', 'o_proj', 'up_proj'], task_type=TASK)
    rules: dict[str, Rule] = {'supertuning_values': normal(0.5), 'supertuning_lora_A': fan_in(), 'supertuning_lora_B': normal(0.2)}
    return peft_adapter(work, config, rules)


def prompt_adapter(work: Work, config: PeftConfig, rules: dict[str, Rule], extra: dict | None = None) -> PeftModel:
    """As peft_adapter, for methods whose config names no modules; `extra` are fields that peft does not know."""
    model = get_peft_model(work.load(), config)
    fill(model, work, rules)
    model.save_pretrained(work.folder)
    os.remove(f'{work.folder}/README.md')
    path = f'{work.folder}/adapter_model.safetensors'
    save_tensors(work.folder, {key: round_bf16(value.numpy()).to(torch.bfloat16) for key, value in load_file(path).items()})
    loaded = PeftModel.from_pretrained(work.load(), work.folder).to(torch.float32).eval()
    with open(f'{work.folder}/adapter_config.json', encoding='utf-8') as file:
        fields = json.load(file)
    save_config(work, {**fields, 'base_model_name_or_path': work.spec.name, **(extra or {})})
    return loaded


def prompt_tuning(work: Work):
    return prompt_adapter(work, PromptTuningConfig(num_virtual_tokens=4, task_type=TASK), {'embedding': normal(0.5)})


def p_tuning(work: Work):
    config = PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16, task_type=TASK)
    return prompt_adapter(work, config, {'embedding': normal(1.0), 'mlp_head': fan_in(1.5)})


def multitask(work: Work):
    config = MultitaskPromptTuningConfig(num_virtual_tokens=3, num_tasks=3, num_ranks=2, task_type=TASK)
    rules: dict[str, Rule] = {'prefix_task_': normal(0.8), 'embedding': normal(0.8)}
    model = prompt_adapter(work, config, rules, {'task_id': 1})
    return lambda tokens: model(input_ids=torch.tensor([tokens]), task_ids=torch.tensor([1])).logits[0]


def cpt(work: Work):
    config = CPTConfig(
        cpt_token_ids=[5, 77, 130, 9], cpt_mask=[1] * 4, cpt_tokens_type_mask=[1, 2, 3, 4], opt_projection_epsilon=4.0,
        opt_projection_format_epsilon=6.0, task_type=TASK,
    )
    return prompt_adapter(work, config, {'delta_embedding': normal(0.6)})


def prefix_shape(work: Work) -> dict:
    config = work.load().config
    heads = config.num_key_value_heads
    return {'num_attention_heads': heads, 'token_dim': heads * config.head_dim, 'task_type': TASK}


def prefix_tuning(work: Work):
    # Where hidden / heads is not head_dim, peft has to be told the shape.
    shape = prefix_shape(work) if work.spec.name == 'gemma3' else {'task_type': TASK}
    return prompt_adapter(work, PrefixTuningConfig(num_virtual_tokens=4, **shape), {'embedding': normal(0.8)})


def cartridge(work: Work):
    config = CartridgeConfig(num_virtual_tokens=3, num_frozen_tokens=1, **prefix_shape(work))
    return prompt_adapter(work, config, {'embedding': normal(0.8)})


def adaption_prompt(work: Work):
    config = AdaptionPromptConfig(adapter_len=3, adapter_layers=1 if work.spec.name == 'llama-gqa' else 2, task_type=TASK)
    return prompt_adapter(work, config, {'adaption_prompt': normal(1.0), 'adaption_gate': normal(0.2, 1.0)})


def random_entries(work: Work, name: str, count: int, size: int, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` different flat indices in no order, and values that bf16 holds."""
    generator = work.random(name)
    indices = torch.from_numpy(generator.choice(size, count, replace=False))
    return indices, round_bf16(std * generator.standard_normal(count))


def adapted_in_float64(work: Work, deltas: dict[str, torch.Tensor], absolute: dict[str, torch.Tensor] | None = None):
    model = work.load(torch.float64)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, delta in deltas.items():
            parameters[name] += delta.to(torch.float64)
        for name, value in (absolute or {}).items():
            parameters[name].copy_(value)
    return model


def sft(work: Work):
    """AlanAnsell/peft: W.view(-1).scatter_add_(0, indices, values), indices int32, in the order of the last reselection."""
    parameters = dict(work.load().named_parameters())
    tensors, deltas = {}, {}
    for name, parameter in parameters.items():
        if not any(part in name for part in ('q_proj.weight', 'v_proj.weight', 'down_proj.weight')):
            continue
        indices, values = random_entries(work, name, 60, parameter.numel(), 0.7)
        key = f'base_model.model.{name.removesuffix(".weight")}.sft_delta'
        tensors |= {f'{key}.values': values, f'{key}.indices': indices.to(torch.int32)}
        deltas[name] = torch.zeros(parameter.numel()).scatter_add_(0, indices, values).view(parameter.shape)
    save_tensors(work.folder, tensors)
    torch.save(tensors, f'{work.folder}/adapter_model.bin')
    save_config(work, {
        'peft_type': 'SFT', 'task_type': TASK, 'density': 0.01, 'num_tunable_weights': None, 'selection_algorithm': 'rigl',
        'reselection_steps': 20, 'initial_reselection_rate': 0.2, 'dtype': 'float32', 'inference_mode': True,
        'target_modules': ['q_proj', 'v_proj', 'down_proj'],
    })
    return adapted_in_float64(work, deltas)


def encode_steps(tensor: torch.Tensor) -> dict:
    """encode_sparse_tensor of composable-sft: a flat index whose first coordinate runs fastest, as steps."""
    sparse = tensor.to_sparse().coalesce()
    multipliers = np.cumprod([1] + list(tensor.size())[:-1], dtype=np.int64)
    flat = np.matmul(multipliers, sparse.indices().numpy())
    order = np.argsort(flat, kind='stable')
    steps = np.diff(flat[order]).tolist()
    # Its code leaves the first step a numpy scalar among the ints.
    return {'size': tensor.size(), 'index_steps': [flat[order][0], *steps], 'values': sparse.values()[torch.from_numpy(order)]}


def composable_sft(work: Work):
    parameters = dict(work.load().named_parameters())
    wanted = {'q_proj.weight': 50, 'up_proj.weight': 50, 'o_proj.weight': 50, 'q_proj.bias': 9, 'embed_tokens.weight': 40, 'input_layernorm.weight': 12}
    tensors, deltas = {}, {}
    for name, parameter in parameters.items():
        count = next((count for part, count in wanted.items() if name.endswith(part)), 0)
        if count == 0:
            continue
        indices, values = random_entries(work, name, count, parameter.numel(), 0.7)
        values = torch.where(values == 0, 1.0, values)
        deltas[name] = torch.zeros(parameter.numel()).scatter_add_(0, indices, values).view(parameter.shape)
        path, part = name.rsplit('.', 1)
        key = f'base_model.model.{path}.sft_{"bias_" if part == "bias" else ""}delta'
        flat = deltas[name].reshape(-1)
        tensors |= {f'{key}.values': flat[flat != 0], f'{key}.indices': flat.nonzero()[:, 0].to(torch.int32)}
    absolute = {'model.norm.weight': round_bf16(0.3 * work.random('norm').standard_normal(parameters['model.norm.weight'].shape) + 1)}
    tensors |= {f'base_model.model.{name}': value for name, value in absolute.items()}
    save_tensors(work.folder, tensors)
    torch.save({'diffs': {name: encode_steps(delta) for name, delta in deltas.items()}, 'abs': absolute}, f'{work.folder}/pytorch_diff.bin')
    save_config(work, {'peft_type': 'SFT', 'format': 'composable-sft'})
    return adapted_in_float64(work, deltas, absolute)


BOTTLENECK_DEFAULTS = {
    'adapter_residual_before_ln': False, 'cross_adapter': False, 'dropout': 0.0, 'factorized_phm_W': True, 'factorized_phm_rule': False,
    'hypercomplex_nonlinearity': 'glorot-uniform', 'init_weights': 'bert', 'inv_adapter': None, 'inv_adapter_reduction_factor': None,
    'is_parallel': False, 'learn_phm': True, 'leave_out': [], 'ln_after': False, 'ln_before': False, 'mh_adapter': True,
    'non_linearity': 'swish', 'original_ln_after': True, 'original_ln_before': False, 'output_adapter': True, 'phm_bias': True,
    'phm_c_init': 'normal', 'phm_dim': 4, 'phm_init_range': 0.0001, 'phm_layer': False, 'phm_rank': 1, 'reduction_factor': 16,
    'residual_before_ln': True, 'scaling': 1.0, 'shared_W_phm': False, 'shared_phm_rule': True, 'stochastic_depth': 0.0, 'use_gating': False,
}
ACTIVATIONS = {'swish': torch.nn.functional.silu, 'gelu': torch.nn.functional.gelu, 'relu': torch.relu}


class Bottleneck:
    """
    One adapter block of AdapterHub, methods/modeling.py, in float64: t -> t + s (U act(D n(i) + b) + b), where i is t, or with
    the residual stream r its sum with t (original_ln_before), or r (is_parallel).
    """

    def __init__(self, work: Work, prefix: str, hidden: int, config: dict, shared: dict[str, torch.Tensor]) -> None:
        self.work, self.prefix, self.config, self.shared = work, prefix, config, shared
        self.tensors: dict[str, torch.Tensor] = {}
        width = hidden // config['reduction_factor']
        module = 'adapter_down.0'
        self.norm = config['ln_before']
        if self.norm:
            module = 'adapter_down.1'
            for part, mean in (('weight', 1.0), ('bias', 0.0)):
                value = self.make(f'adapter_norm_before.{part}', (hidden,), 0.3, mean)
                self.tensors[f'adapter_down.0.{part}'] = value.clone()
        self.down, self.down_bias = self.linear(module, hidden, width, 1.5)
        self.up, self.up_bias = self.linear('adapter_up', width, hidden, 1.5)
        scaling = config['scaling']
        shape = {'learned': (1,), 'channel': (hidden,)}.get(scaling)
        self.scale = self.make('scaling', shape, 0.4, 1.0) if shape else torch.tensor(scaling)

    def make(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> torch.Tensor:
        value = round_bf16(mean + std * self.work.random(self.prefix + name).standard_normal(shape))
        self.tensors[name] = value
        return value

    def linear(self, module: str, n: int, m: int, gain: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix [n, m] and bias."""
        if not self.config['phm_layer']:
            weight = self.make(f'{module}.weight', (m, n), gain / n**0.5)
            return weight.T, self.make(f'{module}.bias', (m,), 0.2)
        p, rank = self.config['phm_dim'], self.config['phm_rank']
        left = self.make(f'{module}.W_left', (p, n // p, rank), 1.0).double()
        right = self.make(f'{module}.W_right', (p, rank, m // p), gain / n**0.5).double()
        blocks = torch.bmm(left, right)
        rule = self.shared['phm_rule'].double()
        return sum(torch.kron(rule[i], blocks[i]) for i in range(p)), self.make(f'{module}.b', (m,), 0.2)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        n = residual if self.config['is_parallel'] else x + residual if self.config['original_ln_before'] else x
        if self.norm:
            weight, bias = (self.tensors[f'adapter_norm_before.{part}'].double() for part in ('weight', 'bias'))
            n = torch.nn.functional.layer_norm(n, n.shape[-1:], weight, bias, 1e-5)
        middle = ACTIVATIONS[self.config['non_linearity']](n @ self.down.double() + self.down_bias.double())
        return x + (middle @ self.up.double() + self.up_bias.double()) * self.scale.double()


def bottleneck(**settings: object):
    config = {**BOTTLENECK_DEFAULTS, **settings}

    def make(work: Work) -> torch.nn.Module:
        model = work.load(torch.float64)
        hidden, tensors = model.config.hidden_size, {}
        shared = {'phm_rule': round_bf16(0.5 * work.random('rule').standard_normal((4, 4, 4)))} if config['phm_layer'] else {}
        for index, layer in enumerate(model.model.layers):
            if index in config['leave_out']:
                continue
            for flag, place, module in (('mh_adapter', 'attention_adapters', layer.self_attn), ('output_adapter', 'output_adapters', layer.mlp)):
                if not config[flag]:
                    continue
                prefix = f'model.layers.{index}.{place}.adapters.tiny.'
                block = Bottleneck(work, prefix, hidden, config, shared)
                tensors |= {prefix + name: value for name, value in block.tensors.items()}
                # What a sub-block's norm reads is the residual stream before it.
                stream: list[torch.Tensor] = []
                norm = layer.input_layernorm if place == 'attention_adapters' else layer.post_attention_layernorm
                norm.register_forward_pre_hook(lambda _m, args, stream=stream: stream.__setitem__(slice(None), [args[0]]))
                if place == 'attention_adapters':
                    module.register_forward_hook(lambda _m, _a, output, block=block, stream=stream: (block(output[0], stream[0]), *output[1:]))
                else:
                    module.register_forward_hook(lambda _m, _a, output, block=block, stream=stream: block(output, stream[0]))
        tensors |= {f'model.shared_parameters.tiny.{name}': value for name, value in shared.items()}
        save_tensors(work.folder, {name: value.to(torch.bfloat16) for name, value in tensors.items()})
        outer = {'config': config, 'hidden_size': hidden, 'model_class': type(model).__name__, 'model_name': work.spec.name}
        with open(f'{work.folder}/adapter_config.json', 'w', encoding='utf-8') as file:
            json.dump({**outer, 'model_type': model.config.model_type, 'name': 'tiny', 'version': 'adapters.1.2.0'}, file, indent=2, sort_keys=True)
        return model

    return make


HUB = ('llama-gqa', 'mistral-window')
KINDS = [
    Kind('shira', BOTH, shira),
    Kind('supertuning', BOTH, supertuning),
    Kind('sft', BOTH, sft),
    Kind('composable-sft', (*BOTH, 'llama3-bias'), composable_sft),
    Kind('prompt-tuning', BOTH, prompt_tuning),
    Kind('p-tuning', BOTH, p_tuning),
    Kind('multitask-prompt', BOTH, multitask),
    Kind('cpt', BOTH, cpt),
    Kind('prefix-tuning', BOTH, prefix_tuning),
    Kind('cartridge', BOTH, cartridge),
    # peft has it for llama and mistral; the tiny mistral's head_dim is not hidden / heads, which peft cannot run.
    Kind('adaption-prompt', ('llama-gqa', 'llama3-bias'), adaption_prompt),
    Kind('adapterhub-double', HUB, bottleneck()),
    Kind('adapterhub-norm', HUB, bottleneck(ln_before=True, scaling='channel', non_linearity='gelu', mh_adapter=False, leave_out=[0])),
    Kind('adapterhub-sum', ('llama-gqa',), bottleneck(original_ln_before=True, leave_out=[0])),
    Kind('adapterhub-parallel', ('mistral-window',), bottleneck(is_parallel=True, scaling=2.0, ln_before=True, leave_out=[0])),
    Kind('adapterhub-compacter', HUB, bottleneck(phm_layer=True, scaling='learned', non_linearity='relu', output_adapter=False)),
]
