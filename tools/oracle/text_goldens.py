"""Goldens of the text side: `python text_goldens.py FOLDER [GGUF]`, run from the repository's root.

FOLDER gets, from FOLDER/corpus.txt (written by hand):
  random.json            random Unicode strings, the same for every tokenizer
  tokenizers.json.gz     tiny tokenizers: GGUF metadata, the original tokenizer.json, and what transformers makes of both
  templates.json         chat templates, conversations, and what transformers renders
  smollm2.json.gz        with GGUF given (the default model): ids and rendered conversations
  smollm2-merges.bin.gz  and the merges of its vocabulary as token ids
Ids of a text are kept as 12 hexadecimal digits of the SHA-256 over them, so that the folder stays small; those of the
corpus by SmolLM2 also as they are.
"""

import gzip
import hashlib
import json
import os
import random
import sys
import tempfile
from collections import Counter
from datetime import datetime

import gguf
import tokenizers
from transformers import AutoTokenizer, TokenizersBackend

import text_templates

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def read_corpus(folder: str) -> str:
    with open(f'{folder}/corpus.txt', encoding='utf-8', newline='') as file:
        return file.read()


def corpus_texts(corpus: str) -> list[str]:
    """Every line, blocks of nine lines with each kind of line end, and the whole. text-goldens.ts cuts the same way."""
    lines = [line for line in corpus.split('\n') if line]
    ends = ['\n', '\n\n', '\r\n', ' \n', '\n  ', '\t\n\t']
    blocks = [ends[i // 9 % len(ends)].join(lines[i : i + 9]) for i in range(0, len(lines), 9)]
    return lines + blocks + [corpus]


def random_texts(count: int) -> list[str]:
    """Random Unicode: any code point, or code points of a few blocks mixed with ASCII, spaces, digits and marks."""
    rng = random.Random(20261123)
    blocks = [
        (0x20, 0x7E), (0x20, 0x7E), (0x30, 0x39), (0x09, 0x0D), (0x20, 0x20), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x52F),
        (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xEFF), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x2BFF),
        (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFFFD), (0x10000, 0x10FFF),
        (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF),
    ]
    texts = []
    for i in range(count):
        chosen = rng.sample(blocks, rng.randint(1, 4))
        points = []
        for _ in range(rng.randint(0, 36)):
            low, high = rng.choice(chosen) if i % 4 else (0, 0x10FFFF)
            points.append(rng.randint(low, high))
        texts.append(''.join(chr(p) for p in points if not 0xD800 <= p <= 0xDFFF))
    return texts


def digest(ids: list[int]) -> str:
    return hashlib.sha256(','.join(map(str, ids)).encode()).hexdigest()[:12]


# -- tiny vocabularies ------------------------------------------------------------------------------------------------


def train(symbols: list[str], count: int, allowed) -> list[tuple[str, str]]:
    """Plain byte-pair training without any cutting into words, so that a wrong cut shows in the ids; ties by text."""
    merges = []
    while len(merges) < count:
        pairs = Counter(zip(symbols, symbols[1:]))
        best = max((p for p in pairs if allowed(p[0] + p[1])), key=lambda p: (pairs[p], p))
        merges.append(best)
        joined, i = [], 0
        while i < len(symbols):
            if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == best:
                joined.append(symbols[i] + symbols[i + 1])
                i += 2
            else:
                joined.append(symbols[i])
                i += 1
        symbols = joined
    return merges


EXTRA = (
    " 1234567 1999 2024 100 10 000 000 12 123 1234 it's I'm we'll they're you'd I've IT'S I'M WE'LL !!\n\n ??\r\n  x   y    z\n\n\n"
    ' camelCase CamelCase XMLHttp 1st 2nd a1b2 .NET a.b /usr/bin //\n ---\n\t\tx é é ñ ñ 東京 東京都 の の です です。'
) * 6


def byte_level_vocabulary(corpus: str) -> tuple[list[str], list[tuple[str, str]]]:
    letters = gpt2_letters()
    symbols = [letters[b] for b in (EXTRA + corpus + EXTRA).encode('utf-8')]
    merges = train(symbols, 900, lambda piece: len(piece) <= 12)
    return sorted(letters) + [a + b for a, b in merges], merges


