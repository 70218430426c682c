"""Kinds that scale, shift, replace rows, share projections or mix skills.

peft makes those that it has. SSF, BitFit, S2-LoRA and mttl's routing of skills are transcribed in float64 from the papers' code.
"""

import json
from collections.abc import Callable

import torch
from peft import (
    BeftConfig,
    DeloraConfig,
    IA3Config,
    LNTuningConfig,
    PeftConfig,
    PolyConfig,
    PveraConfig,
    TinyLoraConfig,
    TrainableTokensConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
)

from kinds import Answerer, Kind, Rule, Work, fan_in, jitter, normal, peft_adapter, save_config, save_tensors
from tiny_models import round_bf16

PLAIN, BIASED = ('llama-gqa', 'gemma3'), ('llama3-bias', 'gemma3')
TASK_TYPE = 'CAUSAL_LM'
TASKS, TASK = 3, 2


def common(*targets: str) -> dict:
    return {'task_type': TASK_TYPE, 'target_modules': list(targets)}


def distinct(step: float) -> Rule:
    """Values in a random order with no two alike along the last axis: which of two equal logits is better is not defined."""
    return lambda noise, _: step * noise.argsort(-1).argsort(-1).to(torch.float64)


def peft_kind(name: str, config: PeftConfig, rules: dict[str, Rule], models: tuple[str, ...] = PLAIN, **save: object) -> Kind:
    return Kind(name, models, lambda work: peft_adapter(work, config, rules, **save))


def poly(splits: int) -> Callable[[Work], Answerer]:
    """One task of three; the folder names it in a field of ours."""

    def make(work: Work) -> Answerer:
        config = PolyConfig(r=2, n_tasks=TASKS, n_skills=3, n_splits=splits, **common('v_proj'))
        model = peft_adapter(work, config, {'poly_lora_': normal(0.5), 'module_logits': normal(2.0)})
        path = f'{work.folder}/adapter_config.json'
        with open(path, encoding='utf-8') as file:
            fields = json.load(file)
        with open(path, 'w', encoding='utf-8') as file:
            json.dump({**fields, 'task_id': TASK}, file, indent=2, sort_keys=True)
        return lambda tokens: model(input_ids=torch.tensor([tokens]), task_ids=torch.tensor([TASK]), use_cache=False).logits[0]

    return make


def token_rows(work: Work) -> Answerer:
    config = TrainableTokensConfig(token_indices=[153, 130, 139, 125, 174], task_type=TASK_TYPE)
    return peft_adapter(work, config, {'trainable_tokens_delta': normal(0.3)})


