"""Makes small tokenizers of each kind and freezes what transformers gives with them, for test_tokenizer_files.py.

Run it with the [parity] extra and the packages of the plain install: python tests/data/make_tokenizer_fixtures.py
"""

import io
import json
import pydoc_data.topics
import shutil
import sys
from pathlib import Path

import gguf
import sentencepiece
import tokenizers
import transformers
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parents[1]))
from real_weights import minilm_folder, smollm2_gguf  # noqa: E402

FOLDER = Path(__file__).parent / "fixtures" / "tokenizers"

TEXTS = [
    "Hello, my dog is cute",
    "It's what we've been waiting for; don't they'll say I'm late!",
    "A class is an object. The statement 'for x in y:' is   not   one.",
    "",
    " ",
    "   leading and trailing  ",
    "tabs\tand\nnew lines\r\n\r\nand more\n\n  \n",
    "caf\u00e9 nai\u0308ve \u00dcbung stra\u00dfe \u00c5ngstr\u00f6m I\u0307stanbul",
    "\u8a9e\u8a9e \u65e5\u672c\u8a9e\u306e\u6587 \u4e2d\u6587mixed\u82f1\u6587",
    "\U0001f600 \U0001f44d\U0001f3fd family: \U0001f468\u200d\U0001f469\u200d\U0001f467 end",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
    "control\x01 char\x7facters\x00 \ufeffand\u200b zero\u00adwidth \u2028 lines\ufffd",
    "3.14159 and 1,234,567 or 2e10; \u00bd \u2167 \uff11\uff12",
    "https://example.org/a?b=c&d=%20#e def f(x): return x**2  # note",
    "supercalifragilisticexpialidocious" * 4,
    "\ufb01ne \uff26\uff55\uff4c\uff4c width \u2460 \u212b",
]
# What spells the special tokens of one kind or another.
SPECIAL_TEXTS = ["The [MASK] is [SEP] here.", "The <mask> is </s> <s> here.<pad>", "a <extra_id_0> b<extra_id_1>.", "x<|endoftext|>y"]
FIRSTS = ["The quick brown fox", "A question of length: is this one longer than the other?", "Yes"]
SECONDS = ["jumps over the lazy dog and then sleeps for a very long while", "No", "It is not so, and what is more it never was"]
# How a batch is asked for, in the words of `Tokenizer.__call__`; "pairs" names the second texts.
CALLS = [
    {},
    {"padding_side": "left"},
    {"max_len": 12},
    {"max_len": 40, "padding": "max_len"},
    {"add_special_tokens": False},
    {"max_len": 10, "stride": 3},
    {"pairs": "seconds"},
    {"pairs": "seconds", "padding_side": "left", "max_len": 30, "padding": "max_len"},
    {"pairs": "seconds", "max_len": 16, "truncation": "longest_first"},
    {"pairs": "seconds", "max_len": 15, "truncation": "longest_first", "padding_side": "left"},
    {"pairs": "seconds", "max_len": 30, "truncation": "only_second"},
    {"pairs": "seconds", "max_len": 60, "truncation": "only_first", "padding": "max_len"},
    {"pairs": "seconds", "max_len": 34, "truncation": "only_second", "stride": 4},
    {"pairs": "firsts", "max_len": 20},
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello, my dog is cute"},
    {"role": "assistant", "content": "So is mine."},
    {"role": "user", "content": "What is its name?"},
]
TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nHi<|im_end|>\\n' }}{% endif %}\n"
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' }}\n"
    "    {%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\n"
    "    {%- else %}{{ message['content'] | trim + '<|im_end|>' }}{% endif %}{{ '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if tools %}{{ tools | tojson }}{% endif %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "caf\u00e9 <b>", "parameters": {"type": "object", "properties": {}}}}]


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    write(FOLDER / "texts.json", {"texts": TEXTS, "special": SPECIAL_TEXTS, "firsts": FIRSTS, "seconds": SECONDS})
    make_bert()
    make_byte_level()
    make_sentencepiece()
    make_gguf()
    freeze_real()
    print(sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()), "bytes")


def training_lines() -> list[str]:
    lines = [line.strip() for _, text in sorted(pydoc_data.topics.topics.items()) for line in text.split("\n") if line.strip()]
    return lines[:400] + [text for text in TEXTS if len(text) < 100] * 3


def make_bert() -> None:
    for name, cased in (("bert", False), ("bert_cased", True)):
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=not cased)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, limit_alphabet=150, show_progress=False)
        backend.train_from_iterator(training_lines(), trainer)
        vocab = backend.get_vocab()
        folder = FOLDER / name
        write(folder / "vocab.txt", "".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)))
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": not cased, "model_max_length": 512}
        if cased:
            config |= {"tokenize_chinese_chars": False, "strip_accents": True}
        write(folder / "tokenizer_config.json", config)
        freeze(transformers.BertTokenizer.from_pretrained(folder), folder, with_calls=not cased)
    saved = FOLDER / "bert_saved"  # as transformers writes them now
    transformers.BertTokenizer.from_pretrained(FOLDER / "bert").save_pretrained(saved)
    tokenizer = json.loads((saved / "tokenizer.json").read_text())
    write(saved / "tokenizer.json", tokenizer)