def gpt2_letters() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(0x100 + others.index(b)) for b in range(256)]


def sentencepiece_vocabulary(corpus: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Characters seen often, no line breaks, '▁' for a space and only at the beginning of a piece or in runs of it."""
    text = ('▁' + (EXTRA + corpus + EXTRA).replace(' ', '▁')).replace('\r', '')
    seen = Counter(text)
    chars = sorted((c for c, n in seen.items() if n >= 4 and c.isprintable()), key=lambda c: (-seen[c], c))
    symbols = [c if c in chars else '\n' for c in text]
    fits = lambda piece: '\n' not in piece and len(piece) <= 10 and ('▁' not in piece.lstrip('▁'))  # noqa: E731
    merges = train(symbols, 700, fits)
    pieces = []
    for a, b in merges:
        if a + b not in pieces and a + b not in chars:
            pieces.append(a + b)
    return pieces + chars, merges


# -- one tokenizer as GGUF and as the model's own tokenizer.json -------------------------------------------------------

SPLIT = {
    'llama3': r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    'qwen2': r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    'tekken': r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+',
    'gpt-4o': r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    'seed-coder': r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
}
BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
GPT2 = {**BYTE_LEVEL, 'use_regex': True}


def isolated(*expressions: str) -> dict:
    each = [{'type': 'Split', 'pattern': {'Regex': e}, 'behavior': 'Isolated', 'invert': False} for e in expressions]
    return {'type': 'Sequence', 'pretokenizers': [*each, BYTE_LEVEL]}


DIGITS = {'type': 'Sequence', 'pretokenizers': [{'type': 'Digits', 'individual_digits': True}, GPT2]}
DEEPSEEK_V3 = isolated(
    r'\p{N}{1,3}',
    '[一-龥\u3040-ゟ゠-ヿ]+',
    '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+'
    '| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+',
)
DEEPSEEK_CODER = {
    'type': 'Sequence',
    'pretokenizers': [
        *isolated('[\r\n]', r'\s?\p{L}+', r'\s?\p{P}+', '[一-龥\u0800-一가-\ud7ff]+')['pretokenizers'][:-1],
        {'type': 'Digits', 'individual_digits': True},
        BYTE_LEVEL,
    ],
}

# name, `tokenizer.ggml.pre`, pre_tokenizer of the original, normalizer, ignore_merges, BOS by default
BYTE_LEVEL_KINDS = [
    ('gpt-2', 'gpt-2', GPT2, None, False, False),
    ('unnamed', None, GPT2, None, False, False),
    ('smollm', 'smollm', DIGITS, None, False, False),
    ('refact', 'refact', DIGITS, None, False, False),
    ('llama-bpe', 'llama-bpe', isolated(SPLIT['llama3']), None, True, True),
    ('qwen2', 'qwen2', isolated(SPLIT['qwen2']), {'type': 'NFC'}, False, False),
    ('tekken', 'tekken', isolated(SPLIT['tekken']), None, True, True),
    ('gpt-4o', 'gpt-4o', isolated(SPLIT['gpt-4o']), None, False, False),
    ('seed-coder', 'seed-coder', isolated(SPLIT['seed-coder']), None, False, False),
    ('deepseek-v3', 'deepseek-v3', DEEPSEEK_V3, None, False, True),
    ('deepseek-coder', 'deepseek-coder', DEEPSEEK_CODER, None, False, True),
]


def added(id_: int, content: str, special: bool) -> dict:
    flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
    return {'id': id_, 'content': content, **flags, 'special': special}


def bos_processor(bos: str, id_: int) -> dict:
    token = lambda type_id: {'SpecialToken': {'id': bos, 'type_id': type_id}}  # noqa: E731
    text = lambda name, type_id: {'Sequence': {'id': name, 'type_id': type_id}}  # noqa: E731
    return {
        'type': 'TemplateProcessing',
        'single': [token(0), text('A', 0)],
        'pair': [token(0), text('A', 0), token(1), text('B', 1)],
        'special_tokens': {bos: {'id': bos, 'ids': [id_], 'tokens': [bos]}},
    }


def byte_level_case(kind: tuple, vocabulary: tuple[list[str], list[tuple[str, str]]]) -> dict:
    name, pre, pre_tokenizer, normalizer, ignore_merges, bos = kind
    pieces, merges = vocabulary
    begin = '<｜begin▁of▁sentence｜>' if name.startswith('deepseek') else '<|endoftext|>'
    controls = [begin, '<|im_start|>', '<|im_end|>']
    tokens = [*controls, *pieces, '<think>', 'two  words']
    types = [CONTROL] * 3 + [NORMAL] * len(pieces) + [USER_DEFINED] * 2
    metadata = {
        'general.architecture': 'qwen2' if name == 'qwen2' else 'llama',
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.token_type': types,
        'tokenizer.ggml.merges': [f'{a} {b}' for a, b in merges],
        'tokenizer.ggml.bos_token_id': 0,
        'tokenizer.ggml.eos_token_id': 2,
        'tokenizer.ggml.add_bos_token': bos,
    }
    if pre is not None:
        metadata['tokenizer.ggml.pre'] = pre
    original = {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [
            added(i, t, types[i] == CONTROL) for i, t in enumerate(tokens) if types[i] in (CONTROL, USER_DEFINED)
        ],
        'normalizer': normalizer,
        'pre_tokenizer': pre_tokenizer,
        'post_processor': bos_processor(begin, 0) if bos else None,
        'decoder': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True},
        'model': {
            'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None, 'end_of_word_suffix': None,
            'fuse_unk': False, 'byte_fallback': False, 'ignore_merges': ignore_merges,
            'vocab': {t: i for i, t in enumerate(tokens)},
            'merges': [list(m) for m in merges],
        },
    }
    return {'name': name, 'metadata': metadata, 'original': original}


def sentencepiece_case(name: str, vocabulary: tuple[list[str], list[tuple[str, str]]]) -> dict:
    """SentencePiece as Llama 2, Mistral (prefix) and Gemma have it; Gemma's file spells runs of spaces as spaces."""
    pieces, _ = vocabulary
    gemma = name == 'gemma3'
    head = ['<pad>', '<eos>', '<bos>', '<unk>', '<start_of_turn>', '<end_of_turn>', '\n\n', '<table>'] if gemma else ['<unk>', '<s>', '</s>']
    head_types = [CONTROL, CONTROL, CONTROL, UNKNOWN, CONTROL, CONTROL, USER_DEFINED, USER_DEFINED] if gemma else [UNKNOWN, CONTROL, CONTROL]
    bytes_ = [f'<0x{b:02X}>' for b in range(256)]
    runs = [p for p in pieces if p.strip('▁') == '' and len(p) > 1] if gemma else []
    spelled = [p.replace('▁', ' ') if p in runs else p for p in pieces]
    tokens = [*head, *bytes_, *spelled]
    types = head_types + [BYTE] * 256 + [USER_DEFINED if p in runs else NORMAL for p in pieces]
    scores = [0.0] * (len(head) + 256) + [-float(i) for i in range(len(pieces))]
    roles = {'bos': 2, 'eos': 1, 'unknown': 3, 'padding': 0} if gemma else {'bos': 1, 'eos': 2, 'unknown': 0}
    metadata = {
        'general.architecture': name if gemma else 'llama',
        'tokenizer.ggml.model': 'llama',
        'tokenizer.ggml.pre': 'default',
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.token_type': types,
        'tokenizer.ggml.scores': scores,
        **{f'tokenizer.ggml.{role}_token_id': id_ for role, id_ in roles.items()},
        'tokenizer.ggml.add_bos_token': True,
        'tokenizer.ggml.add_space_prefix': name == 'llama',
    }
    return {'name': name, 'metadata': metadata, 'original': None}


def unigram_case(vocabulary: tuple[list[str], list[tuple[str, str]]]) -> dict:
    pieces, _ = vocabulary
    tokens = ['<pad>', '</s>', '<unk>', *pieces]
    metadata = {
        'general.architecture': 't5',
        'tokenizer.ggml.model': 't5',
        'tokenizer.ggml.pre': 'default',
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.token_type': [CONTROL, CONTROL, UNKNOWN] + [NORMAL] * len(pieces),
        'tokenizer.ggml.scores': [0.0] * 3 + [-2.0 - i / 100 for i in range(len(pieces))],
        'tokenizer.ggml.eos_token_id': 1,
        'tokenizer.ggml.unknown_token_id': 2,
        'tokenizer.ggml.padding_token_id': 0,
        'tokenizer.ggml.add_bos_token': False,
        'tokenizer.ggml.add_eos_token': True,
    }
    return {'name': 'unigram', 'metadata': metadata, 'original': None}


def write_gguf(metadata: dict, path: str) -> None:
    """The metadata and what transformers wants to know of any model of the architecture."""
    architecture = metadata['general.architecture']
    writer = gguf.GGUFWriter(path, architecture)
    sizes = {'context_length': 64, 'embedding_length': 8, 'block_count': 1, 'feed_forward_length': 8}
    for key, value in sizes.items():
        writer.add_uint32(f'{architecture}.{key}', value)
    for key, value in {'head_count': 1, 'head_count_kv': 1, 'key_length': 8, 'value_length': 8}.items():
        writer.add_uint32(f'{architecture}.attention.{key}', value)
    writer.add_float32(f'{architecture}.attention.layer_norm_rms_epsilon', 1e-6)
    writer.add_uint32(f'{architecture}.vocab_size', len(metadata['tokenizer.ggml.tokens']))
    for key, value in metadata.items():
        if key == 'general.architecture':
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def ids_of(tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=True)['input_ids'] for text in texts]


