"""The figures and pictures of docs/inside.md.

    python docs/inside.py --minilm=FOLDER --smollm2=FILE.gguf --sentiment=FOLDER --tagged=FOLDER

`--sentiment` has train.tsv and validation.tsv (SST-2: sentence, label), `--tagged` the files of the Brown corpus (word/tag).
What is found is written beside, to docs/inside: pictures, and figures.json. Needs `pip install -e '.[eval]'`.
"""

import argparse
import csv
import json
import re
from pathlib import Path

import jax
import matplotlib
import numpy as np

import flaxllm
from flaxllm import interpret
from flaxllm.data import Tokenizer
from flaxllm.interpret.command import draw_attention, draw_lens
from flaxllm.models import Model

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent / "inside"
SENTENCE = "The cat sat on the mat because it was tired"
CLEAN, CORRUPT = "The capital of France is", "The capital of Italy is"
ROWS, LENGTH = 32, 48  # texts that a model reads at a time, and their tokens
STRENGTH = 0.01  # of the probes: the inverse of their penalty
# The parts of speech of the Brown corpus by the beginnings of its tags, the first that fits (Francis and Kucera 1979).
PARTS = {
    "np": "proper noun", "nn": "noun", "nr": "noun", "be": "verb", "do": "verb", "hv": "verb", "md": "verb", "vb": "verb",
    "jj": "adjective", "rb": "adverb", "ql": "adverb", "at": "determiner", "dt": "determiner", "ap": "determiner",
    "in": "preposition", "to": "preposition", "cc": "conjunction", "cs": "conjunction", "pp": "pronoun", "wp": "pronoun",
    "pn": "pronoun", "cd": "number", "od": "number",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("minilm", "smollm2", "sentiment", "tagged"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    found = {}
    for name, path in (("MiniLM", given.minilm), ("SmolLM2", given.smollm2)):
        model, params = flaxllm.from_pretrained(path, dtype="float32")
        tokenizer = flaxllm.load_tokenizer(path)
        draw_attention(path, SENTENCE, output=str(HERE / f"{name}.html"), png=str(HERE / f"{name}_attention.png"))
        found[name] = one_sentence(model, params, tokenizer)
        found[name] |= {"probes": probes(model, params, tokenizer, given.tagged, given.sentiment)}
        if name == "SmolLM2":
            draw_lens(path, f"{CLEAN} Paris", output=str(HERE / "lens.html"), png=str(HERE / "lens.png"))
            found[name] |= {"induction": induction(model, params), "capital": capital(model, params, tokenizer)}
        print(name, json.dumps(found[name], indent=1), flush=True)
    plot_probes({name: figures["probes"] for name, figures in found.items()})
    (HERE / "figures.json").write_text(json.dumps(found, indent=1) + "\n")


def one_sentence(model: Model, params: dict, tokenizer: Tokenizer) -> dict:
    """What the heads do on one sentence, and who looks from "it" at "cat"."""
    tokens = tokenizer(SENTENCE).tokens
    words = [word.strip(" Ġ▁") for word in interpret.token_texts(tokenizer, tokens[0])]
    (weights,) = interpret.attention_maps(model, params, tokens).values()
    summaries = interpret.head_summaries(weights)
    weights = np.asarray(weights)[:, 0]
    previous = np.asarray(summaries.previous_token)
    it, cat = words.index("it"), words.index("cat")
    from_it = weights[:, :, it, cat]
    mean = weights.mean((1, 2))  # over heads and queries: [layers, keys]
    return {
        "tokens": words,
        "mean_entropy_by_layer": _rounded(np.asarray(summaries.entropy).mean(1)),
        "mean_distance_by_layer": _rounded(np.asarray(summaries.distance).mean(1)),
        "previous_token_heads": _highest(previous),
        "it_to_cat_heads": _highest(from_it),
        "weight_on_first_by_layer": _rounded(mean[:, 0]),
        "weight_on_last_by_layer": _rounded(mean[:, -1]),
    }


def _rounded(values: np.ndarray) -> list:
    return np.asarray(values, np.float64).round(4).tolist()


def _highest(values: np.ndarray, count: int = 4) -> list[list]:
    order = np.argsort(-values, axis=None)[:count]
    return [[int(i) for i in np.unravel_index(place, values.shape)] + [round(float(values.flat[place]), 3)] for place in order]


def induction(model: Model, params: dict) -> dict:
    """The induction score of each head, on random tokens that come twice."""
    half = np.random.default_rng(0).integers(1000, model.config.vocab_size, (4, 64))
    (weights,) = interpret.attention_maps(model, params, np.concatenate([half, half], 1)).values()
    scores = np.asarray(interpret.head_summaries(weights, np.concatenate([half, half], 1)).induction)
    return {"best_by_layer": _rounded(scores.max(1)), "heads": _highest(scores, 6)}


def capital(model: Model, params: dict, tokenizer: Tokenizer) -> dict:
    """Where the answer appears with depth, and which places carry it."""
    clean, corrupt = (tokenizer(text).tokens for text in (CLEAN, CORRUPT))
    paris, rome = (int(tokenizer(word, add_special_tokens=False).tokens[0, 0]) for word in (" Paris", " Rome"))
    lens = interpret.logit_lens(model, params, clean, k=model.config.vocab_size)
    order, shares = np.asarray(lens.tokens)[:, 0, -1], np.asarray(lens.probabilities)[:, 0, -1]
    ranks = (order == paris).argmax(-1)
    metric = interpret.logit_difference(model, params, paris, rome)
    patched = np.asarray(interpret.patch(model, params, clean, corrupt, metric))
    own = [float(metric(model.apply(params, tokens))) for tokens in (clean, corrupt)]
    restored = (patched - own[1]) / (own[0] - own[1])
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    shown = axes.imshow(restored, "RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(corrupt.shape[1]), interpret.token_texts(tokenizer, corrupt[0]))
    axes.set(ylabel="layer", title="Share of Paris over Rome that one place brings back")
    figure.colorbar(shown)
    figure.savefig(HERE / "patching.png", dpi=110)
    return {
        "rank_by_depth": ranks.tolist(),
        "probability_by_depth": _rounded(shares[np.arange(len(ranks)), ranks]),
        "logit_difference_clean_corrupt": own,
        "restored": _rounded(restored),
        "words": interpret.token_texts(tokenizer, corrupt[0]),
    }


def probes(model: Model, params: dict, tokenizer: Tokenizer, tagged: str, sentiment: str) -> dict:
    """The accuracy by depth of linear probes for words' parts of speech and for sentences' sentiment."""
    sentences, documents = read_tagged(Path(tagged))
    vectors, labels, test = [], [], []
    for start in range(0, len(sentences), ROWS):
        block = sentences[start : start + ROWS]
        encoded = tokenizer([[word for word, _ in sentence] for sentence in block], split_words=True, max_len=LENGTH)
        depths = depths_of(model, params, encoded.tokens, encoded.valid)
        for row, sentence in enumerate(block):
            found, first = np.unique(encoded.word_ids[row], return_index=True)
            for word, place in zip(found[found >= 0], first[found >= 0]):
                vectors.append(depths[:, row, place])
                labels.append(sentence[word][1])
                test.append(documents[start + row])
    speech = interpret.linear_probes(np.stack(vectors, 1), np.array(labels), np.array(test), strength=STRENGTH)
    size, counts = len(vectors), [int(np.sum(~np.array(test))), int(np.sum(test))]
    texts, labels, test = read_sentiment(Path(sentiment))
    means = []
    for start in range(0, len(texts), ROWS):
        encoded = tokenizer(texts[start : start + ROWS], max_len=LENGTH)
        depths = depths_of(model, params, encoded.tokens, encoded.valid)
        valid = encoded.valid / encoded.valid.sum(1, keepdims=True)
        means.append(np.einsum("lbtd,bt->lbd", depths, valid))
    feeling = interpret.linear_probes(np.concatenate(means, 1), labels, test, strength=STRENGTH)
    return {
        "speech": _rounded(speech.accuracy), "speech_majority": round(speech.majority, 4), "speech_examples": counts,
        "sentiment": _rounded(feeling.accuracy), "sentiment_majority": round(feeling.majority, 4),
        "sentiment_examples": [int((~test).sum()), int(test.sum())], "words": size,
    }  # fmt: skip


def depths_of(model: Model, params: dict, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The residual stream at every depth, `[depths, batch, length, embed]`."""
    pad = (0, ROWS - len(tokens)), (0, LENGTH - tokens.shape[1])
    taps = _depths(model, params, np.pad(tokens, pad), np.pad(valid, pad))
    return np.concatenate([taps["embedding"][None], taps["layers/out"]])[:, : len(tokens), : tokens.shape[1]]


@jax.jit
def _depths(model: Model, params: dict, tokens: jax.Array, valid: jax.Array) -> dict:
    ctx = flaxllm.Context(taps=flaxllm.Taps(returned=("embedding", "layers/out")))
    return model.apply(params, tokens, valid=valid, ctx=ctx).taps


def read_tagged(folder: Path) -> tuple[list, list[bool]]:
    """Every sixtieth sentence of the corpus as words with their parts of speech, and whether it is of a document to test on."""
    sentences, tests = [], []
    for number, path in enumerate(sorted(folder.glob("c[a-j][0-9][0-9]"))):
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        for line in lines[::60]:
            pairs = [pair.rpartition("/") for pair in line]
            sentences.append([(word, _part(tag)) for word, _, tag in pairs])
            tests.append(number % 5 == 4)
    return sentences, tests


def _part(tag: str) -> str:
    tag = re.sub(r"^fw-", "", tag.lower())
    return next((part for start, part in PARTS.items() if tag.startswith(start)), "other" if tag[:1].isalpha() else "punctuation")


def read_sentiment(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """1,500 of the training sentences of ten words or more, and those to be tested on."""
    sides = []
    for name in ("train.tsv", "validation.tsv"):
        with (folder / name).open() as lines:
            sides.append(list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)))
    long = [row for row in sides[0] if len(row["sentence"].split()) >= 10]
    chosen = [long[i] for i in np.random.default_rng(0).choice(len(long), 1500, replace=False)]
    rows = chosen + sides[1]
    return [row["sentence"] for row in rows], np.array([row["label"] for row in rows]), np.arange(len(rows)) >= len(chosen)


def plot_probes(found: dict) -> None:
    figure, panels = plt.subplots(1, len(found), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, (name, figures) in zip(panels, found.items()):
        for what, colour in (("speech", "tab:blue"), ("sentiment", "tab:orange")):
            axes.plot(figures[what], "o-", color=colour, label={"speech": "part of speech", "sentiment": "sentiment"}[what], ms=3)
            axes.axhline(figures[f"{what}_majority"], color=colour, ls=":", lw=1)
        axes.set(xlabel="depth (0: the embedding)", title=name)
    panels[0].set_ylabel("accuracy of a linear probe")
    panels[0].legend(frameon=False)
    figure.savefig(HERE / "probes.png", dpi=110)


if __name__ == "__main__":
    main()