def make_byte_level() -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(training_lines(), trainer)
    model = json.loads(backend.to_str())["model"]
    learnt = sorted(model["vocab"], key=model["vocab"].get)
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"])
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    made = {
        "gpt2": (transformers.GPT2Tokenizer, [*learnt, "<|endoftext|>"], {"model_max_length": 1024}),
        "roberta": (
            transformers.RobertaTokenizer,
            ["<s>", "<pad>", "</s>", "<unk>", *learnt, "<mask>"],
            {"tokenizer_class": "RobertaTokenizer", "mask_token": mask},
        ),
        "roberta_prefix": (
            transformers.RobertaTokenizer,
            ["<s>", "<pad>", "</s>", "<unk>", *learnt, "<mask>"],
            {"tokenizer_class": "RobertaTokenizer", "mask_token": mask, "add_prefix_space": True},
        ),
    }
    for name, (kind, tokens, config) in made.items():
        folder = FOLDER / name
        write(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
        write(folder / "merges.txt", merges)
        write(folder / "tokenizer_config.json", config)
        freeze(kind.from_pretrained(folder), folder, with_calls=name != "roberta_prefix")


def make_sentencepiece() -> None:
    rules = FOLDER / "rules.tsv"  # a few rules only: SentencePiece's own are a quarter of a megabyte in each model
    spaces = {char: " " for char in "\t\n\r\xa0\u2028"}
    replaced = {**spaces, "\ufb01": "fi", "\u2460": "1", "\x01": ""}.items()
    write(rules, "".join(f"{ord(char):X}\t{' '.join(f'{ord(c):X}' for c in to)}\n" for char, to in replaced))
    unigram = {"model_type": "unigram", "normalization_rule_tsv": str(rules), "character_coverage": 0.995}
    t5, llama, marian = FOLDER / "t5", FOLDER / "llama", FOLDER / "marian"
    for folder in (t5, llama, marian):
        folder.mkdir()
    spm(t5 / "spiece.model", training_lines(), vocab_size=500, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, **unigram)
    freeze(transformers.T5Tokenizer.from_pretrained(t5), t5)
    spm(llama / "tokenizer.model", training_lines(), vocab_size=600, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False)  # fmt: skip
    lines = training_lines()
    spm(marian / "source.spm", lines[:200] + TEXTS[:12], vocab_size=250, **unigram)
    spm(marian / "target.spm", lines[200:] + TEXTS[6:12] * 2, vocab_size=250, **unigram)
    pieces = {}
    for side in ("source", "target"):
        model = sentencepiece.SentencePieceProcessor(model_file=str(marian / f"{side}.spm"))
        pieces |= dict.fromkeys(model.id_to_piece(i) for i in range(3, model.get_piece_size()))
    kept = [piece for number, piece in enumerate(sorted(pieces)) if number % 12]  # each twelfth becomes <unk>
    tokens = ["</s>", "<unk>", *kept[::-1], ">>fra<<", "<pad>"]
    write(marian / "vocab.json", {token: index for index, token in enumerate(tokens)})
    write(marian / "tokenizer_config.json", {"source_lang": "en", "target_lang": "de", "model_max_length": 512})
    freeze_marian(transformers.MarianTokenizer.from_pretrained(marian), marian)
    rules.unlink()


def spm(path: Path, lines: list[str], **options) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **options)
    proto = ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.normalization_rule_tsv = ""  # the name of a file of the machine that trained it
    path.write_bytes(proto.SerializeToString())


def make_gguf() -> None:
    vocab = json.loads((FOLDER / "gpt2" / "vocab.json").read_text())
    learnt = [token for token in sorted(vocab, key=vocab.get) if token != "<|endoftext|>"]
    merges = (FOLDER / "gpt2" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*learnt, *special, "<tool>"]
    kinds = [gguf.TokenType.NORMAL] * len(learnt) + [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.USER_DEFINED]
    ids = {"unk": len(learnt), "bos": len(learnt) + 1, "eos": len(learnt) + 2, "pad": len(learnt) + 2}
    for pre in ("smollm", "llama-bpe", "qwen2", "gpt-2"):
        writer = started(FOLDER / f"{pre}.gguf", "gpt2", tokens, kinds, **ids)
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges)
        writer.add_add_bos_token(pre == "llama-bpe")
        writer.add_chat_template(TEMPLATE)
        finish(writer)
        tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, gguf_file=f"{pre}.gguf")
        if pre == "qwen2":  # what transformers makes of the GGUF file lacks the normalizer that Qwen2 has
            make_qwen2(FOLDER / pre, learnt, merges, [*special, "<tool>"])
            tokenizer = transformers.Qwen2Tokenizer.from_pretrained(FOLDER / pre)
        freeze(tokenizer, FOLDER / pre, with_calls=False)
        freeze_chat(tokenizer, FOLDER / pre)
    model = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "llama" / "tokenizer.model"))
    pieces = range(model.get_piece_size())
    kinds = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in pieces]
    writer = started(FOLDER / "spm.gguf", "llama", [model.id_to_piece(i) for i in pieces], kinds, bos=1, eos=2, unk=0)
    writer.add_token_scores([model.get_score(i) for i in pieces])
    finish(writer)


