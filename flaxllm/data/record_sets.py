"""Record sets made of the interpreter's own library, for a first try of each task that needs no download.

They follow from the text of the library alone, so that each machine with one version of Python has the same.
"""

import ast
import hashlib
import io
import itertools
import json
import keyword
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from flaxllm.data.record_files import Found
from flaxllm.errors import InputError

PARTS = {"train": 3600, "eval": 400}  # with the records that each has at most

_Record = dict[str, Any]

# Modules of one file each, with much documentation; those that a version of Python lacks are passed over.
_MODULES = (
    "argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "contextlib", "csv", "difflib", "dis", "doctest",
    "enum", "fractions", "ftplib", "functools", "gettext", "heapq", "imaplib", "inspect", "ipaddress", "locale", "mailbox",
    "mimetypes", "ntpath", "optparse", "os", "pickletools", "platform", "poplib", "posixpath", "pprint", "pydoc", "random",
    "sched", "selectors", "shelve", "shutil", "smtplib", "socket", "socketserver", "statistics", "string", "subprocess",
    "tarfile", "tempfile", "textwrap", "threading", "timeit", "trace", "traceback", "turtle", "types", "typing", "uuid",
    "warnings", "weakref", "webbrowser",
)  # fmt: skip

_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.) ")
_SELF = re.compile(r"^(self|cls)(, /)?(, |$)")
_ENTITIES = {tokenize.STRING: "STRING", tokenize.NUMBER: "NUMBER"}
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


class _Function(NamedTuple):
    name: str  # "textwrap.TextWrapper.wrap"
    arguments: str  # as they are written, without self; may be empty
    sentence: str  # the first of its documentation
    rest: str  # what follows it there; may be empty

    @property
    def described(self) -> str:
        return f"{self.name}({self.arguments}): {self.sentence}"


def read_set(source: str) -> Iterator[Found]:
    """The records of `NAME:PART`: a name in `RECORD_SETS`, and "train" or "eval", which have no line, statement, number or
    function in common.

    Raises:
      InputError: the part is missing or is neither.
    """
    name, _, part = source.partition(":")
    if part not in PARTS:
        raise InputError(f"source {source!r} names no part: expected {' or '.join(f'{name}:{part}' for part in PARTS)}")
    for index, record in enumerate(list(_hashed(RECORD_SETS[name](part)).values())[: PARTS[part]]):
        yield f"{source}[{index}]", partial(dict, record)


def _hashed(values: Iterable) -> dict[str, Any]:
    """The distinct values by their hashes, in the order of these."""
    return dict(sorted((hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest(), value) for value in values))


def _in_part(part: str, values: Iterable) -> list:
    """Those of the distinct values that belong to a part, one in ten to "eval", in the order of their hashes."""
    return [value for key, value in _hashed(values).items() if (int(key[-8:], 16) % 10 == 0) == (part == "eval")]


def _lines(part: str) -> Iterator[_Record]:
    """Lines of programs and what they are, as many of each kind."""
    kinds: dict[str, str] = {}
    for _, text in itertools.islice(_library(_folder()), 20):
        documented = _docstring_lines(text)
        for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
            kind = "docstring" if number in documented else "comment" if line.startswith("#") else "code"
            if 20 <= len(line) <= 100:
                kinds.setdefault(line, kind)
    for label in ("code", "comment", "docstring"):
        lines = _in_part(part, (line for line, kind in kinds.items() if kind == label))
        yield from ({"text": line, "label": label} for line in lines[: PARTS[part] // 3])


def _docstring_lines(text: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, *_DEFINITIONS)) and ast.get_docstring(node, clean=False) is not None:
            lines.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def _tagged_statements(part: str) -> Iterator[_Record]:
    """Statements in words, with dotted names, strings, numbers and keywords as entities; the words of a string are apart."""
    statements = itertools.chain.from_iterable(_statements(text) for _, text in _library(_folder()))
    records = map(_tagged, itertools.islice(statements, 2 * sum(PARTS.values())))
    yield from _in_part(part, (record for record in records if 5 <= len(record["words"]) <= 40))


def _statements(text: str) -> Iterator[list[tokenize.TokenInfo]]:
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.COMMENT]
    ends = [index for index, token in enumerate(tokens) if token.type == tokenize.NEWLINE]
    for start, end in zip([0, *ends], ends):
        yield tokens[start:end]


