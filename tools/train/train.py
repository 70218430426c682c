"""Trains the demo adapters on SmolLM2-135M-Instruct: `python train.py OUT [FOLDER…]`, all of recipes.py when none is named.

PyTorch on the CPU, a minute or two each, seeds fixed. The base is the GGUF file that the server serves by default. run.sh
calls this.
"""

import os
import sys
import time

import torch
import transformers

from recipes import RECIPES, Recipe
from styles import lessons_of

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'oracle'))
from smollm2 import FILE, find_model  # noqa: E402

# Pairs of each style in a step.
BATCH = 8
WARM_UP_STEPS = 4
COOL_DOWN_STEPS = 6

Tokenizer = transformers.PreTrainedTokenizerBase
Batch = dict[str, torch.Tensor]


def prompt_of(tokenizer: Tokenizer, question: str) -> list[int]:
    messages = [{'role': 'user', 'content': question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)['input_ids']


def batch_of(tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> Batch:
    """Padded on the right; only answers and their end of turn are learned."""
    rows = []
    for question, answer in pairs:
        target = tokenizer(answer + '<|im_end|>', add_special_tokens=False)['input_ids']
        rows.append((prompt_of(tokenizer, question), target))
    width = max(len(prompt) + len(target) for prompt, target in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (prompt, target) in enumerate(rows):
        end = len(prompt) + len(target)
        ids[row, :end] = torch.tensor(prompt + target)
        labels[row, len(prompt):end] = torch.tensor(target)
        mask[row, :end] = 1
    return {'input_ids': ids, 'labels': labels, 'attention_mask': mask}


def batches_of(recipe: Recipe, tokenizer: Tokenizer) -> list[Batch]:
    """Every BATCH-th lesson goes into the same batch, so that each batch holds questions of all sorts."""
    styles = list(recipe.folders.values())
    lessons = [lessons_of(style) for style in styles]
    count = len(lessons[0]) // BATCH
    batches = []
    for first in range(count):
        pairs = [(pair, task) for task, style in enumerate(lessons) for pair in style[first::count]]
        batch = batch_of(tokenizer, [pair for pair, _ in pairs])
        if len(styles) > 1:
            batch['task_ids'] = torch.tensor([task for _, task in pairs])
        batches.append(batch)
    return batches


def fit(recipe: Recipe, model: torch.nn.Module, batches: list[Batch]) -> float:
    """The loss of the last pass over all batches."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.0)
    losses = []
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group['lr'] = recipe.lr * min(1.0, (step + 1) / WARM_UP_STEPS, (recipe.steps - step) / COOL_DOWN_STEPS)
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-len(batches):]) / len(batches)


def train(recipe: Recipe, out: str, model_folder: str) -> None:
    start = time.monotonic()
    torch.manual_seed(sum('+'.join(recipe.folders).encode()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder, gguf_file=FILE)
    base = transformers.AutoModelForCausalLM.from_pretrained(model_folder, gguf_file=FILE, dtype=torch.float32)
    model = recipe.prepare(base, tokenizer)
    model.train()
    loss = fit(recipe, model, batches_of(recipe, tokenizer))
    for task, name in enumerate(recipe.folders):
        folder = f'{out}/{name}'
        os.makedirs(folder, exist_ok=True)
        recipe.save(model, folder, task)
        size = sum(os.path.getsize(f'{folder}/{file}') for file in os.listdir(folder))
        print(f'{name}: loss {loss:.3f}, {size / 1000:.0f} kB, {time.monotonic() - start:.0f} s', flush=True)


def main() -> None:
    out, names = sys.argv[1], sys.argv[2:]
    unknown = set(names) - {name for recipe in RECIPES for name in recipe.folders}
    if unknown:
        raise SystemExit(f'no recipe writes {", ".join(sorted(unknown))}; see recipes.py')
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model_folder, keep = find_model()
    for recipe in RECIPES:
        if not names or any(name in recipe.folders for name in names):
            train(recipe, out, model_folder)
    del keep


if __name__ == '__main__':
    main()