def from_gguf(metadata: dict):
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(metadata, f'{folder}/model.gguf')
        return AutoTokenizer.from_pretrained(folder, gguf_file='model.gguf')


def from_original(original: dict):
    return TokenizersBackend(tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(original)))


# -- files --------------------------------------------------------------------------------------------------------------


def write_json(path: str, value) -> None:
    with open(path, 'w', encoding='utf-8', newline='\n') as file:
        json.dump(value, file, ensure_ascii=False, indent=0)
        file.write('\n')


def write_packed(path: str, value) -> None:
    write_bytes(path, json.dumps(value, ensure_ascii=False, separators=(',', ':')).encode('utf-8'))


def write_bytes(path: str, data: bytes) -> None:
    with open(path, 'wb') as file:
        file.write(gzip.compress(data, 9, mtime=0))


def merge_planes(tokens: list[str], merges: list[str]) -> bytes:
    """Low bytes of all left ids, their high bytes, then the same of the right ids: a third of the text, packed."""
    ids = {t: i for i, t in enumerate(tokens)}
    pairs = [[ids[piece] for piece in merge.split(' ')] for merge in merges]
    return b''.join(bytes(pair[side] >> shift & 255 for pair in pairs) for side in (0, 1) for shift in (0, 8))


def without_pieces(case: dict, pieces: list[str]) -> dict:
    """The vocabulary is shared by many cases and kept once: `tokens` tells what stands around it."""
    metadata = dict(case['metadata'])
    tokens = metadata.pop('tokenizer.ggml.tokens')
    head = next(i for i in range(len(tokens)) if tokens[i : i + len(pieces)] == pieces)
    metadata.pop('tokenizer.ggml.merges', None)
    packed = {**case, 'metadata': metadata, 'head': tokens[:head], 'tail': tokens[head + len(pieces) :]}
    if case['original'] is not None:
        model = {k: v for k, v in case['original']['model'].items() if k not in ('vocab', 'merges')}
        packed['original'] = {**case['original'], 'model': model}
    return packed


