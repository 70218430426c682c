"""What peft saves beside a tuner's own tensors, for tuners other than LoRA: whole modules, trained biases, rows of tokens."""

from peft import AdaLoraConfig, GloraConfig, IA3Config, LoHaConfig, OFTConfig, PeftConfig, VeraConfig

from kinds import LORA_RULES, Kind, Rule, jitter, normal, peft_adapter

BIAS, GEMMA = ('llama3-bias',), ('gemma3',)
# The norms of a layer and the last one; a table would be most of the goldens.
NORMS = {'modules_to_save': ['norm', 'input_layernorm']}


def saved(name: str, config: PeftConfig, rules: dict[str, Rule], models: tuple[str, ...] = BIAS) -> Kind:
    rules = {**rules, 'trainable_tokens_delta': normal(0.2), 'norm': jitter(0.3), 'bias': normal(0.4)}
    return Kind(name, models, lambda work: peft_adapter(work, config, rules))


def common(targets: str) -> dict:
    """On layer 1, to keep the files small."""
    return {'task_type': 'CAUSAL_LM', 'target_modules': rf'.*\.layers\.1\.(self_attn|mlp)\.({targets})'}


KINDS = [
    saved('ia3-saved', IA3Config(feedforward_modules=r'.*\.down_proj', **NORMS, **common('k_proj|v_proj|down_proj')), {'ia3_l': jitter(0.5)}),
    saved('loha-saved', LoHaConfig(r=2, alpha=3, **NORMS, **common('q_proj|v_proj')), {'hada_': normal(0.5)}, GEMMA),
    saved('oft-biases', OFTConfig(oft_block_size=8, bias='oft_only', **NORMS, **common('q_proj|o_proj')), {'oft_R': normal(0.3)}),
    saved(
        'glora-biases',
        GloraConfig(r=2, bias='all', config_A_B='vector', config_C='vector', config_D_E='vector', **common('v_proj')),
        {'glora_B': normal(0.03), 'glora_': normal(0.3)},
    ),
    saved(
        'vera-biases', VeraConfig(r=3, projection_prng_key=7, bias='vera_only', **NORMS, **common('q_proj|v_proj')),
        {'vera_lambda_b': normal(1.0), 'vera_lambda_d': normal(1.0)},
    ),
    saved(
        'adalora-saved',
        AdaLoraConfig(
            init_r=2, target_r=2, lora_alpha=8, total_step=10, lora_dropout=0.0, bias='all', trainable_token_indices=[130, 139, 153],
            **NORMS, **common('q_proj|o_proj'),
        ),
        {'lora_E': normal(0.5), **LORA_RULES},
    ),
]
