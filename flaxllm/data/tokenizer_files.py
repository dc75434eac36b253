"""Tokenizers as people have them: the files of Hugging Face, GPT-2, BERT, SentencePiece and Marian, and GGUF."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from flaxllm.data.byte_bpe import GPT2, QWEN2, find_words
from flaxllm.data.gguf_tokenizer import load_gguf
from flaxllm.data.hub import resolve
from flaxllm.data.library_errors import blaming, one_line
from flaxllm.data.marian import load_marian
from flaxllm.data.sentencepiece_files import keep_as_text, read_model, sentencepiece_backend
from flaxllm.data.sources import nearest_path
from flaxllm.data.tokenizer_config import CONFIG, FAMILIES, TokenizerConfig, complete, read_config
from flaxllm.data.tokenizers import END_OF_TEXT, OTHER_CONFIGS, Tokenizer
from flaxllm.errors import InputError

NAMED = ("bytes", "chars", "bpe")  # those that a config may name beside a path

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?(@.+)?")


class NoTokenizer(InputError):
    """There is no tokenizer where one was looked for."""


def load(path_or_id: str | Path) -> Tokenizer:
    """The tokenizer in a folder, in a file, or of a model on the Hugging Face hub.

    A folder has one of: tokenizer.json; source.spm, target.spm and vocab.json (Marian); spiece.model (T5) or
    tokenizer.model (Llama 2); encoder.json and vocab.bpe, or vocab.json and merges.txt (GPT-2, RoBERTa, Qwen2); vocab.txt
    (BERT); a lone .gguf. The first of these that is there is read, and with it what there is of tokenizer_config.json,
    special_tokens_map.json, added_tokens.json, chat_template.jinja and config.json. A file is any of the single ones.

    What the files say of truncation and padding to a length is dropped: text is encoded whole unless a call asks otherwise.
    So is a dropout of merges (Provilkov et al. 2020), by which a text would have other ids each time.

    Raises:
      InputError: there is none (NoTokenizer), it is damaged, of a kind that is not known, or its files contradict each other.
    """
    path = Path(os.path.expanduser(path_or_id))
    if not os.path.exists(path):
        path = _from_hub(str(path_or_id), path)
    return _load_folder(path) if path.is_dir() else _load_file(path)


def _from_hub(text: str, path: Path) -> Path:
    is_file = path.suffix in (".gguf", ".json", ".model", ".spm", ".txt")
    if is_file or not _HUB_ID.fullmatch(text) or difflib.get_close_matches(text, NAMED, n=1):
        raise InputError(f"there is no tokenizer {text!r}: {nearest_path(path, NAMED)}")
    files = {name for names, _ in _FORMS for name in names}
    return resolve(text, [*sorted(files), CONFIG, *OTHER_CONFIGS, "config.json"])


def _load_folder(folder: Path) -> Tokenizer:
    for names, read in _FORMS:
        files = [folder / name for name in names]
        if all(file.exists() for file in files):
            return read(files, read_config(folder))
    gguf = sorted(folder.glob("*.gguf"))
    if len(gguf) == 1:
        return load_gguf(gguf[0])
    forms = ", ".join(" and ".join(names) for names, _ in _FORMS)
    raise NoTokenizer(f"folder {str(folder)!r} holds no tokenizer: expected {forms}, or a lone .gguf")


def _load_file(path: Path) -> Tokenizer:
    if path.suffix == ".gguf":
        return load_gguf(path)
    by_name = {names[0]: read for names, read in _FORMS if len(names) == 1}
    if path.name in by_name:
        return by_name[path.name]([path], read_config(path.parent))
    by_suffix = {".model": _load_sentencepiece, ".spm": _load_sentencepiece, ".txt": _load_word_piece}
    # A file of a name of its own has nothing to do with the config beside it.
    return by_suffix.get(path.suffix, _load_json)([path], TokenizerConfig(path.parent))


def _load_json(files: list[Path], config: TokenizerConfig) -> Tokenizer:
    with blaming(f"{files[0]} is not a tokenizer.json that can be read"):
        backend = tokenizers.Tokenizer.from_file(str(files[0]))
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None
        for texts in (("",), ("", "")):  # what is to be put around a text, and a pair, is looked up only now
            backend.encode(*texts)
    if isinstance(backend.model, models.Unigram):
        names = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
        names += [f"<0x{byte:02X}>" for byte in range(256)]
        keep_as_text(backend, [name for name in names if backend.model.token_to_id(name) is not None])
    if isinstance(backend.normalizer, normalizers.BertNormalizer):
        backend.normalizer = _bert_normalizer(config, backend.normalizer)
    family = config.family if config.declared else _likely_family(backend)
    return complete(backend, config, family, FAMILIES.get(family, {}))


def _bert_normalizer(config: TokenizerConfig, default: normalizers.BertNormalizer) -> normalizers.BertNormalizer:
    """BERT's normalizer as a config says; where it is silent, as `default`."""
    return normalizers.BertNormalizer(
        clean_text=default.clean_text,
        handle_chinese_chars=config.flag("tokenize_chinese_chars", default.handle_chinese_chars),
        strip_accents=config.flag("strip_accents", default.strip_accents),
        lowercase=config.flag("do_lower_case", default.lowercase),
    )


