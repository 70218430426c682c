"""Kinds whose change of a weight has structure: Kronecker and Khatri-Rao products, rotations, circulants, reflections.

Made by peft where it has the method; the others are transcriptions of the papers' formulas in float64. Called by kinds.py.
"""

import json
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from peft import (
    BOFTConfig,
    C3AConfig,
    DeftConfig,
    GloraConfig,
    GraloraConfig,
    HRAConfig,
    LoHaConfig,
    LoKrConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    RoadConfig,
    get_peft_model,
)
from peft.tuners.boft import layer as boft_layer
from safetensors.torch import load_file

from kinds import Answerer, Kind, Rule, Work, fill, jitter, normal, peft_adapter, save_config, save_tensors, tidy_peft_folder

PLAIN, BIASED = ('llama-gqa', 'gemma3'), ('llama-gqa', 'llama3-bias')


def peft_kind(
    name: str, config: PeftConfig, rules: dict[str, Rule], models: tuple[str, ...] = PLAIN, dtype: torch.dtype | None = torch.bfloat16
) -> Kind:
    return Kind(name, models, lambda work: peft_adapter(work, config, rules, dtype))


def common(targets: list[str]) -> dict:
    return dict(task_type='CAUSAL_LM', target_modules=targets)


def first_layers(targets: str) -> str:
    """A pattern for these linears of layers 0 and 1, to keep deep models' files small."""
    return rf'.*\.layers\.[01]\.(self_attn|mlp)\.({targets})'


class BlockDiagonals:
    """In place of peft's CUDA extension, without which it builds one butterfly factor only."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*factor) for factor in blocks])]


def make_butterflies(work: Work) -> Answerer:
    config = BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=3, **common(['q_proj', 'v_proj']))
    with mock.patch.object(boft_layer, 'get_fbd_cuda', lambda: BlockDiagonals):
        model = peft_adapter(work, config, {'boft_R': normal(0.5), 'boft_s': jitter(0.2)})

    def answer(tokens: list[int]) -> torch.Tensor:
        with mock.patch.object(boft_layer, 'get_fbd_cuda', lambda: BlockDiagonals):
            return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]

    return answer


def make_bone(work: Work) -> Answerer:
    """Bone's maths lives on in MiSS; its files have the old names."""
    model = get_peft_model(work.load(), MissConfig(r=6, **common(['k_proj', 'up_proj'])))
    fill(model, work, {'miss_block': normal(0.05)})
    model.save_pretrained(work.folder)
    tidy_peft_folder(work)
    answerer = PeftModel.from_pretrained(work.load(), work.folder).eval()
    tensors = load_file(f'{work.folder}/adapter_model.safetensors')
    save_tensors(work.folder, {key.replace('miss_block', 'bone_block'): value for key, value in tensors.items()})
    path = f'{work.folder}/adapter_config.json'
    with open(path, encoding='utf-8') as file:
        config = json.load(file)
    config['peft_type'] = 'BONE'
    for field in ('mini_r', 'miss_dropout'):
        del config[field]
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(config, file, indent=2, sort_keys=True)
    return answerer


def glora(**forms: str) -> GloraConfig:
    return GloraConfig(r=2, **forms, **common(['v_proj', 'up_proj']))


QVD, QKU, QOG = (first_layers(names) for names in ('q_proj|v_proj|down_proj', 'q_proj|k_proj|up_proj', 'q_proj|o_proj|gate_proj'))
QV, KU, VD = (first_layers(names) for names in ('q_proj|v_proj', 'k_proj|up_proj', 'v_proj|down_proj'))
ROAD_RULES = {'theta': normal(0.5), 'alpha': jitter(0.3)}
BOFT_RULES = {'boft_R': normal(0.5), 'boft_s': jitter(0.2)}
DEFT_RULES = {'deft_P': normal(0.2), 'deft_R': normal(0.2)}
GLORA_RULES = {'glora_B': normal(0.03), 'glora_': normal(0.3)}


def road(variant: int, models: tuple[str, ...]) -> Kind:
    config = RoadConfig(variant=f'road_{variant}', group_size=8, **common(['q_proj', 'v_proj', 'down_proj']))
    return peft_kind(f'road-{variant}', config, ROAD_RULES, models)


LLAMA, GEMMA, BIAS = ('llama-gqa',), ('gemma3',), ('llama3-bias',)