def _tagged(statement: list[tokenize.TokenInfo]) -> _Record:
    words, tags = [], []
    for token in statement:
        goes_on = tags[-1:] in (["B-NAME"], ["I-NAME"]) and "." in (token.string, words[-1])
        kind = _ENTITIES.get(token.type)
        if keyword.iskeyword(token.string):
            kind = "KEYWORD"
        elif goes_on or token.type == tokenize.NAME:
            kind = "NAME"
        for index, word in enumerate(token.string.split()):
            words.append(word)
            tags.append(f"{'I' if goes_on or index else 'B'}-{kind}" if kind else "O")
    return {"words": words, "tags": tags}


def _questions(part: str) -> Iterator[_Record]:
    """Of each two functions, what one does, what the other takes, and what a third one does, which is not said."""
    functions = _functions(part)
    for number, (one, other) in enumerate(itertools.pairwise(functions)):
        absent = functions[number - 2]
        context = f"{one.described} {other.described}"
        takes = len(f"{one.described} {other.name}(")
        asked = {
            f"What does {one.name} do?": (one.sentence, len(one.described) - len(one.sentence)),
            f"Which arguments does {other.name} take?": (other.arguments, takes),
            f"What does {absent.name} do?": ("", 0),
        }
        for question, (answer, start) in asked.items():
            answers = {"text": [answer], "answer_start": [start]} if answer else {"text": [], "answer_start": []}
            if answer or absent.name in question:
                yield {"id": f"{number}: {question}", "question": question, "context": context, "answers": answers}


def _summaries(part: str) -> Iterator[_Record]:
    """A function with the rest of its documentation, and the first sentence of it."""
    for function in _functions(part):
        if function.rest:
            yield {"source": f"{function.name}({function.arguments}): {function.rest}", "target": function.sentence}


def _numbers(part: str) -> Iterator[_Record]:
    """Numbers in words and in digits."""
    return ({"source": _in_words(number), "target": str(number)} for number in _in_part(part, range(10_000)))


def _in_words(number: int) -> str:
    if number < 20:
        return _UNITS[number]
    for size, name, joint in ((1000, " thousand", " "), (100, " hundred", " and ")):
        if number >= size:
            more = number % size
            return _in_words(number // size) + name + (joint + _in_words(more) if more else "")
    return _TENS[number // 10] + (f"-{_UNITS[number % 10]}" if number % 10 else "")


def _chats(part: str) -> Iterator[_Record]:
    """Two questions about a function, with their answers."""
    for function in _functions(part):
        turns = (
            ("user", f"What does {function.name} do?"),
            ("assistant", function.sentence),
            ("user", "Which arguments does it take?"),
            ("assistant", function.arguments or "None."),
        )
        yield {"messages": [{"role": role, "content": content} for role, content in turns]}


def _preferences(part: str) -> Iterator[_Record]:
    """A question about a function, its answer, and that of another function."""
    for one, other in itertools.pairwise(_functions(part)):
        yield {"prompt": f"What does {one.name} do?", "chosen": one.sentence, "rejected": other.sentence}


def _folder() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _library(folder: Path) -> Iterator[tuple[str, str]]:
    """The modules' names and texts."""
    for name in _MODULES:
        path = folder / f"{name}.py"
        if path.exists():
            yield name, path.read_text(encoding="utf-8")


def _functions(part: str) -> list[_Function]:
    return _in_part(part, _documented_in(_folder()))


@cache
def _documented_in(folder: Path) -> tuple[_Function, ...]:
    """The public functions and methods whose documentation begins with a sentence of its own."""
    found: dict[str, _Function] = {}
    for module, text in _library(folder):
        for function in _documented(ast.parse(text), module):
            found.setdefault(function.sentence, function)
    return tuple(found.values())


def _documented(tree: ast.Module | ast.ClassDef, name: str) -> Iterator[_Function]:
    for node in tree.body:
        if not isinstance(node, _DEFINITIONS) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from _documented(node, f"{name}.{node.name}")
            continue
        paragraph, _, others = (ast.get_docstring(node) or "").partition("\n\n")
        sentence, *more = _SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)
        if 20 <= len(sentence) <= 160 and sentence[0].isupper():
            arguments = _SELF.sub("", ast.unparse(node.args))
            yield _Function(f"{name}.{node.name}", arguments, sentence, " ".join([*more, *others.split()]))


RECORD_SETS: dict[str, Callable[[str], Iterator[_Record]]] = {
    "python-lines": _lines,
    "python-tokens": _tagged_statements,
    "python-questions": _questions,
    "python-functions": _summaries,
    "python-numbers": _numbers,
    "python-chat": _chats,
    "python-preferences": _preferences,
}
