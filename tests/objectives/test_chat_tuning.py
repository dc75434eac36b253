"""Supervised fine-tuning: which tokens are an answer's, by template and in text; the loss in float64, packed and not."""

import dataclasses

import numpy as np
import pytest
from scipy.special import log_softmax

from data.frozen_tokenizers import load
from flaxllm.errors import InputError
from flaxllm.objectives import causal_lm, sft
from flaxllm.objectives.answers import read_answer, read_chat
from objectives.batches import apply, batches, check_gradient, summed, tiny

CHAT = [
    {"role": "user", "content": "Is it cold?"},
    {"role": "assistant", "content": "Yes, it is."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "No."},
]
# As the templates of most checkpoints: they mark nothing.
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def plain():
    return dataclasses.replace(load("smollm"), chat_template=PLAIN)


@pytest.fixture(scope="module")
def llama():
    return tiny("llama", "causal-lm", "llama")


def said(tokenizer, read) -> str:
    """The answer's tokens as text, and a bar wherever others stand between them."""
    parts = np.split(read.tokens, np.flatnonzero(np.diff(read.answer)) + 1)
    kept = np.split(read.answer, np.flatnonzero(np.diff(read.answer)) + 1)
    return "|".join(tokenizer.decode(part) for part, keep in zip(parts, kept) if keep[0])


def test_the_assistants_words_are_those_that_the_template_marks():
    tokenizer = load("smollm")
    assert said(tokenizer, read_chat(tokenizer, {"messages": CHAT}, 0)) == "Yes, it is.<|im_end|>|No.<|im_end|>"


def test_without_marks_they_are_what_follows_each_prompt(plain):
    read = read_chat(plain, {"messages": CHAT}, 0)
    assert said(plain, read) == "Yes, it is.<|im_end|>\n|No.<|im_end|>\n"
    assert plain.decode(read.tokens) == plain.chat(CHAT, add_generation_prompt=False)
    first = read_chat(plain, {"messages": [CHAT[1], CHAT[0]]}, 0)
    assert said(plain, first) == "Yes, it is.<|im_end|>\n"
    spelt = read_chat(plain, {"messages": [CHAT[0], {"role": "assistant", "content": "<|im_start|>assistant\n"}]}, 0)
    assert said(plain, spelt) == "<|im_start|>assistant\n<|im_end|>\n"


def test_a_token_of_both_the_prompt_and_the_answer_is_the_answers(plain):
    """Where the prompt ends with " t" and the answer begins with "he", there is one token " the"."""
    template = PLAIN.replace("assistant\n", "assistant: t").replace("{{ m['role'] }}\n", "{{ m['role'] }}: t")
    tokenizer = dataclasses.replace(plain, chat_template=template)
    read = read_chat(tokenizer, {"messages": [CHAT[0], {"role": "assistant", "content": "he house"}]}, 0)
    assert said(tokenizer, read) == " the house<|im_end|>\n"


def test_a_template_that_writes_a_turn_otherwise_later_is_refused(plain):
    rewriting = PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else 'cut' }}")
    tokenizer = dataclasses.replace(plain, chat_template=rewriting)
    message = "record 7: the chat template writes what comes before message 1 otherwise once that is there"
    with pytest.raises(InputError, match=message):
        read_chat(tokenizer, {"messages": CHAT}, 7)
    assert said(tokenizer, read_answer(tokenizer, {"prompt": [], "completion": CHAT[1:2]}, 0, "completion")) == "Yes, it is.<|im_end|>\n"


@pytest.mark.parametrize(("name", "answer", "expected"), [
    ("smollm", " warm", " warm<|im_end|>"),
    ("smollm", ", warm", ", warm<|im_end|>"),
    ("smollm", "", "<|im_end|>"),
    ("gpt2", " warm", " warm"),
    ("llama", " warm", "warm</s>"),
    ("bert", " warm", "warm [SEP]"),
])  # fmt: skip
def test_a_completion_is_what_comes_after_the_prompt(name, answer, expected):
    tokenizer = dataclasses.replace(load(name), **({"eos": 3} if name == "bert" else {"eos": None} if name == "gpt2" else {}))
    read = read_answer(tokenizer, {"prompt": "It is", "completion": answer}, 0, "completion")
    assert said(tokenizer, read) == expected
    text = tokenizer("It is" + answer).tokens[0]
    assert read.tokens[: len(text)].tolist() == text.tolist() and len(read.tokens) - len(text) == (name in ("smollm", "llama"))


