"""What the small files beside a tokenizer say of it, and what each family takes for granted where they do not."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from flaxllm.data.json_file import brief, read_object
from flaxllm.data.library_errors import one_line
from flaxllm.data.sentencepiece_files import put_around
from flaxllm.data.tokenizers import CONFIG, END_OF_TEXT, ROLES, Tokenizer, Translation
from flaxllm.errors import InputError

_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_T5 = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
# The special tokens by role that transformers' class of each family has where its config is silent.
FAMILIES: dict[str, Mapping[str, str]] = {
    "bert": _BERT,
    "distilbert": _BERT,
    "roberta": {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"},
    "gpt2": {"bos": END_OF_TEXT, "eos": END_OF_TEXT, "unk": END_OF_TEXT},
    "qwen2": {"eos": END_OF_TEXT, "unk": END_OF_TEXT, "pad": END_OF_TEXT},
    "llama": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "t5": _T5,
    "marian": _T5,
}
_OF_CLASS = {
    "BertTokenizer": "bert",
    "DistilBertTokenizer": "distilbert",
    "RobertaTokenizer": "roberta",
    "GPT2Tokenizer": "gpt2",
    "Qwen2Tokenizer": "qwen2",
    "LlamaTokenizer": "llama",
    "CodeLlamaTokenizer": "llama",
    "T5Tokenizer": "t5",
    "MT5Tokenizer": "t5",
    "MarianTokenizer": "marian",
}
_OF_MODEL = {"mistral": "llama", "mt5": "t5", "qwen3": "qwen2"} | {family: family for family in FAMILIES}
_LEFT = ("LlamaTokenizer", "CodeLlamaTokenizer")  # the classes that fill up on the left where their config is silent
_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")

_NO_LIMIT = 10**9  # transformers writes 1e30 where a model has none
_MAX_DIGITS = 10  # of an id


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The files' content, checked as far as it is used."""

    folder: Path
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # tokenizer_config.json and special_tokens_map.json
    declared: str | None = None  # what `tokenizer_class`, or else config.json's `model_type`, says
    family: str | None = None  # the known family of that name
    added: Mapping[int, AddedToken] = dataclasses.field(default_factory=dict)  # tokens beside the vocabulary, by id
    chat_template: str | dict[str, str] | None = None

    def require(self, path: Path, families: Sequence[str], default: str | None = None) -> str:
        """The family that the files declare, or `default` (the first) where they declare none.

        Raises:
          InputError: it is none of those that have a file such as `path`.
        """
        family = (default or families[0]) if self.declared is None else self.family
        if family not in families:
            raise InputError(
                f"{path} is not read for a tokenizer of {self.declared or family!r}, as the config beside it says: expected "
                f"{' or '.join(families)}, or a tokenizer.json"
            )
        return family

    def flag(self, name: str, default: bool | None) -> bool | None:
        """A setting that is true or false; null is as if it were not there."""
        value = self.values.get(name)
        if not isinstance(value, bool | None):
            raise InputError(f"{self.folder / CONFIG} has {name} {brief(value)}: expected true or false")
        return default if value is None else value

    def tokens_by_role(self, default: Mapping[str, str | AddedToken]) -> dict[str, AddedToken | None]:
        """The special tokens that the files name; of `default` those of which they say nothing."""
        found = {role: self.values.get(f"{role}_token", default.get(role)) for role in ROLES}
        return {role: None if token is None else self._token(token, f"{role}_token") for role, token in found.items()}

    def more_special(self) -> list[AddedToken]:
        """Special tokens without a role."""
        found = self.values.get("additional_special_tokens") or self.values.get("extra_special_tokens") or []
        found = list(found.values()) if isinstance(found, dict) else found
        if not isinstance(found, list):
            raise InputError(f"{self.folder / CONFIG} has the special tokens {brief(found)}: expected a list of them")
        return [self._token(token, "additional_special_tokens") for token in found]

    @property
    def max_len(self) -> int | None:
        value = self.values.get("model_max_length")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 1):
            raise InputError(f"{self.folder / CONFIG} has model_max_length {brief(value)}: expected a number of tokens")
        return None if value is None or value > _NO_LIMIT else int(value)

    def has_token_types(self, family: str | None) -> bool:
        names = self.values.get("model_input_names")
        return family != "distilbert" and ("token_type_ids" in names if isinstance(names, list) else family == "bert")

    @property
    def padding_side(self) -> str:
        return self._side("padding_side", "left" if self.declared in _LEFT else "right")

    @property
    def truncation_side(self) -> str:
        return self._side("truncation_side", "right")

    def _side(self, name: str, default: str) -> str:
        value = self.values.get(name, default)
        if value not in ("left", "right"):
            raise InputError(f"{self.folder / CONFIG} has {name} {brief(value)}: expected 'left' or 'right'")
        return value

    def _token(self, value: Any, key: str) -> AddedToken:
        return _added_token(value, f"{self.folder / CONFIG} has {key} {brief(value)}", special=True)


