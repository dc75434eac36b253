import importlib
import json
import sys
from functools import cache

import jax
import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from data.frozen_tokenizers import load  # noqa: E402
from flaxllm import generate, save_pretrained  # noqa: E402
from flaxllm.adapters import lm_eval as adapter  # noqa: E402
from flaxllm.errors import InputError  # noqa: E402
from flaxllm.models import build  # noqa: E402
from flaxllm.objectives.perplexity import perplexity  # noqa: E402

LENGTH, NEW = 36, 12  # of which a bucket has more
SIZES = dict(vocab_size=504, max_len=LENGTH, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32)
MODEL = build("gpt", SIZES | dict(init_stddev=0.4, eos_token=500))
BOS, EOS = 501, 502  # the tokenizer's
TEXT = "The house is wonderful, and the garden behind it is larger than a street; nobody has ever seen its end."
PAIRS = [
    ("The house is", " wonderful"),
    ("The house is ", "wonderful"),  # the space goes to the continuation
    ("", "A word"),
    ("", "<|im_start|>user"),  # which is what an empty context is, so all but it is asked for
    ("<|im_start|>user\nHow", " are you<|im_end|>"),
    (TEXT, " None."),
    ("One", TEXT),
]


@cache
def params() -> dict:
    return MODEL.init(jax.random.PRNGKey(3))


@cache
def tokenizer():
    return load("qwen2")


def harness_model(**options):
    return adapter.HarnessModel(model=MODEL, params=params(), tokenizer=tokenizer(), batch_size=2, **options)


@pytest.fixture(scope="module")
def lm():
    return harness_model()


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def ids(text: str) -> list[int]:
    return tokenizer()(text, allow_special=True).tokens[0].tolist()


@jax.jit
def _logits(params, tokens):
    return MODEL.unembed(params, MODEL.apply(params, tokens).hidden)


def scores(tokens: list[int], last: int) -> tuple[float, bool]:
    """By a softmax in float64 over what the model says of at most LENGTH tokens and one more, the last ones scored."""
    tokens = tokens[-LENGTH - 1 :]
    padded = np.zeros((1, LENGTH), np.int32)
    padded[0, : len(tokens) - 1] = tokens[:-1]
    logits = np.asarray(_logits(params(), padded), np.float64)[0, : len(tokens) - 1][-last:]
    targets = tokens[1:][-last:]
    shifted = logits - logits.max(1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    chosen = logprobs[np.arange(len(targets)), targets]
    return chosen.sum(), bool((logits.argmax(1) == targets).all())


def test_log_likelihoods_are_those_of_a_softmax_over_whole_sequences(lm):
    expected = [scores(ids("The house is wonderful"), len(ids("The house is wonderful")) - len(ids("The house is")))] * 2
    expected += [scores([BOS, *ids("A word")], len(ids("A word"))), scores([BOS, *ids("user")], len(ids("user")))]
    for context, continuation in PAIRS[4:]:
        whole = ids(context + continuation)
        expected.append(scores(whole, len(whole) - len(ids(context))))
    assert len(ids(TEXT)) > LENGTH and ids("<|im_start|>") == [BOS]
    answers = lm.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    np.testing.assert_allclose([x for x, _ in answers], [x for x, _ in expected], rtol=1e-5)
    assert [best for _, best in answers] == [best for _, best in expected]


def test_what_the_model_writes_by_itself_is_greedy_and_nothing_else_is(lm):
    prompt = ids("The house is")
    written = generate(MODEL, params(), [prompt], NEW, temperature=0, stop_tokens=()).rows()[0][:4]
    other = [written[0], (written[1] + 1) % 500, *written[2:]]
    answers = lm._loglikelihood_tokens([(None, prompt, written), (None, prompt, other)], disable_tqdm=True)
    assert [best for _, best in answers] == [True, False]
    assert [best for _, best in answers] == [scores(prompt + each, 4)[1] for each in (written, other)]


def test_a_text_rolls_by_in_windows_of_which_each_token_is_predicted_once(lm):
    tokens = ids(TEXT * 2)[: 2 * LENGTH + 5]
    whole, text = tokenizer().decode(tokens[: 2 * LENGTH]), tokenizer().decode(tokens)
    assert (ids(whole), ids(text)) == (tokens[: 2 * LENGTH], tokens)
    answers = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (whole,), (text,), ("",)), disable_tqdm=True)
    first = -2 * LENGTH * np.log(perplexity(MODEL, params(), np.array([BOS, *ids(whole)]), LENGTH))
    np.testing.assert_allclose(answers, [first, first + scores(tokens, 5)[0], 0], rtol=1e-5)


