"""Marian's tokenizer (Junczys-Dowmunt et al. 2018), as the OPUS-MT models have it: two SentencePiece models, one vocabulary."""

from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models

from flaxllm.data.json_file import read_object
from flaxllm.data.library_errors import blaming
from flaxllm.data.sentencepiece_files import NORMAL, keep_as_text, put_around, read_model, with_spaces
from flaxllm.data.tokenizer_config import FAMILIES, TokenizerConfig, complete
from flaxllm.data.tokenizers import Tokenizer, Translation
from flaxllm.errors import InputError

# Set before a piece of the other language, so that no text has it: a noncharacter of Unicode. Decoding takes it off.
_OTHER = "\ufdd3"


def load_marian(files: list[Path], config: TokenizerConfig) -> Tokenizer:
    """The tokenizer in source.spm, target.spm and vocab.json, which gives the pieces of both their ids.

    A text is cut by the model of its language. Of its pieces those that vocab.json lacks become <unk>, and what is no
    piece of the model has its id in vocab.json where it is the other model's. A language code such as ">>fra<<" is a token.

    Raises:
      InputError: a file is damaged, or is not what it should be beside the others.
    """
    source, target, vocab_file = files
    config.require(vocab_file, ("marian",))
    if config.flag("separate_vocabs", False):
        raise InputError(f"{config.folder} has a vocabulary for each language (separate_vocabs): only a common one is read")
    vocab = read_object(vocab_file)
    if not all(isinstance(index, int) for index in vocab.values()) or sorted(vocab.values()) != list(range(len(vocab))):
        raise InputError(f"{vocab_file} does not number its {len(vocab)} tokens 0, 1, 2 and so on: fetch it again")
    special = {role: token for role, token in config.tokens_by_role(FAMILIES["marian"]).items() if token is not None}
    for role in FAMILIES["marian"]:
        if role not in special or special[role].content not in vocab:
            raise InputError(f"{vocab_file} lacks the token for {role} ({special.get(role)}): expected Marian's vocabulary")
    names = [token.content for token in special.values()]
    tokens = sorted(vocab, key=vocab.get)
    backends = [_backend(path, tokens, names, vocab[special["unk"].content]) for path in (source, target)]
    for backend in backends:
        backend.add_special_tokens(list(special.values()))
        backend.add_tokens([AddedToken(token, normalized=False) for token in tokens if _is_code(token)])
        put_around(backend, None, special["eos"].content)
    contents = {path.name: path.read_bytes() for path in files}
    return complete(backends[0], config, "marian", special, Translation(backends[1], vocab, contents))


def _backend(path: Path, tokens: list[str], special: list[str], unk: int) -> tokenizers.Tokenizer:
    """The backend that cuts a text by one model, with the vocabulary's ids, and higher ones for pieces that it lacks."""
    model = read_model(path)
    if not model.is_unigram:
        raise InputError(f"{path} is a BPE model: expected a unigram model, as Marian's are")
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind == NORMAL}
    known = set(tokens)
    kept = {*scores, *special, *filter(_is_code, tokens)}
    entries = [(token if token in kept else _OTHER + token, scores.get(token, 0.0)) for token in tokens]
    entries += [(piece, score) for piece, score in scores.items() if piece not in known]
    with blaming(f"{path} is a SentencePiece model that cannot be used"):
        backend = tokenizers.Tokenizer(models.Unigram(entries, unk, byte_fallback=False))
        with_spaces(backend, model)
    keep_as_text(backend, special)
    backend.decoder = decoders.Sequence([decoders.Replace(_OTHER, ""), backend.decoder])
    return backend


def _is_code(token: str) -> bool:
    return token.startswith(">>") and token.endswith("<<")
