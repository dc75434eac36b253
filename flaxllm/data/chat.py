"""Chat templates: Jinja programs that come with a checkpoint, so a stranger's, and are run in jinja2's sandbox only."""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import tokenizers
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flaxllm.data.encoding import EncodedChat
from flaxllm.data.json_file import brief
from flaxllm.data.library_errors import one_line
from flaxllm.errors import InputError, did_you_mean

# Noncharacters of Unicode, which no text has: where a message is cut, and where the assistant's words start and end.
_CUT, _START, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"([{_CUT}{_START}{_END}])")


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A chat as text."""

    parts: list[str]  # the text, cut in the middle of each special token that a message spells
    assistant: list[tuple[int, int]]  # the characters, start and end, that the template marks as the assistant's words

    @property
    def text(self) -> str:
        return "".join(self.parts)


def choose_template(templates: str | Mapping[str, str] | None, name: str | None, tools: Sequence | None) -> str:
    """The template of a name; without one "tool_use" where there are tools and it exists, else "default".

    Raises:
      InputError: there is none.
    """
    if templates is None:
        raise InputError("the tokenizer has no chat template: put a chat_template.jinja beside its files")
    if isinstance(templates, str):
        if name is not None:
            raise InputError(f"there is no chat template {name!r}: the tokenizer has one, without a name")
        return templates
    if name is None:
        name = "tool_use" if tools and "tool_use" in templates else "default"
    if name not in templates:
        raise InputError(f"there is no chat template {name!r}: {did_you_mean(name, templates)}")
    return templates[name]


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    special: Iterable[str] = (),
) -> Rendered:
    """The text that a template makes of messages, each with at least its "role", of tools (JSON schemas), and of variables.

    Where a message or a tool spells one of the `special` tokens `parts` is cut, so that it need not be read as one.

    Raises:
      InputError: a message has no role or is no plain data; the template is not Jinja, or fails, or refuses the messages.
    """
    messages = [
        {key: value for key, value in message.items() if value is not None} for message in _plain(messages, "the messages")
    ]
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise InputError(f"message {number} is {brief(message)}: expected a role, such as 'user', and its content")
    special = sorted(special, key=len, reverse=True)
    said = {"messages": _with_cuts(messages, special), "tools": _with_cuts(_plain(tools, "the tools"), special)}
    variables = _plain(variables, "the template's variables")
    try:
        text = _compiled(template).render(**variables | said)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"the chat template is not Jinja (line {error.lineno}: {one_line(error)})") from error
    except Exception as error:  # a program can fail in any way
        raise InputError(f"the chat template fails on these messages: {one_line(error)}") from error
    return _without_marks(text)


def encode_rendered(backend: tokenizers.Tokenizer, rendered: Rendered) -> EncodedChat:
    """The ids of a chat by a backend that reads special tokens, each part by itself."""
    ids, assistant, start = [], [], 0
    for part in rendered.parts:
        encoding = backend.encode(part, add_special_tokens=False)
        ids += encoding.ids
        for first, last in encoding.offsets:
            assistant.append(any(start + first < stop and start + last > begin for begin, stop in rendered.assistant))
        start += len(part)
    return EncodedChat(np.array(ids, np.int32), np.array(assistant, bool))


def _plain(value: Any, what: str) -> Any:
    """A copy that is only dicts, lists, strings, numbers and None: an object would lend the template its methods."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} are no plain data ({one_line(error)}): expected dicts, lists, strings and numbers") from error
    if _MARKS.search(text):
        raise InputError(f"{what} have one of the noncharacters U+FDD0 to U+FDD2, which stand for no text: remove it")
    return json.loads(text)


def _with_cuts(value: Any, special: Sequence[str]) -> Any:
    if isinstance(value, str):
        for token in special:
            value = value.replace(token, token[:1] + _CUT + token[1:])
        return value
    if isinstance(value, list):
        return [_with_cuts(item, special) for item in value]
    if isinstance(value, dict):
        return {_with_cuts(key, special): _with_cuts(item, special) for key, item in value.items()}
    return value


def _without_marks(text: str) -> Rendered:
    starts, spans, parts, length = [], [], [""], 0
    for piece in _MARKS.split(text):
        if piece == _CUT:
            parts.append("")
        elif piece == _START:
            starts.append(length)
        elif piece == _END and starts:
            spans.append((starts.pop(), length))
        elif piece != _END:
            parts[-1] += piece
            length += len(piece)
    return Rendered(parts, sorted(spans))


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    # What transformers offers to templates, beside Jinja's own.
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now, "namespace": _Namespace}
    return environment.from_string(template)


class _Generation(Extension):
    """Marks the text of a `{% generation %}` block, by which a template says which words are the assistant's."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller) -> str:
        return _START + caller() + _END


class _Namespace(jinja2.utils.Namespace):
    """Jinja's, but without names that Python gives a meaning to, which the sandbox keeps from all other objects."""

    def __init__(*args, **kwargs):  # noqa: B902  (a template may call a variable "self")
        jinja2.utils.Namespace.__init__(*args, **kwargs)
        for name in dict(*args[1:], **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if str(name).startswith("_"):
        raise jinja2.sandbox.SecurityError(f"the name {name!r} is not allowed in a namespace")


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Jinja's own would escape the signs of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
