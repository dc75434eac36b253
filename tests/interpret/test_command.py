"""`flaxllm attention` and `flaxllm lens`: what their files hold is what the model does."""

import base64
import io
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.frozen_tokenizers import load
from flaxllm import cli, from_pretrained, generate, interpret, load_tokenizer
from flaxllm.errors import InputError
from flaxllm.interpret import command, pages
from flaxllm.interpret.command import draw_attention, draw_lens
from flaxllm.models import build
from flaxllm.pretrained import save_pretrained
from interpret.chromium import chromium
from pipelines.folders import gpt_folder, t5_folder

TEXT = "a 猫 sat"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints by name; that of bert has no head."""
    root, tokenizer = tmp_path_factory.mktemp("checkpoints"), load("bert")
    sizes = dict(vocab_size=tokenizer.vocab_size, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32, max_len=16)
    for name, head in (("bert", None), ("masked", "masked-lm")):
        model = build("bert", sizes | dict(init_stddev=0.5), head=head)
        save_pretrained(root / name, model, model.init(jax.random.PRNGKey(0)), tokenizer)
    return {"gpt": gpt_folder(root / "gpt"), "t5": t5_folder(root / "t5"), "bert": root / "bert", "masked": root / "masked"}


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([*map(str, arguments)])
    return left.value.code or 0


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text("utf-8"))[1])


def unpacked(part: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(part["weights"]), "<u2").reshape(part["shape"]) / 65535


def texts_of(pieces: list[dict]) -> list[str]:
    return [piece["text"] for piece in pieces]


def hexadecimal(text: str) -> list[str]:
    """The tokens of a tokenizer of bytes."""
    return [c if c.isascii() else f"{byte:02X}" for c in text for byte in c.encode()]


def test_the_maps_of_a_text(folders, tmp_path, capsys):
    page, still = tmp_path / "map.html", tmp_path / "map.png"
    assert run("attention", folders["gpt"], TEXT, "-o", page, f"--png={still}") == 0
    assert re.fullmatch(rf"wrote {page} \(0\.\d MB\) and {still} \(0\.\d MB\)\n", capsys.readouterr().out)
    assert still.read_bytes().startswith(b"\x89PNG")
    data = data_of(page)
    assert (data["model"], data["texts"]) == ("gpt", {"Text": TEXT})
    (part,) = data["parts"]
    assert part["name"] == "decoder"
    assert texts_of(part["queries"]) == texts_of(part["keys"]) == hexadecimal(TEXT)
    model, params = from_pretrained(folders["gpt"])
    tokens = load_tokenizer(folders["gpt"]).encode(TEXT)[None]
    weights = np.asarray(interpret.attention_maps(model, params, tokens)["decoder"])[:, 0]
    np.testing.assert_allclose(unpacked(part), weights, atol=1e-5)
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1))).sum(-1).mean(-1)
    np.testing.assert_allclose(part["summaries"]["entropy"], entropy, atol=1e-4)
    repeated = part["summaries"]["induction"]
    assert np.shape(repeated) == entropy.shape and None not in np.ravel(repeated).tolist()


def test_what_has_no_meaning_has_no_number(folders, tmp_path):
    draw_attention(folders["gpt"], "a", output=tmp_path / "map.html")
    (part,) = data_of(tmp_path / "map.html")["parts"]
    assert part["summaries"]["previous_token"] == part["summaries"]["induction"] == [[None, None], [None, None]]


def test_a_target_is_what_the_model_writes(folders, tmp_path):
    page = tmp_path / "map.html"
    draw_attention(folders["t5"], TEXT, output=page)
    data = data_of(page)
    model, params = from_pretrained(folders["t5"])
    tokenizer = load_tokenizer(folders["t5"])
    source = tokenizer(TEXT).tokens
    written = generate(model, params, source, 64, temperature=0, tokenizer=tokenizer)
    assert data["texts"] == {"Source": TEXT, "Target, as written": written.texts[0]}
    row = [token for token in written.rows()[0] if token != model.config.eos_token]
    read = np.array([[model.config.decoder_start_token, *row]])
    expected = interpret.attention_maps(model, params, source, read)
    assert [part["name"] for part in data["parts"]] == list(expected) == ["encoder", "decoder", "cross"]
    for part in data["parts"]:
        np.testing.assert_allclose(unpacked(part), np.asarray(expected[part["name"]])[:, 0], atol=1e-5)
        assert [len(part["queries"]), len(part["keys"])] == part["shape"][2:]


def test_a_target_that_is_given_begins_as_the_decoder_does(folders, tmp_path):
    draw_attention(folders["t5"], TEXT, target="das", output=tmp_path / "map.html")
    data = data_of(tmp_path / "map.html")
    assert data["texts"] == {"Source": TEXT, "Target": "das"}
    cross = data["parts"][2]
    assert texts_of(cross["queries"])[1:] == ["d", "a", "s"] and len(cross["queries"]) == 4
    assert texts_of(cross["keys"])[: len(hexadecimal(TEXT))] == hexadecimal(TEXT)
    assert cross["summaries"] == {}


def check_output(data: dict, logits: np.ndarray) -> None:
    """The last depth is the model's own output, by its formula in float64."""
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    output = data["depths"][-1]
    best = np.argsort(-probabilities, axis=-1)[:, :5]
    assert output["tokens"] == best.tolist()
    np.testing.assert_allclose(output["probabilities"], np.take_along_axis(probabilities, best, -1), atol=2e-5)
    np.testing.assert_allclose(output["entropy"], -(probabilities * np.log(probabilities)).sum(-1), atol=1e-4)


