"""A Transformer-Tiny that translates image captions from English to German (Multi30k).

    python launch.py --config=experiments/transformer_translate.py --workdir=runs/translate \\
        --config.data.source=multi30k/train.tsv --config.data.eval_source=multi30k/validation.tsv
    python launch.py --config=experiments/transformer_translate.py:tiny --workdir=runs/translate_tiny

Sources are TSV files with the columns en and de. 4 layers each side, 128 wide, 256 feed-forward, 4 heads, dropout 0.3, a
joint BPE of 10k, the mean of the last 10 checkpoints, 5 beams: the literature's text-only baseline on this set. `tiny`
learns to write numbers in digits, in a minute.

No record yet.
"""

import flaxllm


def get_config(argument=None):
    sizes = dict(num_layers=4, num_decoder_layers=4, num_heads=4, head_dim=32, d_model=128, d_mlp=256, dropout=0.1)
    if argument == "tiny":
        sizes |= dict(num_layers=2, num_decoder_layers=2, dropout=0.0)
    config = flaxllm.default_config("transformer-base", objective="seq2seq", **sizes)
    if argument == "tiny":
        config.data.update(source="python-numbers:train", eval_source="python-numbers:eval", tokenizer="chars", max_len=64)
        config.data.batch_size = 64
        config.objective.update(metric="exact-match", max_target_len=8)
        config.train.update(num_steps=300, eval_every=150, checkpoint_every=150, sample_every=300)
        config.eval.update(max_items=100, max_new_tokens=8)
        config.optimizer.update(learning_rate=3e-3, warmup_steps=100, schedule="rsqrt")
        config.sample.prompt = "two hundred and fifty-six"
    else:
        config.data.update(source="multi30k/train.tsv", eval_source="multi30k/validation.tsv", format="tsv")
        config.data.update(columns=dict(source="en", target="de"), tokenizer="bpe", vocab_size=10_000, max_len=80)
        config.objective.update(max_target_len=80, label_smoothing=0.1)
        config.train.update(num_steps=8000, eval_every=2000, sample_every=2000, checkpoint_every=100)
        config.train.update(keep_checkpoints=10, average=10)
        config.eval.update(num_beams=5, max_new_tokens=80)
        config.optimizer.update(learning_rate=2e-3, warmup_steps=300, schedule="cosine", final_fraction=0.05)
        config.sample.prompt = "Two young men are playing football in the park."
        config.data.batch_size = 16
    config.optimizer.update(b2=0.98, eps=1e-9, weight_decay=0.0, clip_norm=0.0)
    config.sample.update(num_tokens=40, temperature=0.0)
    return config
