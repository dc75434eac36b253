"""The loss of a model that names tokens."""

from jaxtyping import Array, Float, Int

from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.cross_entropy import chunks_needed, cross_entropy
from flaxllm.objectives.objective import Term

MAX_LOGIT_BYTES = 2**30


def vocabulary_terms(
    model: Model,
    params: dict,
    hidden: Float[Array, "batch length embed"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    ctx: Context,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> dict[str, Term]:
    """`cross_entropy` of the targets under the logits that `unembed` makes of hidden states; chunked where one device would
    hold more than `max_logit_bytes` of them."""
    rows, length = targets.shape
    vocab_size = model.config.vocab_size
    parts = 1 if ctx.rules is None else ctx.rules.split("batch") * ctx.rules.split("vocab", vocab_size)
    return cross_entropy(
        lambda h: model.unembed(params, h, ctx=ctx),
        hidden,
        targets,
        weights,
        z_loss,
        label_smoothing,
        chunks_needed(-(-rows // parts), length, vocab_size, max_logit_bytes),
    )