PEFT_KINDS = [
    peft_kind('loha', LoHaConfig(r=2, alpha=3, **common(QVD)), {'hada_': normal(0.5)}),
    peft_kind('lokr-full', LoKrConfig(r=32, alpha=32, decompose_factor=4, **common(QKU)), {'lokr_w1': normal(0.4), 'lokr_w2': normal(0.3)}, LLAMA),
    peft_kind(
        'lokr-pairs', LoKrConfig(r=2, alpha=4, decompose_both=True, decompose_factor=8, rank_pattern={'k_proj': 1}, **common(QKU)), {'lokr_': normal(0.4)}
    ),
    peft_kind('oft', OFTConfig(oft_block_size=8, **common(QOG)), {'oft_R': normal(0.3)}),
    peft_kind('oft-exact', OFTConfig(oft_block_size=8, use_cayley_neumann=False, **common(QOG)), {'oft_R': normal(0.3)}, GEMMA),
    peft_kind(
        'oft-coft', OFTConfig(r=4, oft_block_size=0, coft=True, eps=2.0, use_cayley_neumann=True, num_cayley_neumann_terms=4, **common(QV)),
        {'oft_R': normal(0.3)}, LLAMA,
    ),
    peft_kind('oft-shared', OFTConfig(oft_block_size=16, block_share=True, use_cayley_neumann=False, **common(QV)), {'oft_R': normal(0.3)}, LLAMA),
    peft_kind('boft', BOFTConfig(boft_block_size=4, **common(['q_proj', 'v_proj'])), BOFT_RULES, BIASED),
    Kind('boft-butterfly', LLAMA, make_butterflies),
    road(1, BIASED),
    road(2, BIAS),
    road(4, LLAMA),
    peft_kind('gralora', GraloraConfig(r=4, alpha=8, gralora_k=2, **common(QVD)), {'gralora_': normal(0.2)}, LLAMA),
    peft_kind('gralora-hybrid', GraloraConfig(r=4, alpha=8, gralora_k=4, hybrid_r=2, **common(QVD)), {'gralora_': normal(0.2)}, GEMMA),
    peft_kind('c3a', C3AConfig(block_size=8, block_size_pattern={'q_proj': 16}, **common(QV)), {'c3a_kernel': normal(6.0)}),
    peft_kind('miss', MissConfig(r=6, **common(KU)), {'miss_block': normal(0.05)}),
    peft_kind('miss-mini', MissConfig(r=8, mini_r=4, init_weights='mini', **common(VD)), {'miss_block': normal(0.1)}, LLAMA),
    Kind('bone', LLAMA, make_bone),
    peft_kind('hra', HRAConfig(r=4, **common(QV)), {'hra_u': normal(0.5)}),
    peft_kind('hra-gs', HRAConfig(r=3, apply_GS=True, **common(VD)), {'hra_u': normal(0.5)}, LLAMA),
    peft_kind('deft-relu', DeftConfig(r=2, alpha=3, **common(VD)), DEFT_RULES, BIAS),
    peft_kind('deft-qr', DeftConfig(r=2, decomposition_method='qr', **common(VD)), DEFT_RULES),
    peft_kind('deft-para', DeftConfig(r=2, decomposition_method='qr', para=True, **common(VD)), DEFT_RULES, LLAMA),
    peft_kind('glora-vector', glora(config_A_B='vector', config_C='lora', config_D_E='vector'), GLORA_RULES, BIASED),
    peft_kind('glora-constant', glora(config_A_B='constant', config_C='vector', config_D_E='constant'), GLORA_RULES, BIAS),
]


class Own:
    """A kind that no library has: its tensors in the file, and the base with its formula applied in float64."""

    def __init__(self, work: Work, *modules: str) -> None:
        self.work, self.modules = work, modules
        self.model = work.load(torch.float64)
        self.tensors: dict[str, torch.Tensor] = {}

    def value(self, key: str, *shape: int, std: float = 0.2) -> torch.Tensor:
        """A random tensor of the file, as float64."""
        return self.store(key, torch.from_numpy(std * self.work.random(key).standard_normal(shape)).to(torch.bfloat16))

    def store(self, key: str, value: torch.Tensor) -> torch.Tensor:
        self.tensors[f'base_model.model.{key}'] = value
        return value.to(torch.float64)

    def answer(self, change: Callable[[str, torch.nn.Linear], None], config: dict) -> Answerer:
        with torch.no_grad():
            for name in self.modules:
                change(name, self.model.get_submodule(name))
        save_tensors(self.work.folder, self.tensors)
        save_config(self.work, config)
        return lambda tokens: self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


