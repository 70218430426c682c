"""Scores a small task twice with lm-evaluation-harness, by a running server and by transformers on the same weights:

    python lm_eval_check.py MODEL URL [NAME]

MODEL is the GGUF file or the folder that the server serves in float32, URL its address (http://127.0.0.1:8000), NAME a model that
it lists (default: its first). Ends with 1 unless accuracy is equal and every log-likelihood within 0.001. Called by
run_lm_eval.sh, which starts the server.
"""

import json
import os
import sys
import tempfile
import urllib.request

# Before anything of Hugging Face's is imported: nothing may be fetched, and nothing is left behind.
SCRATCH = tempfile.TemporaryDirectory()
os.environ.update(HF_HOME=SCRATCH.name, HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', HF_DATASETS_OFFLINE='1', TQDM_DISABLE='1')

import torch  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

TASK = 'manyfold_choice'
TOLERANCE = 1e-3


def load(path: str) -> tuple[torch.nn.Module, object]:
    folder, file = (path, {}) if os.path.isdir(path) else (os.path.dirname(path), {'gguf_file': os.path.basename(path)})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file).eval()
    return model, AutoTokenizer.from_pretrained(folder, **file)


def first_model(url: str) -> str:
    with urllib.request.urlopen(f'{url}/v1/models') as reply:
        return json.load(reply)['data'][0]['id']


def evaluate(model: object, arguments: object) -> dict:
    tasks = TaskManager(include_path='.', include_defaults=False)
    return simple_evaluate(model=model, model_args=arguments, tasks=[TASK], task_manager=tasks, bootstrap_iters=0, log_samples=True)


def likelihoods(result: dict) -> list[float]:
    samples = sorted(result['samples'][TASK], key=lambda sample: sample['doc_id'])
    return [float(response[0]) for sample in samples for response in sample['filtered_resps']]


def main() -> None:
    path, url = os.path.abspath(sys.argv[1]), sys.argv[2].rstrip('/')
    name = sys.argv[3] if len(sys.argv) > 3 else first_model(url)
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'lm_eval_task'))
    model, tokenizer = load(path)
    # The harness reads the tokenizer from a folder.
    folder = f'{SCRATCH.name}/tokenizer'
    tokenizer.save_pretrained(folder)
    ours = evaluate(
        'local-completions',
        {'model': name, 'base_url': f'{url}/v1/completions', 'tokenizer': folder, 'tokenizer_backend': 'huggingface', 'num_concurrent': 4, 'max_retries': 2},
    )
    theirs = evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device='cpu'), None)
    differences = [abs(a - b) for a, b in zip(likelihoods(ours), likelihoods(theirs), strict=True)]
    failed = max(differences) > TOLERANCE
    for metric in ('acc,none', 'acc_norm,none'):
        a, b = (result['results'][TASK][metric] for result in (ours, theirs))
        print(f'{metric}: server {a:.4f}, transformers {b:.4f}')
        failed = failed or a != b
    print(f'{len(differences)} log-likelihoods, largest difference {max(differences):.2e} (limit {TOLERANCE})')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