def test_a_prompt_and_an_answer_in_messages(plain):
    for tokenizer in (plain, load("smollm")):
        read = read_answer(tokenizer, {"prompt": CHAT[:3], "completion": CHAT[3:]}, 0, "completion")
        assert said(tokenizer, read) == "No.<|im_end|>\n"


RECORDS = [
    {"prompt": "Is it cold?", "completion": " Yes, it is."},
    {"prompt": "And", "completion": " now it is not"},
    {"prompt": "Who built the house on the hill in", "completion": " May"},
    {"prompt": "", "completion": "A house"},
]


def test_the_loss_is_the_formula_in_float64_packed_and_not(llama):
    model, params, tokenizer = llama
    objective = sft(model, tokenizer, 48)
    items = objective.items(RECORDS)
    losses, counts = [], []
    for item in items:
        hidden = apply(model, params, {"tokens": item.tokens[None]}).hidden
        logits = np.asarray(model.unembed(params, hidden)[0], np.float64)
        log_p = log_softmax(logits, -1)[np.arange(len(item.tokens) - 1), item.tokens[1:]]
        losses.append(-log_p[item.answer[1:]].sum())
        counts.append(item.answer[1:].sum())
    packed = batches(objective, items, 2)
    assert np.max(packed[0]["segments"]) > 1
    for order in (packed, batches(objective, items[::-1], 2), batches(objective._replace(packs=False), items, 2)):
        assert summed(objective, params, order)["loss"] == pytest.approx((sum(losses), sum(counts)), rel=1e-5)
    check_gradient(objective, params, packed[0])
    assert not objective.tells_all


def test_with_all_the_prompts_are_learned_too(llama):
    model, params, tokenizer = llama
    everything, answers, causal = sft(model, tokenizer, 48, loss_on="all"), sft(model, tokenizer, 48), causal_lm(model, tokenizer, 48)
    items = everything.items(RECORDS)
    rng = np.random.default_rng(0)
    for item, other in zip(items, answers.items(RECORDS)):
        made, expected = everything.example(item, rng), causal.example(other.tokens, rng)
        assert {name: array.tolist() for name, array in made.items()} == {name: array.tolist() for name, array in expected.items()}
    chat = sft(tiny("llama", "causal-lm", "smollm")[0], load("smollm"), 48, loss_on="all").items([{"messages": CHAT[:1]}])
    assert chat[0].answer.all()  # though nothing in it is the assistant's


def test_what_is_beyond_max_len_is_cut_off(llama):
    model, _, tokenizer = llama
    whole, cut = (sft(model, tokenizer, max_len).items(RECORDS[:1])[0] for max_len in (48, 9))
    assert cut.tokens.tolist() == whole.tokens[:10].tolist() and cut.answer.tolist() == whole.answer[:10].tolist()
    assert len(sft(model, tokenizer, 9).example(cut, np.random.default_rng(0))["tokens"]) == 9


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "record 1 has no field 'prompt'"),
        ({"prompt": "a"}, "record 1 has no field 'completion'"),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "record 1 has text and messages as its 'prompt' and 'completion'"),
        ({"messages": "Hi"}, "record 1 has 'Hi' as its 'messages': expected a list of messages"),
        ({"messages": ["Hi"]}, "record 1 has 'Hi' among its 'messages': expected a role and its content"),
        ({"messages": [{"content": "Hi"}]}, "record 1: message 0 is .*: expected a role"),
        ({"messages": CHAT[:1]}, "record 1 has no answer in the first 40 of .* tokens: raise max_len or drop it"),
        ({"prompt": "", "completion": ""}, "record 1 has no answer in the first 40 of 1 tokens"),
        ({"prompt": "Is it? " * 50, "completion": "Yes"}, "record 1 has no answer in the first 40 of .* tokens"),
    ],
)
def test_a_record_that_cannot_be_is_named(plain, record, message):
    model = tiny("llama", "causal-lm", "smollm")[0]
    with pytest.raises(InputError, match=message):
        sft(model, plain, 40).items([{"messages": CHAT}, record])


def test_settings_that_cannot_be_are_refused(llama):
    with pytest.raises(InputError, match="there is no loss_on 'completion': did you mean 'completions'"):
        sft(llama[0], None, 40, loss_on="completion")
    with pytest.raises(InputError, match="sft needs a model with the head 'causal-lm', and this one has 'token-classification'"):
        sft(tiny("llama", "token-classification", "llama")[0], None, 40)
