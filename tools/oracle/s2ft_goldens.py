"""S²FT: the adapter kind in our own format, and what the paper's code leaves on disk, a permuted dense checkpoint.

s2ft/NAME/checkpoint is the folder that the training saves (every weight fused and permuted, the vocabulary padded to a multiple
of 8); golden.json and golden.bin beside it are the logits of that very checkpoint (form: kinds.py). Its base is
models/NAME, or s2ft/NAME/base for the one model that has as many KV heads as heads, as the paper's code wants it. Called by
generate.py (part s2ft) and by kinds_ours.py.
"""

import json
import math
import os
import re
import shutil

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import s2ft_training
from kinds import LEAST_EFFECT, PROMPT_TOKENS, STRIDE, Work, logits_of, save_config, save_tensors
from logits import random_prompts
from s2ft_training import Layer
from tiny_models import MODELS, TinyModel, default_rope, load_model, make_model, round_bf16, seed_of

MHA = TinyModel(
    name='mha', config=LlamaConfig, model=LlamaForCausalLM,
    settings=dict(
        vocab_size=90, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=default_rope(10000.0),
    ),
)

Orders = dict[str, tuple[list[int], int]]


def random_values(*seed: str):
    """About as large as the weights: a tiny model must be seen to change. Rounded, as training in bf16 leaves them."""

    def values(name: str, shape: tuple[int, int]) -> torch.Tensor:
        noise = np.random.default_rng(seed_of(*seed, name)).standard_normal(shape)
        return round_bf16(noise / np.sqrt(shape[1] if 'v_proj' in name or 'up_proj' in name else shape[0]))

    return values


def prepare(model: torch.nn.Module, layers: list[Layer], values) -> Orders:
    """The training model; returns for each trained module the order of its channels and the size of one."""
    orders: Orders = {}
    for i, (layer, chosen) in enumerate(zip(model.model.layers, layers)):
        mlp, attention = f'model.layers.{i}.mlp', f'model.layers.{i}.self_attn'
        ffn = s2ft_training.prepare_ffn(layer.mlp, chosen, mlp, values)
        orders |= {f'{mlp}.up_proj': (ffn, 1), f'{mlp}.down_proj': (ffn, 1)}
        if model.config.num_key_value_heads == model.config.num_attention_heads:
            heads = s2ft_training.prepare_attention(layer.self_attn, chosen, attention, values)
            orders |= {f'{attention}.{name}': (heads, layer.self_attn.head_dim) for name in ('v_proj', 'o_proj')}
    return orders


def random_layers(config, generator: np.random.Generator, ratios: dict[str, float]) -> list[Layer]:
    count = {'v': config.num_attention_heads, 'o': config.num_attention_heads, 'up': config.intermediate_size, 'down': config.intermediate_size}
    parts = {name: s2ft_training.sample(generator, config.num_hidden_layers, count[name], ratios[name]) for name in count}
    return [Layer(**{name: parts[name][i] for name in parts}) for i in range(config.num_hidden_layers)]


def documented_reader():
    """add_s2ft, as the page about the format has it."""
    page = os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../docs/formats/s2ft.md')
    with open(page, encoding='utf-8') as file:
        code = re.search(r'```python\n(.*?)```', file.read(), re.DOTALL)
    scope: dict = {}
    exec(code[1], scope)
    return scope['add_s2ft']


def make_kind(work: Work):
    """FFN channels as the paper's code trains them on a base with grouped queries, and the rows and columns of two heads."""
    model = work.load()
    generator = work.random('channels')
    layers = random_layers(model.config, generator, {'v': 0, 'o': 0, 'up': 0.04, 'down': 0.08})
    values = random_values('kinds', work.spec.name, work.kind)
    orders = prepare(model, layers, values)
    # The paper's two linears as they are, on heads that stand where they stood.
    d = model.model.layers[0].self_attn.head_dim
    first, last = model.model.layers[0].self_attn, model.model.layers[-1].self_attn
    first.v_proj = s2ft_training.S2Column(first.v_proj, 0, values('first.v_proj', (d, first.v_proj.in_features)))
    last.o_proj = s2ft_training.S2Row(last.o_proj, d, values('last.o_proj', (last.o_proj.out_features, d)))
    plain = list(range(model.config.num_attention_heads))
    orders['model.layers.0.self_attn.v_proj'] = (plain, d)
    orders[f'model.layers.{len(layers) - 1}.self_attn.o_proj'] = (plain, d)
    tensors = {}
    for module, (part, index, delta) in s2ft_training.original_deltas(model, orders).items():
        tensors[f'{module}.s2ft_{part}.index'] = torch.tensor(index, dtype=torch.int32)
        tensors[f'{module}.s2ft_{part}.values'] = delta.to(torch.bfloat16)
    save_tensors(work.folder, tensors)
    save_config(work, {'peft_type': 'S2FT', 's2ft_version': 1, 'task_type': 'CAUSAL_LM'})
    check_documented_reader(work, model)
    return model