def test_the_lens_of_a_text(folders, tmp_path, capsys):
    page, still = tmp_path / "lens.html", tmp_path / "lens.png"
    assert run("lens", folders["gpt"], TEXT, f"--output={page}", f"--png={still}") == 0
    assert capsys.readouterr().out.startswith(f"wrote {page} (0.")
    assert still.read_bytes().startswith(b"\x89PNG")
    data = data_of(page)
    tokens = load_tokenizer(folders["gpt"]).encode(TEXT)
    assert texts_of(data["read"]) == hexadecimal(TEXT)
    assert [depth["name"] for depth in data["depths"]] == ["embedding", "layer 0", "output"]
    assert data["actual"] == [*tokens[1:].tolist(), -1] and data["what"] == "comes next"
    model, params = from_pretrained(folders["gpt"])
    check_output(data, np.asarray(model.unembed(params, model.apply(params, tokens[None]).hidden))[0])
    shown = {str(token) for depth in data["depths"] for best in depth["tokens"] for token in best} | set(map(str, tokens[1:]))
    assert set(data["vocabulary"]) == shown
    assert data["vocabulary"][str(tokens[2])] == {"text": "E7", "whole": "E7", "joined": False}


@pytest.mark.parametrize("draw", [draw_attention, draw_lens])
def test_parameters_of_16_bits_are_drawn(folders, tmp_path, draw):
    draw(folders["gpt"], TEXT, output=tmp_path / "page.html", png=tmp_path / "still.png", dtype="bfloat16")
    assert (tmp_path / "still.png").read_bytes().startswith(b"\x89PNG")


def test_the_lens_of_a_target_ends_with_what_ends_it(folders, tmp_path):
    tokenizer = load("t5")
    model = build(
        "t5",
        dict(vocab_size=tokenizer.vocab_size, num_layers=1, num_heads=2, head_dim=8, d_model=16, d_mlp=32, init_factor=2.0),
    )
    params = model.init(jax.random.PRNGKey(0))
    save_pretrained(tmp_path / "t5", model, params, tokenizer)
    draw_lens(tmp_path / "t5", "the house", target="is", output=tmp_path / "lens.html")
    data = data_of(tmp_path / "lens.html")
    target = tokenizer.encode_target("is").tokens[0].tolist()
    assert data["actual"] == target and target[-1] == tokenizer.eos
    read = jnp.array([[0, *target[:-1]]])
    assert len(data["read"]) == read.size
    hidden = model.apply(params, tokenizer("the house").tokens, read).hidden
    check_output(data, np.asarray(model.unembed(params, hidden))[0])


