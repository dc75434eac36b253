"""The tokenizers that are made here, and the one that a config names."""

import io
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from flaxllm.data.byte_bpe import byte_letters, find_words
from flaxllm.data.library_errors import one_line
from flaxllm.data.tokenizer_files import load
from flaxllm.data.tokenizers import EACH_CHARACTER, END_OF_TEXT, Tokenizer
from flaxllm.errors import InputError

_BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PRIVATE = 0xF0000  # where Unicode has characters that no text uses
_SENTINELS = 100  # of T5's vocabulary
_BPE_SIZES = (257, 2**20)  # the least holds the bytes; the trainer sets memory aside for any size it is told


def byte_level() -> Tokenizer:
    """257 tokens: id b for the byte b of the text's UTF-8, and 256 for the end of a text."""
    vocab = {letter: byte for byte, letter in enumerate(byte_letters())}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _finished(backend)


def char_level(documents: Iterable[str]) -> Tokenizer:
    """One id for each distinct character, in the order of their code points, and the last for the end of a text."""
    characters = set()
    for document in documents:
        characters.update(document)
    vocab = {char: index for index, char in enumerate(sorted(characters))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(EACH_CHARACTER), "isolated")
    backend.decoder = decoders.Fuse()
    return _finished(backend)


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE as GPT-2's (Radford et al. 2019, section 2.2): 256 bytes, merges, and the end of a text last.

    Raises:
      InputError: `vocab_size` has no room for the bytes, or is more than the documents have merges for.
    """
    least, most = _BPE_SIZES
    if not least <= vocab_size <= most:
        raise InputError(
            f"a byte-level BPE cannot have {vocab_size} tokens: set vocab_size from {least} (the bytes and "
            f"{END_OF_TEXT}) to {most}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    find_words(backend)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=sorted(byte_letters()), show_progress=False)
    backend.train_from_iterator(documents, trainer)
    return _of_size(_finished(backend), vocab_size)


def train_wordpiece(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """BERT's (Devlin et al. 2019, section 3): lower case, words cut into pieces, [CLS] and [SEP] around one text or two.

    The pieces are those of a BPE in which a letter within a word is another than at its beginning. (The library's own
    trainer gives other ones each time.)

    Raises:
      InputError: the documents have not so many pieces, or more letters than `vocab_size`.
    """
    normalizer, cutter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(word for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(document)))
    inside = {char: chr(_PRIVATE + index) for index, char in enumerate(sorted({char for word in counts for char in word[1:]}))}
    outside = {private: char for char, private in inside.items()}
    letters = len(inside) + len({word[0] for word in counts})
    if letters + len(_BERT_TOKENS) > vocab_size:
        raise InputError(f"vocab_size {vocab_size} has no room for the {letters} letters of the text: raise it")
    pairs = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(_BERT_TOKENS), show_progress=False)
    spelled = ((word[0] + "".join(map(inside.get, word[1:])), counts[word]) for word in sorted(counts))
    pairs.train_from_iterator((word for word, count in spelled for _ in range(count)), trainer)
    found = sorted(pairs.get_vocab().items(), key=lambda item: item[1])
    pieces = [("##" if piece[0] in outside else "") + "".join(outside.get(c, c) for c in piece) for piece, _ in found]
    vocab = {piece: index for index, piece in enumerate([*_BERT_TOKENS, *pieces])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizer, cutter, decoders.WordPiece()
    backend.add_special_tokens(list(_BERT_TOKENS))
    pad, unk, cls, sep, mask = range(len(_BERT_TOKENS))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return _of_size(Tokenizer(backend, unk=unk, sep=sep, pad=pad, cls=cls, mask=mask, has_token_types=True), vocab_size)


def train_unigram(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """T5's (Raffel et al. 2020, section 2.2): the pieces of a unigram model (Kudo 2018) that SentencePiece trains, each text
    ended by </s>, and 100 sentinels, <extra_id_0> the last of all.

    Raises:
      InputError: the documents have not so many pieces, or `vocab_size` has no room for letters and sentinels.
    """
    import sentencepiece

    if vocab_size <= _SENTINELS:
        raise InputError(f"vocab_size {vocab_size} leaves no room beside {_SENTINELS} sentinels: raise it")
    lines = (line for document in documents for line in document.splitlines() if line.strip())
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=written, model_type="unigram", vocab_size=vocab_size - _SENTINELS,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0, max_sentence_length=2**16, num_threads=2,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        reason = one_line(error).rpartition("] ")[2]
        raise InputError(f"no unigram model of {vocab_size - _SENTINELS} pieces can be made of the text: {reason}") from error
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spiece.model").write_bytes(written.getvalue())
        return load(folder)


def make_tokenizer(spec: str, documents: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that a config names: "bytes", or made from `documents` "chars" or, to a size, "bpe", "wordpiece" or
    "unigram"; or a path or id.

    Raises:
      InputError: no such tokenizer, or a `vocab_size` where it is not the caller's to choose (or missing where it is).
    """
    if spec in TRAINED:
        if vocab_size is None:
            raise InputError(f"the tokenizer {spec!r} is trained to a size: set vocab_size")
        return TRAINED[spec](documents, vocab_size)
    if vocab_size is not None:
        raise InputError(f"vocab_size {vocab_size} is for tokenizers that are trained, {spec!r} has its own: leave it None")
    if spec == "bytes":
        return byte_level()
    if spec == "chars":
        return char_level(documents)
    return load(spec)


TRAINED = {"bpe": train_bpe, "wordpiece": train_wordpiece, "unigram": train_unigram}


def _of_size(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    if tokenizer.vocab_size < vocab_size:
        raise InputError(
            f"the text has enough for {tokenizer.vocab_size} tokens, not for the {vocab_size} asked for: "
            f"set vocab_size to at most {tokenizer.vocab_size}, or use more text"
        )
    return tokenizer


def _finished(backend: tokenizers.Tokenizer) -> Tokenizer:
    backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend, eos=backend.token_to_id(END_OF_TEXT))