def write_tokenizers(folder: str, corpus: str, texts: list[str]) -> None:
    letters, pieces = byte_level_vocabulary(corpus), sentencepiece_vocabulary(corpus)
    cases = [byte_level_case(kind, letters) for kind in BYTE_LEVEL_KINDS]
    cases += [sentencepiece_case(name, pieces) for name in ('llama', 'llama-no-prefix', 'gemma3')]
    cases.append(unigram_case(pieces))
    for case in cases:
        case['gguf'] = [digest(ids) for ids in ids_of(from_gguf(case['metadata']), texts)]
        if case['original'] is not None:
            case['originalIds'] = [digest(ids) for ids in ids_of(from_original(case['original']), texts)]
    shared = {'byteLevel': letters[0], 'merges': [f'{a} {b}' for a, b in letters[1]], 'sentencePiece': pieces[0]}
    spelled = {'gemma3': next(c for c in cases if c['name'] == 'gemma3')['metadata']['tokenizer.ggml.tokens'][-len(pieces[0]) :]}
    packed = []
    for case in cases:
        model = case['metadata']['tokenizer.ggml.model']
        packed.append(without_pieces(case, letters[0] if model == 'gpt2' else spelled.get(case['name'], pieces[0])))
    write_packed(f'{folder}/tokenizers.json.gz', {**shared, 'cases': packed})