def test_texts_are_those_of_generate(lm):
    def written(context: list[int], stop: str = "\n\n\n") -> str:
        options = dict(temperature=0.0, stop_tokens=[500, EOS], tokenizer=tokenizer(), stop=stop)
        return generate(MODEL, params(), [context], NEW, **options).texts[0]

    plain = written(ids("Hello"))
    stop = plain[4:6]
    cases = [
        ("Hello", dict(until=[stop, ""], max_gen_toks=NEW), plain[: plain.find(stop)]),
        ("Hello", dict(until=[], max_new_tokens=NEW, do_sample=False, temperature=0.9), plain),
        ("", dict(max_tokens=NEW), written([BOS])),
        (TEXT, dict(until="\n\n\n", max_gen_toks=NEW), written(ids(TEXT)[-LENGTH + NEW :])),
    ]
    requests = asked("generate_until", *(case[:2] for case in cases))
    expected = [case[2] for case in cases]
    assert lm.generate_until(requests, disable_tqdm=True) == expected and len(set(expected)) == len(cases)


def test_special_tokens_end_texts_and_options_go_to_generate(lm):
    def begun(token: int, **options) -> tuple[str, dict]:  # as the first token, and never again
        return "a", dict(max_gen_toks=NEW, logit_bias={token: 100.0}, no_repeat_ngram_size=1) | options

    requests = asked("generate_until", begun(BOS), begun(BOS, until=["<|im_start|>"]), begun(EOS), begun(500))
    assert list(map(bool, lm.generate_until(requests, disable_tqdm=True))) == [True, False, False, False]


def test_draws_depend_on_the_seed_and_on_the_request(lm):
    draw = asked("generate_until", *[("Hello", dict(do_sample=True, temperature=1.0, max_gen_toks=NEW))] * 2)
    once, again = lm.generate_until(draw, disable_tqdm=True), lm.generate_until(draw, disable_tqdm=True)
    assert once == again and once[0] != once[1]
    assert harness_model(seed=1).generate_until(draw, disable_tqdm=True)[0] != once[0]


def test_chats_are_written_by_the_template(lm):
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": " Hi "}]
    assert lm.apply_chat_template(chat) == tokenizer().chat(chat)
    begun = [*chat, {"role": "assistant", "content": "The answer "}]
    text = lm.apply_chat_template(begun, add_generation_prompt=False)
    assert text == tokenizer().chat(chat) + "The answer "
    assert lm.apply_chat_template(chat, add_generation_prompt=False).endswith("<|im_start|>user\nHi")
    assert lm.chat_template(True) == tokenizer().chat_template
    assert lm.tokenizer_name == tokenizer().fingerprint