def test_a_masked_model_says_what_stands_there(folders, tmp_path):
    draw_lens(folders["masked"], "the [MASK]", output=tmp_path / "lens.html")
    data = data_of(tmp_path / "lens.html")
    assert texts_of(data["read"]) == ["[CLS]", "the", "[MASK]", "[SEP]"]
    assert data["actual"] == load("bert")("the [MASK]", allow_special=True).tokens[0].tolist()
    assert data["what"] == "stands there"


@pytest.mark.parametrize(
    ("draw", "name", "options", "sentence"),
    [
        (draw_attention, "gpt", dict(text=""), "the text is empty: give it a word at least"),
        (draw_lens, "masked", dict(text=""), "the text is empty"),
        (draw_attention, "bert", dict(text="a " * 15), "the text has 17 tokens, and this model takes 16: shorten it"),
        (draw_attention, "gpt", dict(text="a", target="b"), "this gpt model reads one text: leave the target out"),
        (draw_lens, "bert", dict(text="a"), "no logits over a vocabulary"),
        (draw_attention, "gpt", dict(text="a", output="nowhere/map.html"), "nowhere/map.html cannot be written"),
        (draw_lens, "gpt", dict(text="a", png="nowhere/map.png"), "nowhere/map.png cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(folders, tmp_path, monkeypatch, draw, name, options, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence) as raised:
        draw(folders[name], **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("draw", "function", "size", "fits"), [(draw_attention, "attention_maps", 4000, 19), (draw_lens, "logit_lens", 30_000, 20)]
)
def test_a_page_that_is_too_large_is_refused_before_it_is_computed(folders, tmp_path, monkeypatch, draw, function, size, fits):
    computed = []

    def counted(model, params, tokens):
        computed.append(not isinstance(tokens, jax.core.Tracer))
        return getattr(interpret, function)(model, params, tokens)

    monkeypatch.setattr(pages.page, "MOST_BYTES", size)
    monkeypatch.setattr(command, function, counted)
    draw(folders["gpt"], "a" * fits, output=tmp_path / "page.html")
    assert sum(computed) == 1
    with pytest.raises(InputError, match=f"{2 * fits} tokens make a page .* shorten the text to about {fits} tokens"):
        draw(folders["gpt"], "a" * 2 * fits, output=tmp_path / "page.html")
    assert sum(computed) == 1


def test_a_missing_checkpoint_is_a_sentence_on_the_command_line(tmp_path, capsys):
    assert run("attention", tmp_path / "none", TEXT) == 2
    assert run("lens", tmp_path / "none", TEXT) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(error.startswith("error: ") and "none" in error for error in errors)


def test_a_text_comes_through_a_pipe(folders, tmp_path, monkeypatch):
    for name in ("attention", "lens"):
        monkeypatch.setattr("sys.stdin", io.StringIO("a cat"))
        assert run(name, folders["gpt"], "-", "-o", tmp_path / "page.html") == 0
        assert data_of(tmp_path / "page.html")["texts"] == {"Text": "a cat"}


def test_a_drawn_page_shows_these_numbers(folders, tmp_path):
    draw_attention(folders["t5"], TEXT, target="das", output=tmp_path / "map.html")
    draw_lens(folders["t5"], TEXT, target="das", output=tmp_path / "lens.html")
    parts = {part["name"]: part for part in data_of(tmp_path / "map.html")["parts"]}
    with chromium(tmp_path / "profile") as page:
        page.open(tmp_path / "map.html", "#cross-1-1")
        page.hover("document.querySelectorAll('#queries button')[2]")
        shown = page.value("[...document.querySelectorAll('#keys .number')].map((number) => Number(number.textContent))")
        np.testing.assert_allclose(shown, unpacked(parts["cross"])[1, 1, 2], atol=0.00051)
        assert not [event for event in page.events if event["method"] == "Runtime.exceptionThrown"]
        page.open(tmp_path / "lens.html")
        assert page.value("document.querySelectorAll('tbody button').length") == 3 * 4
        assert not [event for event in page.events if event["method"] == "Runtime.exceptionThrown"]