def noise(work: Work, name: str, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
    return round_bf16(mean + std * work.random(name).standard_normal(shape))


def save(work: Work, tensors: dict[str, torch.Tensor], fields: dict) -> None:
    save_tensors(work.folder, {name: value.to(torch.bfloat16) for name, value in tensors.items()})
    save_config(work, {'task_type': TASK_TYPE, **fields})


def linears(model: torch.nn.Module, *names: str) -> list[tuple[str, torch.nn.Linear]]:
    return [(path, module) for path, module in model.named_modules() if path.rsplit('.', 1)[-1] in names]


def add_to_output(module: torch.nn.Module, delta: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module.register_forward_hook(lambda _, inputs, output: output + delta(inputs[0]))


SCALED = (
    'q_proj', 'k_proj', 'o_proj', 'down_proj', 'lm_head', 'input_layernorm', 'post_attention_layernorm',
    'pre_feedforward_layernorm', 'post_feedforward_layernorm', 'norm', 'q_norm',
)


def ssf(work: Work) -> torch.nn.Module:
    """ssf_ada of the paper's code, y * scale + shift, after linears and norms; q_norm has a scale alone."""
    model, tensors = work.load(torch.float64), {}
    for path, module in linears(model, *SCALED):
        if 'layers.' in path and 'layers.1.' not in path:
            continue
        size = module.out_features if isinstance(module, torch.nn.Linear) else module.weight.shape[0]
        scale, shift = noise(work, path + 's', size, std=0.2, mean=1.0), noise(work, path + 'b', size, std=0.2)
        tensors[f'{path}.ssf_scale'] = scale
        if path.endswith('q_norm'):
            shift = torch.zeros_like(shift)
        else:
            tensors[f'{path}.ssf_shift'] = shift
        module.register_forward_hook(lambda _, _inputs, y, scale=scale.double(), shift=shift.double(): y * scale + shift)
    save(work, tensors, {'peft_type': 'SSF'})
    return model


def bitfit(work: Work) -> torch.nn.Module:
    model, tensors = work.load(torch.float64), {}
    for path, module in linears(model, 'q_proj', 'v_proj', 'o_proj', 'down_proj'):
        tensors[f'{path}.bias'] = noise(work, path, module.out_features, std=0.3)
        module.bias = torch.nn.Parameter(tensors[f'{path}.bias'].double())
    save(work, tensors, {'peft_type': 'BITFIT', 'bias': 'none'})
    return model


def s2lora(work: Work) -> torch.nn.Module:
    """One A and B for all linears, of which each keeps some ranks."""
    model, rank = work.load(torch.float64), 4
    chosen = linears(model, 'q_proj', 'v_proj', 'down_proj')
    width, height = max(m.in_features for _, m in chosen), max(m.out_features for _, m in chosen)
    a, b = noise(work, 'A', rank, width, std=0.2), noise(work, 'B', height, rank, std=0.5)
    tensors = {'base_model.s2lora_A': a, 'base_model.s2lora_B': b}
    for path, module in chosen:
        mid = noise(work, path, rank) * (noise(work, path + 'kept', rank) > -0.3)
        tensors[f'base_model.model.{path}.s2lora_lambda'] = mid
        left, right = a[:, : module.in_features].double(), b[: module.out_features].double()
        add_to_output(module, lambda x, left=left, right=right, mid=mid.double(): 0.75 * ((x @ left.T) * mid) @ right.T)
    save(work, tensors, {'peft_type': 'S2LORA', 'r': rank, 'scale': 0.75})
    return model


def mttl(heads: int, after: bool) -> Callable[[Work], torch.nn.Module]:
    """SkilledLoRA under a PolySelector: factors mixed before the product, or what the skills give mixed after it."""

    def make(work: Work) -> torch.nn.Module:
        model, tensors, rank, skills, alpha = work.load(torch.float64), {}, 2, 3, 3.0
        for path, module in linears(model, 'v_proj'):
            a = noise(work, path + 'a', skills, heads, module.in_features // heads, rank, std=0.3)
            b = noise(work, path + 'b', skills, rank, heads, module.out_features // heads, std=0.3)
            logits = noise(work, path + 'z', TASKS + 1, heads * skills, std=2.0)
            tensors |= {f'{path}.lora_a': a, f'{path}.lora_b': b, f'{path}.selector.module_logits': logits}
            z = torch.sigmoid(logits[TASK].double()).view(heads, skills)
            z = z / (z.sum(-1, keepdim=True) + 1e-12)
            add_to_output(module, skilled(a.double(), b.double(), z, alpha / rank, after))
        fields = {'n_skills': skills, 'n_splits': heads, 'lora_rank': rank, 'lora_alpha': alpha, 'lora_merge_after': after}
        save(work, tensors, {'peft_type': 'MHR', 'task_id': TASK, **fields})
        return model

    return make


def skilled(a: torch.Tensor, b: torch.Tensor, z: torch.Tensor, scale: float, after: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    if after:
        return lambda x: scale * torch.einsum('btd,sdr,sro,s->bto', x, a[:, 0], b[:, :, 0], z[0])
    left = torch.einsum('qs,sqdr->qdr', z, a).flatten(0, 1)
    right = torch.einsum('qs,srqo->rqo', z, b).flatten(1, 2)
    return lambda x: scale * (x @ left) @ right


PROJECTED = {'vera_lambda_b': normal(1.0), 'vera_lambda_d': normal(1.0)}
MIXED = {'vblora_logits': distinct(0.5), 'vblora_vector_bank': normal(0.3)}
VECTORS = {'r': 2, 'num_vectors': 12, 'vector_length': 8, 'topk': 3, **common('k_proj', 'v_proj')}

KINDS = [
    peft_kind('ia3', IA3Config(feedforward_modules=['down_proj'], **common('k_proj', 'v_proj', 'down_proj')), {'ia3_l': jitter(0.5)}, ('llama-gqa', *BIASED)),
    Kind('ssf', BIASED, ssf),
    peft_kind('vera', VeraConfig(r=4, projection_prng_key=7, **common('q_proj', 'v_proj', 'down_proj')), PROJECTED),
    peft_kind('pvera', PveraConfig(r=4, projection_prng_key=7, **common('q_proj', 'v_proj', 'down_proj')), PROJECTED),
    Kind('s2lora', PLAIN, s2lora),
    Kind('poly', PLAIN, poly(1)),
    Kind('mhr', PLAIN, poly(4)),
    Kind('mhr-mttl', PLAIN, mttl(4, after=False)),
    Kind('poly-mttl-after', PLAIN, mttl(1, after=True)),
    peft_kind('ln-tuning', LNTuningConfig(**common('input_layernorm', 'norm')), {'ln_tuning_layers': jitter(0.5)}),
    Kind('token-rows', (*PLAIN, 'llama3-bias'), token_rows, lambda prompt: [*prompt[:-2], 130, 153]),
    peft_kind('beft', BeftConfig(**common('v_proj', 'q_proj')), {'beft_bias': normal(0.4)}, BIASED),
    Kind('bitfit', BIASED, bitfit),
    peft_kind('tinylora', TinyLoraConfig(r=2, u=5, weight_tying=0.5, **common('v_proj', 'k_proj')), {'tinylora_v': normal(0.5)}),
    peft_kind('vblora', VBLoRAConfig(**VECTORS), MIXED),
    peft_kind('vblora-topk', VBLoRAConfig(save_only_topk_weights=True, **VECTORS), MIXED, keep=['topk_weights']),
    peft_kind(
        'unilora', UniLoraConfig(r=1, theta_d_length=30, save_indices=True, **common('v_proj')),
        {'unilora_theta_d': normal(2.0)}, keep=['scales'],
    ),
    peft_kind(
        'delora', DeloraConfig(r=2, rank_pattern={'down_proj': 1}, **common('v_proj', 'down_proj')),
        {'delora_A': fan_in(), 'delora_B': normal(0.3), 'delora_lambda': normal(0.3, 4.0)},
    ),
]
