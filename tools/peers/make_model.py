"""Makes what the peers are measured with, as Hugging Face folders in bf16: a model and random LoRAs of it.

    python make_model.py from-gguf FILE.gguf OUT         the weights of a GGUF file
    python make_model.py llama-3.2-1b TOKENIZER_DIR OUT  random weights of that shape, seed fixed
    python make_model.py loras MODEL COUNT OUT           rank 16, alpha 32, on all seven linears of every layer; OUT/l00, …

Runs in the oracle's environment (tools/oracle/run.sh venv). Equal arguments give equal bytes.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

RANK = 16
# A keeps the size of its input and B this deviation: answers change visibly and stay finite.
DEVIATION_OF_B = 0.02
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip

LLAMA_3_2_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    tie_word_embeddings=True,
    architectures=["LlamaForCausalLM"],
)


def save_folder(model, tokenizer, out: Path) -> None:
    """The tensors are written by hand: transformers refuses to save what it read from a GGUF file."""
    tokenizer.save_pretrained(out)
    config = model.config
    for key in ("quantization_config", "_model_name_or_path", "name_or_path"):
        config.__dict__.pop(key, None)  # of the file that was read, not of the model
    config.tie_word_embeddings = True
    config.dtype = "bfloat16"
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(out)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def from_gguf(file: Path, out: Path) -> None:
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).to(torch.bfloat16)
    save_folder(model, AutoTokenizer.from_pretrained(**source), out)


def random_model(config, tokenizer_dir: Path, out: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    save_folder(model, AutoTokenizer.from_pretrained(tokenizer_dir), out)


def linear_shapes(model: Path) -> dict[str, tuple[int, int]]:
    """[out, in] of the linears, by the names of one layer's state."""
    config = AutoConfig.from_pretrained(model)
    config.num_hidden_layers = 1
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    return {name: tuple(state[f"model.layers.0.{name}.weight"].shape) for name in LINEARS}


def lora(shapes: dict[str, tuple[int, int]], layers: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            a = torch.randn(RANK, columns, generator=generator) / columns**0.5
            b = torch.randn(rows, RANK, generator=generator) * DEVIATION_OF_B
            tensors[f"{prefix}.lora_A.weight"] = a.to(torch.bfloat16)
            tensors[f"{prefix}.lora_B.weight"] = b.to(torch.bfloat16)
    return tensors


def loras(model: Path, count: int, out: Path) -> None:
    shapes = linear_shapes(model)
    layers = AutoConfig.from_pretrained(model).num_hidden_layers
    peft = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [name.split(".")[1] for name in LINEARS],
    }
    for index in range(count):
        folder = out / f"l{index:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(lora(shapes, layers, 1000 + index), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(peft, indent=1))


def main(arguments: list[str]) -> None:
    match arguments:
        case ["from-gguf", file, out]:
            from_gguf(Path(file), Path(out))
        case ["llama-3.2-1b", tokenizer, out]:
            random_model(LLAMA_3_2_1B, Path(tokenizer), Path(out))
        case ["loras", model, count, out]:
            loras(Path(model), int(count), Path(out))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