def smollm2_original(tokens: list[str], types: list[int], merges: list[str]) -> dict:
    """The tokenizer.json of the model's own folder: every digit stands alone, which transformers leaves out for GGUF."""
    kind = next(k for k in BYTE_LEVEL_KINDS if k[0] == 'smollm')
    model = byte_level_case(kind, ([], []))['original']
    model['added_tokens'] = [added(i, t, True) for i, t in enumerate(tokens) if types[i] == CONTROL]
    model['model']['vocab'] = {t: i for i, t in enumerate(tokens)}
    model['model']['merges'] = [m.split(' ') for m in merges]
    return model


def write_smollm2(folder: str, path: str, texts: list[str], lines: int) -> None:
    reader = gguf.GGUFReader(path)
    metadata = {k: f.contents() for k, f in reader.fields.items() if k.startswith('tokenizer.') or k == 'general.architecture'}
    tokens, merges = metadata.pop('tokenizer.ggml.tokens'), metadata.pop('tokenizer.ggml.merges')
    types = metadata.pop('tokenizer.ggml.token_type')
    # Every token after the first few is what its merge joins, so the merges tell the vocabulary.
    base = len(tokens) - len(merges)
    if tokens[base:] != [m.replace(' ', '') for m in merges] or types != [3] * 17 + [1] * (len(tokens) - 17):
        raise SystemExit(f'{path} is not the SmolLM2 vocabulary that this script knows')
    tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(path), gguf_file=os.path.basename(path))
    ids = ids_of(tokenizer, texts)
    original = smollm2_original(tokens, types, merges)
    original_ids = ids_of(from_original(original), texts)
    rendered = [
        tokenizer.apply_chat_template(c['messages'], tokenize=False, add_generation_prompt=c['addGenerationPrompt'])
        for c in text_templates.SMOLLM2_CONVERSATIONS
    ]
    write_bytes(f'{folder}/smollm2-merges.bin.gz', merge_planes(tokens, merges))
    golden = {
        'metadata': metadata, 'firstTokens': tokens[:base], 'controls': 17,
        'lineIds': original_ids[:lines], 'originalIds': [digest(i) for i in original_ids], 'ggufIds': [digest(i) for i in ids],
        'conversations': [{**c, 'text': t} for c, t in zip(text_templates.SMOLLM2_CONVERSATIONS, rendered)],
    }
    write_packed(f'{folder}/smollm2.json.gz', golden)


def main() -> None:
    folder = sys.argv[1]
    corpus = read_corpus(folder)
    texts = random_texts(200)
    write_json(f'{folder}/random.json', texts)
    of_corpus = corpus_texts(corpus)
    write_tokenizers(folder, corpus, of_corpus + texts)
    write_json(f'{folder}/templates.json', text_templates.goldens(datetime(2024, 7, 26, 15, 4, 5)))
    if len(sys.argv) > 2:
        lines = len([line for line in corpus.split('\n') if line])
        write_smollm2(folder, sys.argv[2], of_corpus + texts, lines)


if __name__ == '__main__':
    main()
