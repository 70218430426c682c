"""The tokenizer of the tiny models: byte-level BPE of 320 tokens trained on the text below. Called by generate.py."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TOKENS = 320
SPECIALS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<pad>']
ENDOFTEXT, IM_START, IM_END, PAD = range(4)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CORPUS = [
    'The base model is loaded once and every request names its own adapter.',
    'All the requests run in the same batch, and no request waits for another one to change its weights.',
    'A page of keys and values holds sixteen tokens of one sequence in all of the layers.',
    'The scheduler reads the state and the budget and returns the plan of the next step.',
    'Where there is a question there is an answer, and then there is the next question.',
    'user assistant system user assistant system',
    'one two three four five six seven eight nine ten eleven twelve',
]


def build(with_bos: bool) -> Tokenizer:
    """with_bos: every encoding starts with <|endoftext|>, as Llama 3 and Gemma do it with theirs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if tokenizer.get_vocab_size() != TOKENS:
        raise SystemExit(f'the corpus gave {tokenizer.get_vocab_size()} tokens, not {TOKENS}')
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single='<|endoftext|> $A', pair='<|endoftext|> $A $B', special_tokens=[('<|endoftext|>', ENDOFTEXT)]
        )
    return tokenizer


def merges(tokenizer: Tokenizer) -> list[str]:
    """As GGUF holds them: two tokens and a blank between."""
    return [' '.join(pair) for pair in json.loads(tokenizer.to_str())['model']['merges']]


def save(folder: str, with_bos: bool, template_in_own_file: bool) -> None:
    """tokenizer.json, tokenizer_config.json and, if asked for, chat_template.jinja."""
    compact = json.loads(build(with_bos).to_str())
    with open(f'{folder}/tokenizer.json', 'w', encoding='utf-8') as file:
        json.dump(compact, file, ensure_ascii=False, separators=(',', ':'))
    config = {
        'added_tokens_decoder': {
            str(i): {
                'content': token, 'lstrip': False, 'normalized': False, 'rstrip': False, 'single_word': False, 'special': True,
            }
            for i, token in enumerate(SPECIALS)
        },
        'bos_token': '<|endoftext|>' if with_bos else None,
        'clean_up_tokenization_spaces': False,
        'eos_token': '<|im_end|>',
        'model_max_length': 256,
        'pad_token': '<pad>',
        'tokenizer_class': 'PreTrainedTokenizerFast',
    }
    if template_in_own_file:
        with open(f'{folder}/chat_template.jinja', 'w', encoding='utf-8') as file:
            file.write(CHAT_TEMPLATE)
    else:
        config['chat_template'] = CHAT_TEMPLATE
    with open(f'{folder}/tokenizer_config.json', 'w', encoding='utf-8') as file:
        json.dump(config, file, indent=2)
