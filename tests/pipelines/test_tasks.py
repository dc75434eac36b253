"""Pipelines as they are asked for: tasks, options, lengths, and what they say of what cannot be."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from data.frozen_tokenizers import load
from flaxllm import from_pretrained, generate, load_tokenizer
from flaxllm.data import byte_level
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.pipelines import generation, pipeline
from flaxllm.pipelines.loaded import listed
from pipelines.folders import gpt_folder, t5_folder
from pipelines.pipeline_cases import SIZES

BERT = load("bert")
LABELS = ("O", "B-PER", "I-PER")
TOKENS = build("bert", SIZES | dict(vocab_size=BERT.vocab_size, max_len=16, labels=LABELS, init_stddev=0.5), head="token-classification")
PARAMS = TOKENS.init(jax.random.PRNGKey(0))
GERMAN = "translate English to German: "
SOURCE = "The house is wonderful."


def tokens_pipe(**options):
    return pipeline("ner", model=TOKENS, params=PARAMS, tokenizer=BERT, ignore_labels=[], **options)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A T5 directory whose config.json has what T5's own have for their tasks."""
    folder = t5_folder(tmp_path_factory.mktemp("t5"))
    config = json.loads((folder / "config.json").read_text())
    config["task_specific_params"] = {
        "translation_en_to_de": {"prefix": GERMAN, "max_length": 8, "num_beams": 2, "early_stopping": True},
        "summarization": {"prefix": "summarize: ", "max_length": 9, "min_length": 4, "num_beams": 2, "length_penalty": 2.0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    return gpt_folder(tmp_path_factory.mktemp("gpt"))


def generated(folder, text, new, **options):
    model, params = from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    return generate(model, params, tokenizer(text).tokens, new, tokenizer=tokenizer, **options).texts


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What `generate` is asked for, with the texts of its prompts and in place of what it would write."""
    calls = []

    def record(model, params, prompts, max_new_tokens, *, n, tokenizer, **options):
        texts = [tokenizer.decode(prompt, skip_special=True) for prompt in prompts]
        calls.append(dict(prompts=texts, new=max_new_tokens, n=n) | options)
        return SimpleNamespace(texts=[f"{text} {i}" for text in texts for i in range(n)])

    monkeypatch.setattr(generation, "generate", record)
    return calls


def test_a_translation_by_the_task_or_by_the_text(t5):
    beams = dict(num_beams=2, early_stopping=True)
    (expected,) = generated(t5, GERMAN + SOURCE, 7, **beams)  # max_length counts the token that a target begins with
    german = pipeline("translation_en_to_de", t5)
    assert german(SOURCE) == german(GERMAN + SOURCE) == [{"translation_text": expected}]
    assert pipeline("translation", t5, max_new_tokens=7)(GERMAN + SOURCE, **beams) == [{"translation_text": expected}]


def test_settings_are_those_given_or_the_tasks_or_those_of_transformers(t5, asked):
    translate, summarize = pipeline("translation", t5), pipeline("summarization", t5)
    assert translate("a") == [{"translation_text": "a 0"}] and translate(["a", "bc"])[1] == {"translation_text": "bc 0"}
    summarize("a")
    assert summarize(["b", "c"], prefix="tldr ", max_length=5, min_length=0, num_beams=1, num_return_sequences=2) == [
        [{"summary_text": f"tldr {text} {i}"} for i in range(2)] for text in "bc"
    ]
    translate("a", do_sample=True, top_p=0.5, seed=3)
    drawn = asked.pop()
    german = pipeline("translation_en_to_de", t5, num_beams=1)
    assert german("a") == german(GERMAN + "a") == [{"translation_text": f"{GERMAN}a 0"}]
    assert asked.pop() == asked.pop() and drawn.keys() == {"prompts", "new", "n", "top_p", "seeds"}
    assert asked == [
        dict(prompts=["a"], new=256, n=1, num_beams=4),
        dict(prompts=["a", "bc"], new=256, n=1, num_beams=4),
        dict(prompts=["summarize: a"], new=8, n=1, num_beams=2, length_penalty=2.0, min_new_tokens=3),
        dict(prompts=["tldr b", "tldr c"], new=4, n=2, min_new_tokens=0, temperature=0, seeds=asked[3]["seeds"]),
    ]
    assert len(set(asked[3]["seeds"])) == 4


def test_drawn_texts_depend_on_the_seed_and_their_place(tmp_path):
    folder = gpt_folder(tmp_path)
    write = pipeline("text-generation", folder, max_new_tokens=6, return_full_text=False, batch_size=1)
    first = write(["Once", "Once"], seed=1)
    assert first == write(["Once", "Once"], seed=1)
    assert first[0] != first[1] and first[:1] == write(["Once"], seed=1) != write(["Once"], seed=2)


def test_what_a_checkpoint_says_of_writing_is_heeded(tmp_path, asked):
    folder = gpt_folder(tmp_path)
    pipeline("text-generation", folder)("Once", seed=1)
    said = {"max_new_tokens": 5, "bad_words_ids": [[7], [8, 9]], "max_length": 20, "top_p": 0.9, "transformers_version": "5"}
    (folder / "generation_config.json").write_text(json.dumps(said))
    write = pipeline("text-generation", folder)
    write("Once", logit_bias={4: 1.0})
    write("Once", do_sample=False, max_new_tokens=3)
    for call in asked:
        call.pop("seeds")
    banned = {7: -np.inf}
    assert asked == [
        dict(prompts=["Once"], new=124, n=1, temperature=0.7, top_k=50),  # of 256: there are 128 positions
        dict(prompts=["Once"], new=5, n=1, temperature=0.7, top_k=50, top_p=0.9, logit_bias=banned | {4: 1.0}),
        dict(prompts=["Once"], new=3, n=1, temperature=0, logit_bias=banned),
    ]


def test_no_more_is_written_than_there_is_room_for(gpt, asked):
    write, prompts = pipeline("text-generation", gpt, do_sample=False, batch_size=2), ["x" * 120, "y", "z" * 120, "yy", "w", "v"]
    assert [text["generated_text"] for (text,) in write(prompts)] == [f"{prompt}{prompt} 0" for prompt in prompts]
    assert [(call["new"], len(call["prompts"])) for call in asked] == [(8, 2), (127, 2), (127, 1), (126, 1)]


def test_what_is_asked_for_must_have_room(gpt):
    with pytest.raises(InputError, match="a prompt of 120 tokens and 9 new ones are more than the 128 positions"):
        pipeline("text-generation", gpt)("x" * 120, max_new_tokens=9)


def test_texts_go_together_and_come_back_in_order():
    texts = ["the dog", "no", "the dog ran", "class", "a"]
    alone, together = [tokens_pipe()(text) for text in texts], tokens_pipe(batch_size=2)(texts)
    for one, other in zip(alone, together, strict=True):
        assert [entity["word"] for entity in one] == [entity["word"] for entity in other]
        np.testing.assert_allclose([e["score"] for e in one], [e["score"] for e in other], atol=1e-5)
    assert tokens_pipe()([]) == []


def test_parameters_that_are_given_stay_valid():
    tokens_pipe()
    assert not any(x.is_deleted() for x in jax.tree.leaves(PARAMS))


def test_a_text_that_is_too_long_is_refused_or_cut_aloud(caplog):
    words = "the dog is an object and the class is not one of them"
    tokens = BERT(words).tokens.shape[1]
    assert tokens > 16
    with pytest.raises(InputError, match=f"text 1 has {tokens} tokens, and this model takes 16: shorten it, or give truncation=True"):
        tokens_pipe()(["the", words])
    cut = tokens_pipe(truncation=True)(words)
    end = cut[-1]["end"]
    assert [entity["index"] for entity in cut] == list(range(1, 15))
    assert f"text 0 has {tokens} tokens, and this model takes 16: cut off is {words[end:]!r}" in caplog.text
    assert [e["word"] for e in tokens_pipe()(words[:end])] == [e["word"] for e in cut]


def test_a_tokenizer_may_ask_for_less_than_the_model_takes():
    pipe = pipeline("ner", model=TOKENS, params=PARAMS, tokenizer=dataclasses.replace(BERT, max_len=8), ignore_labels=[])
    text = "the the the class is an object"
    assert len(pipe(text, truncation=True)) == 6 < len(pipe(text))


def test_a_text_of_which_nothing_is_left_is_told_whole(caplog):
    pipe = pipeline("zero-shot-classification", **classes(("entailment", "no")))
    pipe("the object", ["the"], hypothesis_template="the " * 12 + "{}", truncation=True)  # with 3 special tokens all there may be
    assert "cut off is 'the object'" in caplog.text


def test_what_is_no_text_is_refused():
    with pytest.raises(InputError, match="text 1 is 3: expected a string"):
        listed(["a", 3])
    with pytest.raises(InputError, match="text 0 is {'text': 'a'}: expected a string"):
        listed({"text": "a"})


def test_what_is_cut_at_the_beginning_is_told_too(caplog):
    words = "the dog is an object and the class is not one of them"
    left = dataclasses.replace(BERT, truncation_side="left")
    cut = pipeline("ner", model=TOKENS, params=PARAMS, tokenizer=left, ignore_labels=[], truncation=True)(words)
    assert cut[-1]["end"] == len(words) and f"cut off is {words[: cut[0]['start']]!r}" in caplog.text


def test_features_of_an_encoder_decoder_are_its_encoders(t5):
    model, params = from_pretrained(t5)
    tokens = load_tokenizer(t5)("Hello").tokens
    expected = model.apply(params, tokens, tokens[:, :1]).encoded
    features = pipeline("feature-extraction", t5)("Hello", return_tensors=True)
    assert features.shape == (1, 5, 16) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)


MODEL = dict(model=TOKENS, params=PARAMS, tokenizer=BERT)


@pytest.mark.parametrize(
    ("task", "given", "sentence"),
    [
        ("ners", MODEL, "there is no task 'ners': did you mean 'ner'?"),
        ("question-answring", MODEL, "there is no task 'question-answring': did you mean 'question-answering'?"),
        ("ner", MODEL | dict(agregation_strategy="max"), "ner has no option 'agregation_strategy': did you mean 'aggregation_strategy'?"),
        ("ner", MODEL | dict(batch_size=0), "batch_size is 0: expected 1 or more"),
        ("ner", {}, "needs a checkpoint's path, or else model=, params= and tokenizer="),
        ("ner", dict(model=TOKENS), "needs a checkpoint's path, or else model=, params= and tokenizer="),
        ("ner", dict(path="x") | MODEL, "needs a checkpoint's path, or else model=, params= and tokenizer="),
        ("ner", dict(model=TOKENS, params=PARAMS), "got a model without a tokenizer: give tokenizer= too"),
        ("fill-mask", MODEL, "this is a bert model with the head 'token-classification', which can do feature-extraction, token"),
        ("translation_en_to_de", MODEL, "for translation_en_to_de name one with the head 'seq2seq-lm'"),
    ],
)
def test_a_pipeline_that_cannot_be_is_one_sentence(task, given, sentence):
    with pytest.raises(InputError) as caught:
        pipeline(task, **given)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_with_another_head_is_refused_before_it_is_read(gpt, monkeypatch):
    monkeypatch.setattr("flaxllm.pipelines.tasks.from_pretrained", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(InputError, match="is a gpt model with the head 'causal-lm', which can do feature-extraction, text-generation"):
        pipeline("sentiment-analysis", gpt)


def classes(labels=("no", "yes")):
    model = build("bert", SIZES | dict(vocab_size=BERT.vocab_size, max_len=16, labels=labels), head="sequence-classification")
    return dict(model=model, params=model.init(jax.random.PRNGKey(0)), tokenizer=BERT)


def masked(tokenizer=BERT):
    model = build("bert", SIZES | dict(vocab_size=500, max_len=16))
    return dict(model=model, params=model.init(jax.random.PRNGKey(0)), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("task", "given", "inputs", "options", "sentence"),
    [
        ("ner", MODEL, (), {}, "ner: missing a required argument: 'inputs': give it a text or a list of texts"),
        ("ner", MODEL, (3,), {}, "ner got 3: expected a text, or a list of texts"),
        ("ner", MODEL, ("a",), dict(stride=4), "stride reads a text in windows, .* choose an aggregation_strategy too"),
        ("ner", MODEL, ("a",), dict(aggregation_strategy="frist"), "aggregation_strategy cannot be 'frist': did you mean 'first'?"),
        ("text-classification", classes(), ({"txt": "a"},), {}, 'text 0 is {\'txt\': \'a\'}: expected a string, or {"text": ..., "text_pair"'),
        ("text-classification", classes(), ("a",), dict(function_to_apply="softmx"), "function_to_apply cannot be 'softmx': did you mean 's"),
        ("text-classification", classes(), ("a",), dict(top_k=-1), "top_k is -1: expected a number of labels, or None for all"),
        ("zero-shot-classification", classes(), ("a", ["b"]), {}, r"has the labels \['no', 'yes'\], and none begins with 'entail'"),
        ("zero-shot-classification", classes(), ("a",), {}, "has no labels to choose from: give candidate_labels="),
        ("zero-shot-classification", classes(), ("a", "b"), dict(hypothesis_template="so"), "hypothesis_template is 'so': expected {} in it"),
        ("fill-mask", masked(), ("no such",), {}, r"text 0 is 'no such': write \[MASK\] in the place of the missing word"),
        ("fill-mask", masked(), ("[MASK]",), dict(top_k=0), "top_k is 0: expected 1 or more"),
        ("fill-mask", masked(), ("[MASK]",), dict(targets=[]), "targets is empty"),
        ("fill-mask", masked(), ("[MASK]",), dict(targets=[""]), "the target '' has no token: leave it out"),
        ("fill-mask", masked(byte_level()), ("[MASK]",), {}, "this tokenizer has no mask token"),
    ],
)
def test_a_call_that_cannot_be_is_one_sentence(task, given, inputs, options, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        pipeline(task, **given)(*inputs, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "options", "sentence"),
    [
        ([[]], {}, r"prompt 0 is \[\]: expected a text, or a list of messages with role and content"),
        ([{"role": "assistant", "content": "a"}], {}, "chat 0 ends with the assistant's own message"),
        ([{"role": "user", "content": "a"}], {}, "chat template"),
        ("a", dict(do_sample=False, top_p=0.9), "do_sample=False takes the likeliest tokens, and top_p is for drawing"),
        ("a", dict(do_sample=True, num_beams=2), "num_beams=2 draws nothing: leave out do_sample, or the beams"),
        ("a", dict(temperature=0.5, num_beams=2), "num_beams=2 draws nothing: leave out temperature, or the beams"),
        ("a", dict(length_penalty=2.0), "generate has no option 'length_penalty'"),
        ("a", dict(max_length=20), "text-generation has no option 'max_length'"),
    ],
)
def test_a_prompt_that_cannot_be_is_one_sentence(gpt, inputs, options, sentence):
    with pytest.raises(InputError, match=sentence):
        pipeline("text-generation", gpt)(inputs, **options)


def test_a_target_that_is_no_token_is_replaced_aloud(caplog):
    best = pipeline("fill-mask", **masked())("the [MASK]", targets="objective")
    assert "the target 'objective' is no token of this model: taken is 'object'" in caplog.text
    assert [(item["token_str"], item["token"]) for item in best] == [("object", BERT.backend.token_to_id("object"))]


def test_tokens_that_only_the_model_has_are_no_answers():
    pipe = pipeline("fill-mask", **masked(load("bert_cased")))
    assert len(pipe("[MASK]", top_k=600)) == min(500, load("bert_cased").vocab_size)
