"""The tiny models as GGUF files, written with gguf-py by llama.cpp's conventions, and their goldens. Called by generate.py.

Conventions: q and k rows of the llama architecture in interleaved RoPE order, Gemma's norm weights with 1 added, matrices
in the file's type (F16 where a row is no multiple of the block), vectors in F32, llama3's RoPE as the tensor rope_freqs,
unused ids named [PADn].
"""

import math
import os

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize

import tiny_tokenizer
from tiny_adapters import load_adapter
from logits import GoldenWriter, answer, random_prompts
from tiny_models import TinyModel, make_model, seed_of

FILE_TYPES = {
    'F32': gguf.LlamaFileType.ALL_F32,
    'F16': gguf.LlamaFileType.MOSTLY_F16,
    'BF16': gguf.LlamaFileType.MOSTLY_BF16,
    'Q8_0': gguf.LlamaFileType.MOSTLY_Q8_0,
    'Q4_0': gguf.LlamaFileType.MOSTLY_Q4_0,
    'Q4_1': gguf.LlamaFileType.MOSTLY_Q4_1,
    'Q5_0': gguf.LlamaFileType.MOSTLY_Q5_0,
    'Q5_1': gguf.LlamaFileType.MOSTLY_Q5_1,
}
ARCHITECTURES = {'llama': 'llama', 'mistral': 'llama', 'qwen2': 'qwen2', 'qwen3': 'qwen3', 'gemma3_text': 'gemma3'}
ARCHITECTURE_KEYS = {
    'llama': gguf.MODEL_ARCH.LLAMA,
    'qwen2': gguf.MODEL_ARCH.QWEN2,
    'qwen3': gguf.MODEL_ARCH.QWEN3,
    'gemma3': gguf.MODEL_ARCH.GEMMA3,
}
LENGTHS = [7, 30]
STRIDE = 32
ADAPTERS_ON_Q_AND_K = ('qkvo-r8', 'patterns', 'all-r3-rslora')


def permute_heads(values: np.ndarray, heads: int) -> np.ndarray:
    """Row h·d + j·d/2 + i goes to h·d + 2i + j."""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def restore_heads(values: np.ndarray, heads: int) -> np.ndarray:
    shape = values.shape
    return values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def permuted_heads(name: str, config: object) -> int:
    """Heads whose rows are permuted in the file; 0 for tensors that keep their order."""
    if ARCHITECTURES[config.model_type] != 'llama':
        return 0
    if '.q_proj.' in name:
        return config.num_attention_heads
    return config.num_key_value_heads if '.k_proj.' in name else 0


def to_file(name: str, values: np.ndarray, config: object) -> np.ndarray:
    heads = permuted_heads(name, config)
    if heads:
        return permute_heads(values, heads)
    return values + np.float32(1) if config.model_type == 'gemma3_text' and name.endswith('norm.weight') else values


def from_file(name: str, values: np.ndarray, config: object) -> np.ndarray:
    heads = permuted_heads(name, config)
    if heads:
        return restore_heads(values, heads)
    return values - np.float32(1) if config.model_type == 'gemma3_text' and name.endswith('norm.weight') else values


def tensor_type(values: np.ndarray, kind: str) -> gguf.GGMLQuantizationType:
    if values.ndim == 1 or kind == 'F32':
        return gguf.GGMLQuantizationType.F32
    wanted = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[wanted][0]
    return wanted if values.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def add_rope(writer: gguf.GGUFWriter, config: object) -> None:
    rope = config.rope_parameters
    if config.model_type == 'gemma3_text':
        writer.add_rope_freq_base_swa(rope['sliding_attention']['rope_theta'])
        writer.add_sliding_window(config.sliding_window)
        rope = rope['full_attention']
    writer.add_rope_freq_base(rope['rope_theta'])
    if ARCHITECTURES[config.model_type] == 'llama':
        writer.add_rope_dimension_count(config.head_dim)
    if rope['rope_type'] == 'linear':
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope['factor'])
    elif rope['rope_type'] == 'yarn':
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope['factor'])
        writer.add_rope_scaling_orig_ctx_len(rope['original_max_position_embeddings'])
    elif rope['rope_type'] == 'llama3':
        writer.add_tensor('rope_freqs.weight', llama3_factors(rope, config.head_dim))


def llama3_factors(rope: dict, head_dim: int) -> np.ndarray:
    """What each frequency is divided by, as llama.cpp stores it."""
    low_wavelength = rope['original_max_position_embeddings'] / rope['low_freq_factor']
    high_wavelength = rope['original_max_position_embeddings'] / rope['high_freq_factor']
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope['rope_theta'] ** (i / head_dim)
        if wavelength < high_wavelength:
            factors.append(1.0)
        elif wavelength > low_wavelength:
            factors.append(rope['factor'])
        else:
            low, high = rope['low_freq_factor'], rope['high_freq_factor']
            smooth = (rope['original_max_position_embeddings'] / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope['factor'] + smooth))
    return np.array(factors, dtype=np.float32)


