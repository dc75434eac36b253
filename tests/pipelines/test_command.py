"""`flaxllm pipeline`: in a pipe one JSON value a text, on a terminal lines to read."""

import io
import json

import jax
import pytest
from rich.console import Console

from data.frozen_tokenizers import load
from flaxllm import cli
from flaxllm.models import build
from flaxllm.pipelines import command, pipeline
from flaxllm.pretrained import save_pretrained
from pipelines.folders import t5_folder
from pipelines.pipeline_cases import SIZES

HEADS = ("sequence-classification", "token-classification", "question-answering", "masked-lm")
CONTEXT = "The dog is an object"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of checkpoints, each under the name of its head."""
    root, tokenizer = tmp_path_factory.mktemp("heads"), load("bert")
    for head in HEADS:
        sizes = SIZES | dict(vocab_size=tokenizer.vocab_size, max_len=32, labels=("entailment", "contradiction"), init_stddev=0.5)
        model = build("bert", sizes, head=head)
        save_pretrained(root / head, model, model.init(jax.random.PRNGKey(0)), tokenizer)
    return root


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["pipeline", *map(str, arguments)])
    return left.value.code or 0


def lines(capsys) -> list:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_text_gives_a_line_of_json(folder, capsys):
    place = folder / "sequence-classification"
    assert run("text-classification", place, "the dog", "--top_k=2") == 0
    assert lines(capsys) == [pipeline("text-classification", place)("the dog", top_k=2)]
    assert run("zero-shot-classification", place, "the dog", "--candidate_labels=a,b", "--multi_label") == 0
    assert lines(capsys) == [pipeline("zero-shot-classification", place)("the dog", ["a", "b"], multi_label=True)]
    assert run("fill-mask", folder / "masked-lm", "the [MASK]", "--targets=object,class") == 0
    assert lines(capsys) == [pipeline("fill-mask", folder / "masked-lm")("the [MASK]", targets=["object", "class"])]


def test_each_line_of_the_input_gives_one(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the dog\nno\na class"))
    monkeypatch.setattr(command, "_AT_A_TIME", 2)
    assert run("ner", folder / "token-classification", "-", "--ignore_labels=O", "--dtype=float32") == 0
    assert lines(capsys) == pipeline("ner", folder / "token-classification")(["the dog", "no"]) + pipeline(
        "ner", folder / "token-classification"
    )(["a class"])


def test_the_end_of_a_line_is_none_of_its_text(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the dog\r\nno \n"))
    assert run("zero-shot-classification", folder / "sequence-classification", "-", "--candidate_labels=a") == 0
    assert [result["sequence"] for result in lines(capsys)] == ["the dog", "no "]


def test_a_context_stands_in_the_texts_place(folder, capsys):
    place, question = folder / "question-answering", "What is it?"
    expected = pipeline("question-answering", place)(question=question, context=CONTEXT)
    for given in ([CONTEXT], [f"--context={CONTEXT}"]):
        assert run("question-answering", place, *given, f"--question={question}") == 0
        assert lines(capsys) == [expected]


def test_a_translation_on_the_command_line(tmp_path, capsys):
    assert run("translation", t5_folder(tmp_path), "Hello", "--max_new_tokens=4", "--num_beams=1") == 0
    assert lines(capsys) == [pipeline("translation", tmp_path)(["Hello"], max_new_tokens=4, num_beams=1)[0]]


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"label": "POSITIVE", "score": 0.99981}, ["POSITIVE  0.9998"]),
        ([{"entity": "B-PER", "score": 0.5, "index": 1, "word": "Wolf"}, {"a": "x\x1b[2Jy"}], ["B-PER  0.5000  1  Wolf", "x\ufffd[2Jy"]),
        ({"sequence": "s", "labels": ["a", "b"], "scores": [0.75, 0.25]}, ["a  0.7500", "b  0.2500"]),
        ([[[0.5, 1.5], [2.5, 3.5], [0.0, 0.0]]], ["3 tokens of 2 numbers each: in a pipe they are JSON"]),
        ([[{"token_str": "a"}], [{"token_str": "b"}]], ["a", "b"]),
        ([], [""]),
    ],
)
def test_a_terminal_gets_lines_to_read(result, shown, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(command, "lead_console", lambda: Console(file=out, force_terminal=True, color_system=None, width=20))
    monkeypatch.setattr(command, "pipeline", lambda *_, **__: lambda texts: [result])
    command.run_pipeline("ner", "nowhere", "text")
    assert out.getvalue().splitlines() == shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ner"], "expected TASK and PATH and [TEXT], got 'ner' (--help shows more)"),
        ([], "expected TASK and PATH and [TEXT], got nothing"),
        (["nre", "x", "y"], "there is no task 'nre': did you mean 'ner'?"),
        (["ner", "x", "y", "--agregation_strategy=max"], "did you mean '--aggregation_strategy'?"),
        (["fill-mask", "x", "y", "--top_k=many"], "flag --top_k=many cannot be: "),
        (["ner", "nowhere"], "ner needs a text: write it after the path, or - to read one a line from standard input"),
        (["question-answering", "nowhere", "--question=a"], "question-answering needs a text"),
    ],
)
def test_a_wrong_word_is_one_sentence(arguments, sentence, capsys):
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_help_says_what_it_takes(capsys):
    assert run("--help") == run("ner", "--help") == 0
    text = capsys.readouterr().out
    assert text.count("usage: flaxllm pipeline TASK PATH [TEXT]") == 2 and max(map(len, text.splitlines())) <= 88
