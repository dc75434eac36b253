"""Text from a checkpoint's folder, as the command line writes it."""

import dataclasses
import io
import re

import jax
import pytest

from flaxllm import from_pretrained, generate, load_tokenizer
from flaxllm.errors import InputError
from flaxllm.pipelines import prompt_tokens, write
from pipelines.folders import gpt_folder, t5_folder


@pytest.mark.parametrize("make", [gpt_folder, t5_folder])
def test_what_is_written_is_what_generate_gives(make, tmp_path):
    folder = make(tmp_path)
    out, notes = io.StringIO(), io.StringIO()
    text = write(folder, "Once upon", max_new_tokens=12, seed=3, out=out, notes=notes, top_p=0.95)
    model, params = from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    expected = generate(
        model, params, tokenizer("Once upon").tokens, 12, key=jax.random.PRNGKey(3), tokenizer=tokenizer, top_p=0.95
    )
    assert text == expected.texts[0]
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    assert out.getvalue() == shown + "\n"
    assert re.fullmatch(r"\d+ tokens, the first after \d+\.\d s, then \d+\.\d tokens/s\n", notes.getvalue())


def test_beams_write_at_the_end(tmp_path):
    out, notes = io.StringIO(), io.StringIO()
    text = write(t5_folder(tmp_path), "Once", max_new_tokens=6, num_beams=2, out=out, notes=notes)
    assert out.getvalue().count("\n") >= 1 and len(text) > 0
    assert re.fullmatch(r"\d tokens in \d+\.\d s\n", notes.getvalue())


def test_an_empty_prompt_begins_with_the_models_own_token(tmp_path):
    model, _ = from_pretrained(gpt_folder(tmp_path))
    tokenizer = load_tokenizer(tmp_path)
    assert prompt_tokens(model, tokenizer, "") == [256]
    bare = dataclasses.replace(model, config=dataclasses.replace(model.config, bos_token=None, eos_token=None))
    with pytest.raises(InputError, match="the prompt is empty, and this model has no token to begin a text with"):
        prompt_tokens(bare, tokenizer, "")


def test_a_chat_needs_a_template(tmp_path):
    with pytest.raises(InputError, match="chat template"):
        write(gpt_folder(tmp_path), "Hello", chat=True, out=io.StringIO())