def make_qwen2(folder: Path, learnt: list[str], merges: list[str], added: list[str]) -> None:
    write(folder / "vocab.json", {token: index for index, token in enumerate(learnt)})
    write(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    by_id = {len(learnt) + i: {"content": token, "special": token != "<tool>", **flags} for i, token in enumerate(added)}
    roles = {"unk_token": added[0], "bos_token": added[1], "eos_token": added[2], "pad_token": added[2]}
    config = {"tokenizer_class": "Qwen2Tokenizer", **roles, "added_tokens_decoder": by_id, "chat_template": TEMPLATE}
    write(folder / "tokenizer_config.json", config)


def started(path: Path, model: str, tokens: list[str], kinds: list[int], **ids: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"block_count": 1, "context_length": 2048, "embedding_length": 8, "feed_forward_length": 8}.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for role, index in ids.items():
        getattr(writer, f"add_{role}_token_id")(index)
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def freeze(tokenizer, folder: Path, with_calls: bool = True) -> None:
    """What transformers gives for each text by itself, and for batches."""
    out = tokenizer(TEXTS + SPECIAL_TEXTS, return_offsets_mapping=True)
    ids, offsets = out["input_ids"], out["offset_mapping"]
    decoded, skipped = (tokenizer.batch_decode(ids, skip_special_tokens=skip) for skip in (False, True))
    frozen = {"roles": {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")},
              "ids": ids, "offsets": offsets, "decoded": decoded, "skipped": skipped}  # fmt: skip
    if with_calls:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        frozen["calls"] = [[call, batch(tokenizer, **call)] for call in CALLS]
    write(folder / "frozen.json", frozen)


def batch(tokenizer, pairs: str | None = None, padding: str = "longest", max_len: int | None = None, **options) -> dict:
    given = {
        "padding": "max_length" if padding == "max_len" else padding,
        "truncation": options.get("truncation", "longest_first" if max_len else False),
        "max_length": max_len,
        "stride": options.get("stride", 0),
        "return_overflowing_tokens": "stride" in options,
        "padding_side": options.get("padding_side", "right"),
        "add_special_tokens": options.get("add_special_tokens", True),
    }
    out = tokenizer(FIRSTS, {"firsts": FIRSTS, "seconds": SECONDS}.get(pairs), **given, return_offsets_mapping=True, return_special_tokens_mask=True)
    encodings = [out[i] for i in range(len(out["input_ids"]))]
    words = [[-1 if word is None else word for word in encoding.word_ids] for encoding in encodings]
    sequences = [[-1 if sequence is None else sequence for sequence in encoding.sequence_ids] for encoding in encodings]
    return dict(out) | {"word_ids": words, "sequence_ids": sequences}


def freeze_marian(tokenizer, folder: Path) -> None:
    texts = [*TEXTS, ">>fra<< Hello, my dog is cute"]
    frozen = {"roles": {role: getattr(tokenizer, f"{role}_token_id") for role in ("eos", "unk", "pad")},
              "texts": texts, "source": tokenizer(texts)["input_ids"], "target": tokenizer(text_target=texts)["input_ids"]}  # fmt: skip
    frozen["decoded"] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in frozen["target"]]
    write(folder / "frozen.json", frozen)


def freeze_chat(tokenizer, folder: Path) -> None:
    chats = []
    for options in ({}, {"add_generation_prompt": True}, {"tools": TOOLS}):
        text = tokenizer.apply_chat_template(CHAT, tokenize=False, **options)
        out = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True, **options)
        chats.append({"options": options, "text": text, "tokens": out["input_ids"], "assistant": out["assistant_masks"]})
    write(folder / "chats.json", {"messages": CHAT, "chats": chats})


def has_other_digits(text: str) -> bool:
    return any(char.isnumeric() and not char.isascii() for char in text)


def freeze_real() -> None:
    """The ids that the tokenizers of the real checkpoints give."""
    minilm = transformers.AutoTokenizer.from_pretrained(minilm_folder())
    path = smollm2_gguf()
    smollm2 = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    pairs = [list(pair) for pair in zip(FIRSTS, SECONDS)]
    frozen = {
        "minilm": minilm(TEXTS, truncation=False, padding=False)["input_ids"],
        "minilm pairs": dict(minilm(pairs, truncation=False, padding=True)),
        # What transformers makes of the file does not set digits apart, which shows in those of several bytes.
        "smollm2": {text: smollm2(text)["input_ids"] for text in TEXTS if not has_other_digits(text)},
        "smollm2 chat": smollm2.apply_chat_template(CHAT, tokenize=True, add_generation_prompt=True)["input_ids"],
    }
    write(FOLDER / "real.json", frozen)


def write(path: Path, content) -> None:
    path.parent.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