Q, V, O, UP, DOWN = (
    'model.layers.0.self_attn.q_proj', 'model.layers.1.self_attn.v_proj', 'model.layers.0.self_attn.o_proj',
    'model.layers.1.mlp.up_proj', 'model.layers.1.mlp.down_proj',
)


def make_hydra(work: Work) -> Answerer:
    own, rank, scale = Own(work, Q, DOWN), 2, 1.5

    def change(name: str, linear: torch.nn.Linear) -> None:
        out, width = linear.weight.shape
        # One of the repository's own places, which stands for the down projection.
        place = name.replace('mlp.down_proj', 'mlp.hydra_mlp') + ('_' if name == DOWN else '.hydra_')
        pair = {}
        for branch, inner in (('par', width), ('seq', out)):
            key = f'{place}{branch}'
            down, bias_down = own.value(f'{key}.down_proj.weight', rank, inner), own.value(f'{key}.down_proj.bias', rank)
            up, bias_up = own.value(f'{key}.up_proj.weight', out, rank), own.value(f'{key}.up_proj.bias', out)
            pair[branch] = up @ down, up @ bias_down + bias_up
        before = torch.zeros(out, dtype=torch.float64) if linear.bias is None else linear.bias
        shift = scale * (pair['par'][1] + pair['seq'][0] @ before + pair['seq'][1])
        linear.weight.copy_(linear.weight + scale * (pair['par'][0] + pair['seq'][0] @ linear.weight))
        linear.bias = torch.nn.Parameter(before + shift)

    return own.answer(change, {'peft_type': 'HYDRA', 'r': rank, 'scale': scale})