def test_a_first_token_is_put_before_a_text_once():
    llama = load("llama-bpe")
    with_bos, without = (
        adapter.HarnessModel(model=MODEL, params=params(), tokenizer=llama, add_bos_token=adds) for adds in (True, False)
    )
    plain = llama("hi", add_special_tokens=False).tokens[0].tolist()
    assert with_bos.tok_encode("hi") == [BOS, *plain] == with_bos.tok_encode("<|im_start|>hi")
    assert without.tok_encode("hi") == plain == with_bos.tok_encode("hi", add_special_tokens=False)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict:
    """A task of the harness with its data beside it."""
    folder = tmp_path_factory.mktemp("task")
    choices = ["red", "wonderful", "a bird"]
    rows = [dict(question=f"{name} is", choices=choices, answer=i % 3) for i, name in enumerate("ABCDE")]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_pretrained(folder / "model", MODEL, params(), tokenizer())
    common = dict(dataset_path="json", test_split="test", dataset_kwargs=dict(data_files=dict(test=str(folder / "data.jsonl"))))
    choose = dict(
        task="choose", output_type="multiple_choice", doc_to_text="{{question}}", doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}", metric_list=[dict(metric="acc")], **common,
    )  # fmt: skip
    write = dict(
        task="write", output_type="generate_until", doc_to_text="{{question}}", doc_to_target="{{answer}}",
        generation_kwargs=dict(until=["\n"], max_gen_toks=NEW), metric_list=[dict(metric="exact_match")], **common,
    )  # fmt: skip
    read = dict(
        task="read", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}",
        metric_list=[dict(metric="word_perplexity")], **common,
    )  # fmt: skip
    return dict(rows=rows, path=str(folder / "model"), tasks=[choose, write, read])


def test_the_harness_evaluates_a_checkpoint(local, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    found = lm_eval.simple_evaluate(
        model="flaxllm", model_args={"path": local["path"]}, tasks=local["tasks"], batch_size="auto", max_batch_size=4,
        device="cuda:0", bootstrap_iters=0, task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    right = []
    for row in local["rows"]:
        question, choices = row["question"], row["choices"]
        each = [scores(ids(f"{question} {x}"), len(ids(f"{question} {x}")) - len(ids(question)))[0] for x in choices]
        right.append(int(np.argmax(each)) == row["answer"])
    results = found["results"]
    assert results["choose"]["acc,none"] == pytest.approx(np.mean(right))
    texts = [sample["resps"][0][0] for sample in found["samples"]["write"]]
    prompts = [ids(row["question"]) for row in local["rows"]]
    options = dict(temperature=0, stop=["\n"], stop_tokens=[500, EOS], tokenizer=tokenizer())
    assert texts == [generate(MODEL, params(), [prompt], NEW, **options).texts[0] for prompt in prompts]
    sums = [scores([BOS, *prompt], len(prompt))[0] for prompt in prompts]
    assert results["read"]["word_perplexity,none"] == pytest.approx(np.exp(-np.sum(sums) / 10), rel=1e-5)


def test_its_name_is_beside_the_harnesss_own():
    assert get_model("flaxllm") is adapter.HarnessModel
    assert get_model("local-completions").__name__ == "LocalCompletionsAPI"


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(pretrained="x"), "no argument 'pretrained'"),
        (dict(), "needs a checkpoint's path"),
        (dict(model=MODEL, params={}), "give tokenizer= too"),
        (dict(batch_size="many"), "batch_size is 'many'"),
        (dict(max_length=LENGTH + 1), f"expected 1 to {LENGTH}"),
        (dict(model=build("gpt", SIZES, head="sequence-classification")), "the head 'sequence-classification'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_is_said_in_a_sentence(options, said):
    whole = dict(model=MODEL, params=params(), tokenizer=tokenizer()) if options and "params" not in options else {}
    with pytest.raises(InputError, match=said):
        adapter.HarnessModel(**whole | options)


def test_a_request_that_cannot_be_is_said_in_a_sentence(lm):
    with pytest.raises(InputError, match=f"max_gen_toks is {LENGTH}"):
        lm.generate_until(asked("generate_until", ("a", dict(max_gen_toks=LENGTH))))
    with pytest.raises(InputError, match="has no option 'top'"):
        lm.generate_until(asked("generate_until", ("a", dict(max_gen_toks=4, top=1))))
    with pytest.raises(InputError, match="no token of its own"):
        lm.loglikelihood(asked("loglikelihood", ("a", "")))


def test_the_command_line_and_a_missing_harness_end_with_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: get_model("flaxllm").create_from_arg_string("path=/nowhere"))
    with pytest.raises(SystemExit) as ended:
        adapter.main()
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: there is no path '/nowhere'")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"needs lm_eval, which is not installed: pip install 'flaxllm\[lm-eval\]'"):
        importlib.reload(adapter)
