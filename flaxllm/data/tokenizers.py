"""Text to token ids and back: each tokenizer is one of the `tokenizers` library, and `tokenizer.json` its form on disk.

Text is only ever text: a document that spells "<|endoftext|>" gets the ids of these characters, never the special one.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from flaxllm.data.encoding import Encoded, EncodedChat, Fit, check_texts, encode_rows
from flaxllm.data.json_file import brief
from flaxllm.data.library_errors import explained
from flaxllm.errors import InputError

END_OF_TEXT = "<|endoftext|>"
EACH_CHARACTER = r"[\s\S]"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

CONFIG = "tokenizer_config.json"
# What else may say something of a tokenizer, and would contradict the config that is written.
OTHER_CONFIGS = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")

_TOKENIZER = "tokenizer.json"
_ENDS = (END_OF_TEXT, "<|end_of_text|>")  # GPT-2's and Qwen's, and Llama 3's: their eos may be the end of a turn


@dataclasses.dataclass(frozen=True, eq=False)
class Translation:
    """What a tokenizer has beside its backend where source and target are cut into pieces by two models (Marian)."""

    target: tokenizers.Tokenizer
    vocab: Mapping[str, int]  # the ids of the pieces of both
    files: Mapping[str, bytes]  # as they were published, by name: no tokenizer.json can say all of it

    def ids_of(self, encoding: tokenizers.Encoding, unk: int) -> list[int]:
        """The ids in the vocabulary: a backend has higher ones for pieces that it lacks, and does not know all it has."""
        found = (self.vocab.get(token, unk) if index == unk else index for token, index in zip(encoding.tokens, encoding.ids))
        return [index if index < len(self.vocab) else unk for index in found]


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of the `tokenizers` library, and what the rest of the house asks of it.

    `bos` to `mask` are the ids of the special tokens, None where the tokenizer has no such token.
    """

    backend: tokenizers.Tokenizer = dataclasses.field(repr=False)
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    cls: int | None = None
    mask: int | None = None
    chat_template: str | Mapping[str, str] | None = dataclasses.field(default=None, repr=False)  # or several, by name
    max_len: int | None = None  # the most tokens that its model takes
    padding_side: str = "right"
    truncation_side: str = "right"
    has_token_types: bool = False
    translation: Translation | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        self.backend.encode_special_tokens = True

    def __reduce__(self):  # the library pickles all but `encode_special_tokens`
        return Tokenizer, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def _target(self) -> tokenizers.Tokenizer:
        return self.translation.target if self.translation else self.backend

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        if self.translation:
            return len(self.translation.vocab)
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def end_of_text(self) -> int | None:
        """The id that ends a document: that of "<|endoftext|>", or of "<|end_of_text|>", else `eos`."""
        found = (self.backend.token_to_id(token) for token in _ENDS)
        return next((index for index in found if index is not None), self.eos)

    @cached_property
    def special_tokens(self) -> list[str]:
        """The special tokens, as text, in the order of their ids."""
        added = sorted(self.backend.get_added_tokens_decoder().items())
        return [token.content for _, token in added if token.special]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of `tokenizer.json`, and of what else decides which ids a text or its end has, in hex."""
        facts = [self.backend.to_str()]
        if self.translation:
            facts.append(self.translation.target.to_str())
        if self.end_of_text != self.backend.token_to_id(END_OF_TEXT):
            facts.append(str(self.end_of_text))
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()

    @cached_property
    def may_cut_at_newlines(self) -> bool:
        """Whether a text cut before any newline that follows a non-space gives the same ids as the whole.

        It is so where each byte or character is a token, and for GPT-2's pattern: no alternative of it has a space
        after its first character, or looks beyond a non-space, so such a place always ends a match, and there is no
        looking behind. Of any other tokenizer it is not known, and False.
        """
        spec = json.loads(self.backend.to_str())
        words = spec["pre_tokenizer"] or {"type": None}
        if words["type"] == "ByteLevel":
            known = not words["add_prefix_space"] and (words["use_regex"] or not spec["model"].get("merges"))
        else:
            known = words["type"] == "Split" and words["pattern"] == {"Regex": EACH_CHARACTER}
        return known and spec["normalizer"] is None and all(token["special"] for token in spec["added_tokens"])

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 `[tokens]`; no special token is added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, on all cores.

        Raises:
          InputError: a text is no string, or has what this vocabulary cannot say.
        """
        check_texts(texts)
        encode = self.backend.encode_batch if self.translation else self.backend.encode_batch_fast  # this keeps no tokens
        with explained(self.backend, texts):
            encodings = encode(texts, add_special_tokens=False)
        return [np.array(self._ids(encoding), np.int32) for encoding in encodings]

    def __call__(
        self,
        texts: str | Sequence,
        pairs: str | Sequence | None = None,
        *,
        max_len: int | None = None,
        truncation: str = "longest_first",
        stride: int | None = None,
        padding: str | None = "longest",
        padding_side: str | None = None,
        add_special_tokens: bool = True,
        allow_special: bool = False,
        split_words: bool = False,
        as_target: bool = False,
    ) -> Encoded:
        """Texts, or pairs of texts, as rows for a model, whose `inputs` are the arguments that its `apply` takes.

        Args:
          texts: a text (a batch of one) or several; with `split_words` each is a sequence of its words.
          pairs: the second text of each pair.
          max_len: the most tokens of a row, special ones counted; what is beyond is cut off. None: nothing is.
          truncation: which text of a pair is cut: "longest_first", "only_first" or "only_second".
          stride: where given, what is cut off makes rows of its own, each of which repeats so many tokens of the one
            before; `row` says which text a row is of.
          padding: rows are filled up to the "longest" or to "max_len"; None: they must be of one length. They are filled
            with `pad`, or with `end_of_text` or 0 where there is no such token; `valid` is False there.
          padding_side: "right" or "left"; None: the tokenizer's own.
          add_special_tokens: whether tokens such as [CLS] and [SEP] are put around the texts.
          allow_special: whether special tokens that the texts spell, such as "[MASK]" or "<extra_id_0>", are read as
            such. By default they are only text, so that no text of a stranger can end a document or feign a turn.
          split_words: whether the texts come in words (for the labels of words).
          as_target: whether they are what a model is to write: some tokenizers cut it differently (Marian).

        Raises:
          InputError: an option is not of these; a text is no string, or has what the vocabulary cannot say; a text
            cannot be cut as asked.
        """
        pad = next((index for index in (self.pad, self.end_of_text) if index is not None), 0)
        side = self.padding_side if padding_side is None else padding_side
        return encode_rows(
            self._encoder(as_target, allow_special),
            self._target if as_target else self.backend,
            texts,
            pairs,
            Fit(max_len, truncation, self.truncation_side, stride, padding, side, pad),
            add_special_tokens=add_special_tokens,
            split_words=split_words,
            has_token_types=self.has_token_types,
            ids_of=self._ids,
        )

    def encode_target(self, texts: str | Sequence, **options: Any) -> Encoded:
        """As a call with `as_target`."""
        return self(texts, as_target=True, **options)

    def _encoder(self, as_target: bool, allow_special: bool) -> tokenizers.Tokenizer:
        """A copy of a backend that puts nothing around a text, and reads special tokens or not."""
        backend = self._target if as_target else self.backend
        key = (id(backend), allow_special)
        if key not in self._encoders:
            copy = tokenizers.Tokenizer.from_str(backend.to_str())
            copy.post_processor = None  # what it does to places of tokens must not be done twice
            copy.encode_special_tokens = not allow_special
            self._encoders[key] = copy
        return self._encoders[key]

    @cached_property
    def _encoders(self) -> dict[tuple[int, bool], tokenizers.Tokenizer]:
        return {}

    def _ids(self, encoding: tokenizers.Encoding) -> list[int]:
        return self.translation.ids_of(encoding, self.unk) if self.translation else encoding.ids

    def decode(self, ids: Iterable, skip_special: bool = False) -> str:
        """The text of the ids (a list, or an array of any kind), special tokens spelt out or left out; bytes that are not UTF-8
        become U+FFFD.

        Raises:
          InputError: an id is not of this vocabulary.
        """
        return self.decode_batch([ids], skip_special)[0]

    def decode_batch(self, rows: Iterable, skip_special: bool = False) -> list[str]:
        """The text of each row of ids, as `decode` gives it.

        Raises:
          InputError: an id is not of this vocabulary, or a row holds anything but ids.
        """
        checked = []
        for row in rows:
            ids = _as_ids(row)
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
            if len(wrong):
                raise InputError(f"there is no token {wrong[0]}: the vocabulary has ids 0 to {self.vocab_size - 1}")
            checked.append(ids.tolist())
        return self._target.decode_batch(checked, skip_special_tokens=skip_special)

    def num_bytes(self, ids: np.ndarray) -> int:
        """The length in UTF-8 of the text that the ids spell.

        Where a text is its tokens' bytes one after another it is exact, though a character be cut in two. Of
        any other tokenizer it is the length of the decoded text.
        """
        if self._token_bytes is None:
            return len(self.decode(ids).encode())
        return int(self._token_bytes[ids].sum())

    @cached_property
    def _token_bytes(self) -> np.ndarray | None:
        """The number of bytes that each id stands for, or None where it depends on the ids around it."""
        decoder = json.loads(self.backend.to_str())["decoder"] or {"type": None}
        measures = {"ByteLevel": len, "Fuse": lambda token: len(token.encode())}
        if decoder["type"] not in measures:
            return None
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, index in self.backend.get_vocab(with_added_tokens=True).items():
            sizes[index] = measures[decoder["type"]](token)
        return sizes

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a chat, as the tokenizer's chat template writes it.

        Args:
          messages: each with its "role" and, in most templates, its "content".
          add_generation_prompt: whether the text ends with what the assistant's answer follows.
          tools: JSON schemas of the functions that the model may call.
          template: the name of the template, where the tokenizer has several.
          variables: what else the template knows, as its model's page says.

        Raises:
          InputError: there is no such template; a message has no role; the template fails, or refuses the messages.
        """
        return self._rendered(messages, add_generation_prompt, tools, template, variables, ()).text

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        allow_special: bool = False,
        **variables: Any,
    ) -> EncodedChat:
        """The ids of a chat, and which of them the template marks as the assistant's words.

        The special tokens are those of the template: a message that spells one is only text, unless `allow_special`.

        Raises:
          InputError: as `chat`.
        """
        from flaxllm.data import chat

        special = () if allow_special else self.special_tokens
        rendered = self._rendered(messages, add_generation_prompt, tools, template, variables, special)
        return chat.encode_rendered(self._encoder(False, True), rendered)

    def _rendered(self, messages, add_generation_prompt, tools, template, variables, special: Sequence[str]):
        from flaxllm.data import chat

        program = chat.choose_template(self.chat_template, template, tools)
        given = {f"{role}_token": token for role, token in self._tokens_by_role().items() if token is not None}
        given |= {"add_generation_prompt": add_generation_prompt, "documents": None} | variables
        return chat.render(program, messages, tools, given, special)

    def save(self, path: str | Path) -> None:
        """Writes what `load_tokenizer` makes the same tokenizer of, and transformers' AutoTokenizer one of the same ids.

        In a folder it is `tokenizer.json` and `tokenizer_config.json` (for Marian, its own files); older files there that
        say something else of a tokenizer are removed. Where `path` ends in ".json" it is the first of the two only.

        Raises:
          InputError: a Marian tokenizer cannot be one file; the files cannot be written.
        """
        path = Path(path)
        is_file = path.suffix == ".json"
        if is_file and self.translation:
            raise InputError(f"{path} cannot hold a Marian tokenizer, which is several files: name a folder")
        folder, name = (path.parent, path.name) if is_file else (path, _TOKENIZER)
        files = dict(self.translation.files) if self.translation else {name: self.backend.to_str(pretty=True).encode()}
        older = []
        if not is_file:
            files[CONFIG] = json.dumps(self._config(), indent=2, ensure_ascii=False).encode()
            older = [name for name in (_TOKENIZER, *OTHER_CONFIGS) if name not in files]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                _write(folder / name, content)
            for name in older:
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): check the folder and its disk") from error

    def _config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        names = ["input_ids", *(["token_type_ids"] if self.has_token_types else []), "attention_mask"]
        config = {
            "tokenizer_class": "MarianTokenizer" if self.translation else "PreTrainedTokenizerFast",
            **{f"{role}_token": token for role, token in self._tokens_by_role().items()},
            "model_input_names": names,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "clean_up_tokenization_spaces": False,
        }
        if self.max_len is not None:
            config["model_max_length"] = self.max_len
        if isinstance(self.chat_template, str):
            config["chat_template"] = self.chat_template
        elif self.chat_template is not None:
            named = self.chat_template.items()
            config["chat_template"] = [{"name": name, "template": template} for name, template in named]
        return config

    def _tokens_by_role(self) -> dict[str, str | None]:
        ids = {role: getattr(self, role) for role in ROLES}
        return {role: None if index is None else self.backend.id_to_token(index) for role, index in ids.items()}


def _as_ids(row: Iterable) -> np.ndarray:
    try:
        ids = np.asarray(row)
    except ValueError:  # rows of several lengths
        ids = None
    if ids is None or ids.ndim != 1 or not (ids.size == 0 or np.issubdtype(ids.dtype, np.integer)):
        shown = brief(row if ids is None else ids.tolist())
        raise InputError(f"{shown} is no row of ids: expected whole numbers (decode_batch takes several rows)")
    return ids.astype(np.int64)


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)
