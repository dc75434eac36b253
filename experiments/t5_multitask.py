"""A T5 trained on several tasks at once, each told by a prefix, mixed by their sizes (Raffel et al. 2020, sections 2.4, 3.5).

    python launch.py --config=experiments/t5_multitask.py:path/to/checkpoint --workdir=runs/multitask
    python launch.py --config=experiments/t5_multitask.py:tiny --workdir=runs/multitask_tiny

The checkpoint is a T5 folder or hub id; edit the tasks below to your files. `tiny` is to write numbers in digits and to sum up
what functions do; in its minute the losses of both fall, but it gets no number right.

Record (2026-11-26, one core of an AMD EPYC with AVX-512, jax 0.10.2, seed 0), from the small T5 of t5_pretrain's record, with
--config.train.num_steps=240 --config.eval.max_items=200: 3 min. The losses fall to 3.009 (translation) and 4.566 (questions), the
former still fast; BLEU 1.3, ROUGE-L 0.136. No T5 that others have pretrained was at hand.
"""

import flaxllm
from flaxllm.errors import InputError


def get_config(checkpoint=None):
    if not checkpoint:
        raise InputError("t5_multitask needs a checkpoint: --config=experiments/t5_multitask.py:folder (or :tiny)")
    if checkpoint == "tiny":
        sizes = dict(num_layers=2, num_decoder_layers=2, num_heads=2, head_dim=32, d_model=64, d_mlp=128)
        sizes |= dict(dropout=0.0, attention_dropout=0.0)
        config = flaxllm.default_config("t5-small", objective="seq2seq", **sizes)
        config.data.update(tokenizer="unigram", vocab_size=1000, max_len=96, batch_size=32)
        config.data.mixture = {
            "numbers": _python("numbers", prefix="write in digits: ", metric="exact-match"),
            "summaries": _python("functions", prefix="summarize: ", metric="rouge"),
        }
        config.objective.max_target_len = 32
        config.train.update(num_steps=150, eval_every=150, sample_every=150, checkpoint_every=150)
        config.eval.update(max_items=20, max_new_tokens=24)
        config.sample.prompt = "write in digits: seventy-one"
    else:
        config = flaxllm.default_config(objective="seq2seq", checkpoint=checkpoint)
        config.data.update(max_len=128, batch_size=32, mixture_limit=10_000)
        config.data.mixture = {
            "translation": dict(
                source="multi30k/train.tsv", eval_source="multi30k/validation.tsv", columns=dict(source="en", target="de"),
                prefix="translate English to German: ", metric="bleu",
            ),
            "questions": dict(
                source="squad_questions/train.tsv", eval_source="squad_questions/validation.tsv",
                columns=dict(source="sentence", target="question"), prefix="ask: ", metric="rouge",
            ),
        }  # fmt: skip
        config.objective.max_target_len = 64
        config.train.update(num_steps=2000, eval_every=500, sample_every=500, checkpoint_every=500)
        config.eval.update(max_items=200, max_new_tokens=64)
        config.sample.prompt = "translate English to German: The house is wonderful."
    rate = 5e-3 if checkpoint == "tiny" else 1e-3
    config.optimizer.update(name="adafactor", learning_rate=rate, schedule="constant", warmup_steps=20, weight_decay=0.0)
    config.sample.update(num_tokens=24, temperature=0.0)
    return config


def _python(name, **own):
    return dict(source=f"python-{name}:train", eval_source=f"python-{name}:eval", **own)