def read_config(folder: Path) -> TokenizerConfig:
    """What the files of a folder say of its tokenizer; all of them may be missing.

    Raises:
      InputError: one is damaged, or has a setting that is not what it should be.
    """
    values, older = (_object_or_empty(folder / name) for name in (CONFIG, "special_tokens_map.json"))
    if "added_tokens_decoder" in values:
        path, by_id = folder / CONFIG, values["added_tokens_decoder"]
        if not isinstance(by_id, dict):
            raise InputError(f"{path} has added_tokens_decoder {brief(by_id)}: expected tokens by their ids")
        added = list(by_id.items())
    else:
        values |= older
        path = folder / "added_tokens.json"
        added = [(index, {"content": token, "normalized": True}) for token, index in _object_or_empty(path).items()]
    added = {_id(index, path): _added_token(token, f"{path} has the token {brief(token)}") for index, token in added}
    declared, family = _family(folder, values)
    return TokenizerConfig(folder, values, declared, family, dict(sorted(added.items())), _chat_template(folder, values))


def complete(
    backend: tokenizers.Tokenizer,
    config: TokenizerConfig,
    family: str | None,
    default: Mapping[str, str | AddedToken],
    translation: Translation | None = None,
    adds: tuple[bool, bool] = (False, False),
) -> Tokenizer:
    """The tokenizer that a backend is with what the files say of it.

    Args:
      default: the special tokens by role of which the files need not speak; those that the vocabulary lacks are left out.
      adds: whether the tokens for bos and eos are put around a text; a backend that has a template of its own keeps it.

    Raises:
      InputError: the files give a token another id than it has, or two the same.
    """
    vocab = backend.get_vocab(with_added_tokens=True)
    if len(set(vocab.values())) < len(vocab):
        raise InputError(f"{config.folder} has a tokenizer that gives two tokens the same id: fetch its files again")
    roles = config.tokens_by_role(default)
    known = {*vocab, *(token.content for token in config.added.values())}
    for role, token in roles.items():
        if token is not None and f"{role}_token" not in config.values and token.content not in known:
            roles[role] = None
    for each in [backend, *([translation.target] if translation else [])]:
        _add_tokens(each, config, [token for token in roles.values() if token is not None])
    ids = {role: None if token is None else backend.token_to_id(token.content) for role, token in roles.items()}
    if any(adds):
        put_around(backend, *(roles[role].content if add and roles[role] else None for role, add in zip(("bos", "eos"), adds)))
    return Tokenizer(
        backend,
        **ids,
        chat_template=config.chat_template,
        max_len=config.max_len,
        padding_side=config.padding_side,
        truncation_side=config.truncation_side,
        has_token_types=config.has_token_types(family),
        translation=translation,
    )


def _add_tokens(backend: tokenizers.Tokenizer, config: TokenizerConfig, special: list[AddedToken]) -> None:
    """Adds the tokens that the files name, as far as the backend lacks them, in the order of transformers."""
    special = special + config.more_special()
    by_text = {token.content: token for token in special}
    wanted = [by_text.get(token.content, token) for token in config.added.values()] + special
    there = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    there |= {token.content for token in backend.get_added_tokens_decoder().values() if token.content not in by_text}
    backend.add_tokens([token for token in wanted if token.content not in there])
    for index, token in config.added.items():
        found = backend.token_to_id(token.content)
        if found != index:
            raise InputError(
                f"{config.folder} gives the token {token.content!r} the id {index} in one file and {found} in another: fetch all "
                "of its files again"
            )


def _object_or_empty(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _class_name(values: Mapping[str, Any]) -> str | None:
    name = values.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else None


def _family(folder: Path, values: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The name that says which family it is, and the family, if it is a known one."""
    model = _object_or_empty(folder / "config.json")
    by_model = model.get("model_type") if isinstance(model.get("model_type"), str) else None
    name = _class_name(values) or _class_name(model)
    if name is None or name in _GENERIC:
        return by_model, _OF_MODEL.get(by_model)
    # DistilBERT's checkpoints name BERT's class, which has the token types that the model lacks.
    return name, "distilbert" if by_model == "distilbert" else _OF_CLASS.get(name)


def _id(index: int | str, path: Path) -> int:
    if not str(index).isdecimal() or len(str(index)) > _MAX_DIGITS:
        raise InputError(f"{path} gives a token the id {brief(index)}: expected a whole number")
    return int(index)


def _added_token(value: Any, where: str, special: bool = False) -> AddedToken:
    """A token as the files spell it: its text, or an object with that and how it is matched."""
    if isinstance(value, AddedToken):
        return value
    settings = {"content": value} if isinstance(value, str) else value
    if not isinstance(settings, dict) or not settings.get("content") or not _is_text(settings["content"]):
        raise InputError(f"{where}: expected a token's text, or an object with its 'content'")
    known = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {name: settings[name] for name in known if name in settings}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise InputError(f"{where}: expected {', '.join(known)} to be true or false")
    return AddedToken(settings["content"], **flags | ({"special": True} if special else {}))


def _chat_template(folder: Path, values: Mapping[str, Any]) -> str | dict[str, str] | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({one_line(error)}): expected a Jinja template in UTF-8") from error
    return as_templates(values.get("chat_template"), folder / CONFIG)


def as_templates(value: Any, path: Path) -> str | dict[str, str] | None:
    """A chat template, or a list of objects with the name and the template of each, as text or texts by name.

    Raises:
      InputError: `value`, which is in the file `path`, is neither.
    """
    if value is None or _is_text(value):
        return value
    named = value if isinstance(value, list) else [value]
    if not all(isinstance(item, dict) and _is_text(item.get("name")) and _is_text(item.get("template")) for item in named):
        raise InputError(f"{path} has the chat_template {brief(value)}: expected a string, or a list of name and template")
    return {item["name"]: item["template"] for item in named}


def _is_text(value: Any) -> bool:
    """Whether it is a string without half of a surrogate pair, which JSON can spell and no file can hold."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