def principal(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    return u[:, :rank], s[:rank], vt[:rank]


def make_sorsa(work: Work, dtype: torch.dtype) -> Answerer:
    """With a float32 residual its difference from the base has rank 2; with a bf16 one it is dense."""
    own, rank, alpha = Own(work, V), 2, 3.0

    def change(name: str, linear: torch.nn.Linear) -> None:
        out, width = linear.weight.shape
        b0, s0, a0 = principal(linear.weight, rank)
        residual = own.store(f'{name}.weight', (linear.weight - (b0 * s0) @ a0 * (alpha / rank)).to(dtype))
        a, b = own.value(f'{name}.sorsa_A', rank, width), own.value(f'{name}.sorsa_B', out, rank)
        s = own.value(f'{name}.sorsa_S', rank, std=1.0)
        linear.weight.copy_(residual + alpha / rank * (b * s) @ a)

    return own.answer(change, {'peft_type': 'SORSA', 'rank': rank, 'alpha': alpha})


def make_corda(work: Work) -> Answerer:
    own, rank = Own(work, V), 2

    def change(name: str, linear: torch.nn.Linear) -> None:
        out, width = linear.weight.shape
        b0, s0, a0 = principal(linear.weight, rank)
        residual = own.store(f'{name}.weight_residual', (linear.weight - (b0 * s0) @ a0).to(torch.float32))
        down, up = own.value(f'{name}.BLinear.weight', rank, width), own.value(f'{name}.ALinear.weight', out, rank)
        linear.weight.copy_(residual + up @ down)

    return own.answer(change, {'peft_type': 'CORDA', 'r': rank})


def make_flora(work: Work) -> Answerer:
    own, scale = Own(work, Q, UP), 2.0

    def change(name: str, linear: torch.nn.Linear) -> None:
        out, width = linear.weight.shape
        r0, r1 = (3, 2) if name == Q else (2, 4)
        core = own.value(f'{name}.flora_layer.param_G', r0, r1, std=1.0)
        inner, outer = own.value(f'{name}.flora_layer.param_0', width, r0), own.value(f'{name}.flora_layer.param_1', out, r1)
        linear.weight.copy_(linear.weight + scale * outer @ core.T @ inner.T)

    return own.answer(change, {'peft_type': 'FLORA', 'scale': scale})


def make_monarch(work: Work) -> Answerer:
    """fly's MonarchLinear: the input in k runs, each result dealt out to l runs; the widths are no multiples of five blocks."""
    own = Own(work, Q, V)

    def change(name: str, linear: torch.nn.Linear) -> None:
        out, width = linear.weight.shape
        blocks = 4 if name == Q else 5
        small, tall = -(-width // blocks), -(-out // blocks)
        middle = small if small < tall else tall
        first = own.value(f'{name}.blkdiag1', blocks, middle, small, std=0.6 * small**-0.5)
        second = own.value(f'{name}.blkdiag2', blocks, tall, middle, std=0.6 * middle**-0.5)
        padded = torch.nn.functional.pad(torch.eye(width, dtype=torch.float64), (0, blocks * small - width))
        inner = torch.einsum('kqp,bkp->bkq', first, padded.unflatten(1, (blocks, small))).flatten(1)
        result = torch.einsum('lsr,brl->bsl', second, inner.unflatten(1, (middle, blocks))).flatten(1)
        linear.weight.copy_(result[:, :out].T)
        if linear.bias is not None:
            linear.bias.copy_(own.value(f'{name}.bias', out))

    return own.answer(change, {'peft_type': 'MONARCH'})


def make_loldu(work: Work) -> Answerer:
    """As the repository: torch.linalg.lu in float32, whatever the values are kept in."""
    own, rank, alpha = Own(work, V, UP), 3, 6.0

    def change(name: str, linear: torch.nn.Linear) -> None:
        p, lower, upper = torch.linalg.lu(linear.weight.to(torch.float32))
        diagonal = torch.diagonal(upper)
        upper = (upper[:rank] / diagonal[:rank, None]).to(torch.float64)
        lower = (p @ lower[:, :rank]).to(torch.float64)
        z = own.store(f'{name}.parametrizations.weight.0.vector_z', 3 * diagonal[:rank].clone())
        factor = torch.tensor(alpha / rank + 0.25)
        own.store(f'{name}.parametrizations.weight.0.scaling_factor', factor)
        start = alpha / rank * lower @ torch.diag(diagonal[:rank].to(torch.float64)) @ upper
        linear.weight.copy_(linear.weight - start + factor * lower @ torch.diag(z) @ upper)

    return own.answer(change, {'peft_type': 'LOLDU', 'rank': rank, 'lora_alpha': alpha, 'init_loldu_weights': 'ldu', 'init_method': 'lu'})


def make_low_rank_sparse(work: Work, replaces: bool) -> Answerer:
    own, rank, alpha = Own(work, Q, DOWN), 2, 4.0

    def change(name: str, linear: torch.nn.Linear) -> None:
        out, width = linear.weight.shape
        a, b = own.value(f'{name}.lora_A', rank, width), own.value(f'{name}.lora_B', out, rank)
        index = np.sort(work.random(f'{name}.index').choice(out * width, out * width // 20, replace=False))
        own.tensors[f'base_model.model.{name}.sparse_index'] = torch.from_numpy(index.astype(np.int64))
        values = own.value(f'{name}.sparse_value', len(index), std=0.5)
        sparse = torch.zeros(out * width, dtype=torch.float64)
        sparse[torch.from_numpy(index)] = values
        low_rank, sparse = alpha / rank * b @ a, sparse.view(out, width)
        linear.weight.copy_(low_rank + sparse if replaces else linear.weight + low_rank + alpha / rank * sparse)

    return own.answer(change, {'peft_type': 'SLTRAIN' if replaces else 'DSEE', 'r': rank, 'lora_alpha': alpha})


OWN_KINDS = [
    Kind('hydra', BIASED, make_hydra),
    Kind('sorsa', LLAMA, lambda work: make_sorsa(work, torch.float32)),
    Kind('sorsa-bf16', GEMMA, lambda work: make_sorsa(work, torch.bfloat16)),
    Kind('corda', LLAMA, make_corda),
    Kind('flora', PLAIN, make_flora),
    Kind('monarch', ('llama3-bias',), make_monarch),
    Kind('loldu', PLAIN, make_loldu),
    Kind('dsee', LLAMA, lambda work: make_low_rank_sparse(work, False)),
    Kind('sltrain', LLAMA, lambda work: make_low_rank_sparse(work, True)),
]

KINDS = [*PEFT_KINDS, *OWN_KINDS]