def add_config(writer: gguf.GGUFWriter, spec: TinyModel, config: object, kind: str) -> None:
    writer.add_type('model')
    writer.add_name(spec.name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if 'head_dim' in spec.settings:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if ARCHITECTURES[config.model_type] == 'llama':
        writer.add_vocab_size(config.vocab_size)
    add_rope(writer, config)


def add_tokenizer(writer: gguf.GGUFWriter, spec: TinyModel, config: object) -> None:
    tokenizer = tiny_tokenizer.build(spec.with_bos)
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    unused = range(len(vocabulary), config.vocab_size)
    tokens = [vocabulary[i] for i in range(len(vocabulary))] + [f'[PAD{i}]' for i in unused]
    control = len(tiny_tokenizer.SPECIALS)
    types = [gguf.TokenType.CONTROL] * control + [gguf.TokenType.NORMAL] * (len(vocabulary) - control)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('gpt-2')
    writer.add_token_list(tokens)
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * len(unused))
    writer.add_token_merges(tiny_tokenizer.merges(tokenizer))
    writer.add_bos_token_id(tiny_tokenizer.ENDOFTEXT)
    writer.add_eos_token_id(tiny_tokenizer.IM_END)
    writer.add_pad_token_id(tiny_tokenizer.PAD)
    writer.add_add_bos_token(spec.with_bos)
    writer.add_chat_template(tiny_tokenizer.CHAT_TEMPLATE)


def write_file(spec: TinyModel, model: torch.nn.Module, kind: str, path: str) -> None:
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    add_config(writer, spec, config, kind)
    add_tokenizer(writer, spec, config)
    names = gguf.get_tensor_name_map(ARCHITECTURE_KEYS[architecture], config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        values = to_file(name, parameter.detach().numpy(), config)
        kept = tensor_type(values, kind)
        writer.add_tensor(names.get_name(name, ('.weight', '.bias')), quantize(values, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_into(model: torch.nn.Module, path: str) -> None:
    """The model's values become the file's, dequantised by gguf-py."""
    architecture = ARCHITECTURES[model.config.model_type]
    names = gguf.get_tensor_name_map(ARCHITECTURE_KEYS[architecture], model.config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = tensors[names.get_name(name, ('.weight', '.bias'))]
            values = dequantize(tensor.data, tensor.tensor_type).reshape(parameter.shape)
            parameter.copy_(torch.from_numpy(np.array(from_file(name, values, model.config))))


def check_with_transformers(spec: TinyModel, model: torch.nn.Module, path: str) -> None:
    """transformers' own GGUF reader must find the same values: it knows the same conventions from elsewhere."""
    # Their config of a GGUF file knows no head_dim for some families, so ours is given.
    theirs = spec.model.from_pretrained(
        os.path.dirname(path), gguf_file=os.path.basename(path), config=model.config, dtype=torch.float32
    )
    found = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        # Their reader leaves biases of q and k in the file's order.
        if permuted_heads(name, model.config) and name.endswith('.bias'):
            continue
        if not torch.equal(found[name], parameter):
            raise SystemExit(f'{path}: transformers reads {name} differently')


def write_gguf(spec: TinyModel, folder: str) -> None:
    """Every type of one model into `<folder>/gguf`, with goldens beside each: the base, and LoRAs on q and k."""
    if spec.gguf:
        os.makedirs(f'{folder}/gguf', exist_ok=True)
    for kind in spec.gguf:
        stem = f'{folder}/gguf/{kind}'
        write_file(spec, make_model(spec, spec.gguf_settings), kind, f'{stem}.gguf')
        model = make_model(spec, spec.gguf_settings)
        read_into(model, f'{stem}.gguf')
        check_with_transformers(spec, model, f'{stem}.gguf')
        writer = GoldenWriter(f'{spec.name}/{kind}', model.config.vocab_size)
        for prompt in random_prompts(seed_of(spec.name, kind, 'prompts'), LENGTHS, model.config.vocab_size):
            writer.add(answer(model, prompt), STRIDE, adapter=None)
        for name in [name for name in spec.adapters if name in ADAPTERS_ON_Q_AND_K][:2]:
            read_into(model := make_model(spec, spec.gguf_settings), f'{stem}.gguf')
            adapted = load_adapter(model, f'{folder}/adapters/{name}')
            for prompt in random_prompts(seed_of(spec.name, kind, name, 'prompts'), LENGTHS[:1], model.config.vocab_size):
                writer.add(answer(adapted, prompt), STRIDE, adapter=name)
        writer.write(stem)