def _likely_family(backend: tokenizers.Tokenizer) -> str | None:
    """The family whose special tokens a tokenizer has, where no file tells."""
    vocab = backend.get_vocab(with_added_tokens=True)
    if isinstance(backend.model, models.WordPiece):
        return "bert"
    likely = "t5" if isinstance(backend.model, models.Unigram) else "roberta" if "<mask>" in vocab else "llama"
    return likely if set(FAMILIES[likely].values()) <= set(vocab) else "gpt2"


def _load_word_piece(files: list[Path], config: TokenizerConfig) -> Tokenizer:
    """BERT's vocab.txt: a token a line, in the order of their ids (Devlin et al. 2019)."""
    path = files[0]
    family = config.require(path, ("bert", "distilbert"))
    if not config.flag("do_basic_tokenize", True):
        raise InputError(f"{config.folder / CONFIG} has do_basic_tokenize false, words cut at spaces only: expected true")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}): expected UTF-8 text with a token a line") from error
    vocab = {token: index for index, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    tokens = {role: token.content for role, token in config.tokens_by_role(FAMILIES[family]).items() if token is not None}
    cls, sep, unk = (tokens.get(role) for role in ("cls", "sep", "unk"))
    missing = [role for role, token in (("cls", cls), ("sep", sep), ("unk", unk)) if token not in vocab]
    if missing:
        needed = {role: tokens.get(role) for role in missing}
        raise InputError(f"{path} lacks the special tokens {needed}: is it BERT's vocabulary, with a token a line?")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk))
    backend.normalizer = _bert_normalizer(config, normalizers.BertNormalizer())
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece("##")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    return complete(backend, config, family, FAMILIES[family])


def _load_byte_bpe(files: list[Path], config: TokenizerConfig) -> Tokenizer:
    """The pair that GPT-2 published: the ids by token (JSON) and the merges (text)."""
    with blaming(f"{files[0]} and {files[1].name} are not GPT-2's pair of files"):
        backend = tokenizers.Tokenizer(models.BPE.from_file(*map(str, files)))
    family = config.require(files[0], ("gpt2", "roberta", "qwen2"), _likely_family(backend))
    with_space = config.flag("add_prefix_space", False)
    find_words(backend, QWEN2 if family == "qwen2" else GPT2, with_space)
    default = dict(FAMILIES[family])
    if family == "roberta":
        return _roberta(backend, config, files[0], default, with_space)
    if family == "gpt2":
        backend.add_special_tokens([END_OF_TEXT])
    return complete(backend, config, family, default, adds=(config.flag("add_bos_token", False), False))


def _roberta(
    backend: tokenizers.Tokenizer, config: TokenizerConfig, path: Path, default: Mapping[str, str], with_space: bool
) -> Tokenizer:
    """The special tokens of RoBERTa (Liu et al. 2019), whose mask takes in the space before it."""
    tokens = config.tokens_by_role(default)
    if not isinstance(config.values.get("mask_token"), dict):
        tokens["mask"] = AddedToken(default["mask"], lstrip=True, normalized=False, special=True)
    ids = {role: backend.token_to_id(tokens[role].content) for role in ("cls", "sep") if tokens[role]}
    if len(ids) < 2 or None in ids.values():
        raise InputError(f"{path} lacks the tokens that RoBERTa puts around a text: expected <s> and </s> in it")
    sep, cls = ((tokens[role].content, ids[role]) for role in ("sep", "cls"))
    backend.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=with_space)
    return complete(backend, config, "roberta", tokens)


def _load_sentencepiece(files: list[Path], config: TokenizerConfig) -> Tokenizer:
    """T5's spiece.model, Llama 2's tokenizer.model, or another of either kind."""
    path = files[0]
    model = read_model(path)
    family = config.require(path, ("t5", "llama"), "t5" if model.is_unigram else "llama")
    with blaming(f"{path} is a SentencePiece model that cannot be used"):
        backend = sentencepiece_backend(model)
    if family == "t5":
        backend.add_special_tokens(_sentinels(config, [piece.text for piece in model.pieces]))
        adds = (False, True)
    else:
        adds = (config.flag("add_bos_token", True), config.flag("add_eos_token", False))
    return complete(backend, config, family, model.tokens_by_role, adds=adds)


def _sentinels(config: TokenizerConfig, pieces: list[str]) -> list[AddedToken]:
    """T5's <extra_id_0> and so on, which stand for what was left out of a text; the first has the highest id.

    T5 has a hundred beyond its model's pieces (Raffel et al. 2020, section 3.1.4); mT5's are among the pieces.
    """
    count = config.values.get("extra_ids", 0 if any("<extra_id_" in piece for piece in pieces) else 100)
    if not isinstance(count, int) or not 0 <= count <= 10**4:
        raise InputError(f"{config.folder / CONFIG} has extra_ids {count!r}: expected a number of tokens such as 100")
    return [AddedToken(f"<extra_id_{i}>", normalized=False, special=True) for i in reversed(range(count))]


# The files of each form, and what reads them: the first form that a folder has is its tokenizer.
_FORMS = (
    (("tokenizer.json",), _load_json),
    (("source.spm", "target.spm", "vocab.json"), load_marian),
    (("spiece.model",), _load_sentencepiece),
    (("tokenizer.model",), _load_sentencepiece),
    (("encoder.json", "vocab.bpe"), _load_byte_bpe),
    (("vocab.json", "merges.txt"), _load_byte_bpe),
    (("vocab.txt",), _load_word_piece),
)