def check_documented_reader(work: Work, trained: torch.nn.Module) -> None:
    """The page's Python reads the file that was saved; the dense model that it makes must answer as the training model does."""
    dense = work.load()
    state = {name: value.numpy() for name, value in dense.state_dict().items()}
    added = documented_reader()(work.folder, state)
    changed = sum(not np.array_equal(added[name], state[name]) for name in state)
    assert changed == sum(isinstance(m, (s2ft_training.S2Column, s2ft_training.S2Row)) for m in trained.modules()), changed
    dense.load_state_dict({name: torch.from_numpy(value) for name, value in added.items()})
    ours, theirs = logits_of(dense, work.prompt), logits_of(trained, work.prompt)
    worst = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if worst > 2e-5:
        raise SystemExit(f'docs/formats/s2ft.md: the Python reader is off by {worst:.1e} of max|logit|')


def save_checkpoint(model: torch.nn.Module, folder: str, pickle: bool) -> None:
    """As the paper's save_hf_format: one state dict with the tied head in it too, and the config. No tokenizer.json."""
    os.makedirs(folder)
    if pickle:
        torch.save(model.state_dict(), f'{folder}/pytorch_model.bin')
    else:
        state = {name: value.contiguous() for name, value in model.state_dict().items() if name != 'lm_head.weight'}
        save_tensors(folder, state, 'model.safetensors')
    model.config.to_json_file(f'{folder}/config.json')


def write_checkpoint(spec: TinyModel, base: str, out: str, ratios: dict[str, float], pickle: bool) -> None:
    model = load_model(spec, base)
    layers = random_layers(model.config, np.random.default_rng(seed_of('s2ft', spec.name)), ratios)
    prepare(model, layers, random_values('s2ft', spec.name))
    s2ft_training.fuse(model)
    vocab = model.config.vocab_size
    # The rows that are appended are random.
    torch.manual_seed(seed_of('s2ft', spec.name))
    model.resize_token_embeddings(8 * math.ceil(vocab / 8), mean_resizing=False)
    # Of the parameters alone: the table of RoPE is no part of a checkpoint and stays as it is.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    save_checkpoint(model, f'{out}/checkpoint', pickle)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32)
    prompt = random_prompts(seed_of('s2ft', spec.name, 'prompt'), [PROMPT_TOKENS], vocab)[0]
    plain = logits_of(load_model(spec, base), prompt)
    logits = logits_of(model, prompt)[:, :vocab]
    effect = float(np.abs(logits - plain).max() / np.abs(plain).max())
    if not np.isfinite(logits).all() or effect < LEAST_EFFECT:
        raise SystemExit(f's2ft/{spec.name} moves the logits by {effect:.3f} of max|logit|; a test would not see it')
    chosen = [{name: len(part) for name, part in vars(layer).items()} for layer in layers]
    head = {'prompt': prompt, 'vocab': vocab, 'stride': STRIDE, 'effect': round(effect, 3), 'layers': chosen}
    with open(f'{out}/golden.json', 'w', encoding='utf-8') as file:
        file.write(json.dumps(head) + '\n')
    with open(f'{out}/golden.bin', 'wb') as file:
        file.write(np.ascontiguousarray(logits[:, ::STRIDE]).astype('<f4').tobytes())


def write(out: str) -> None:
    shutil.rmtree(f'{out}/s2ft', ignore_errors=True)
    base = f'{out}/s2ft/mha/base'
    os.makedirs(base)
    make_model(MHA).to(torch.bfloat16).save_pretrained(base)
    write_checkpoint(MHA, base, f'{out}/s2ft/mha', {'v': 0.2, 'o': 0.25, 'up': 0.06, 'down': 0.1}, pickle=True)
    gqa = next(spec for spec in MODELS if spec.name == 'llama-gqa')
    # As the paper's code trains bases with grouped queries: the down projections alone.
    write_checkpoint(gqa, f'{out}/models/llama-gqa', f'{out}/s2ft/llama-gqa', {'v': 0, 'o': 0, 'up': 0, 'down': 0.06}, pickle=False)
