"""Named entities: how many of those predicted are right, and how many of the true ones are found."""

from collections.abc import Sequence

from flaxllm.errors import InputError
from flaxllm.metrics.inputs import check_pairs, library

Tags = Sequence[Sequence[str]]  # a list of tags for each sentence: "O", or "B-" or "I-" and a type (IOB2)


def entities(predictions: Tags, references: Tags, strict: bool = False) -> dict[str, float]:
    """`precision`, `recall` and `f1` of whole entities, 0 to 1, as seqeval counts them over all sentences.

    An entity counts where its type, start and end are all right (Tjong Kim Sang and De Meulder 2003, section 3). Without
    `strict` an entity may also begin with I-, as CoNLL's own script has it; with it, such tags are no entity.

    Raises:
      InputError: sentences differ in number or length, or a tag is none of IOB2.
    """
    check_pairs(predictions, references)
    for index, (predicted, true) in enumerate(zip(predictions, references)):
        if len(predicted) != len(true):
            raise InputError(f"sentence {index} has {len(predicted)} predicted tags for {len(true)} words: expected one a word")
        odd = next((tag for tag in (*predicted, *true) if tag != "O" and tag[:2] not in ("B-", "I-")), None)
        if odd is not None:
            raise InputError(f"sentence {index} has the tag {odd!r}: expected 'O', or 'B-' or 'I-' and the entity's type")
    predicted, true = ([list(tags) for tags in side] for side in (predictions, references))
    if strict:
        scheme = library("seqeval.scheme").IOB2
        score = library("seqeval.metrics.v1").precision_recall_fscore_support
        scores = score(true, predicted, average="micro", scheme=scheme, zero_division=0)
    else:
        score = library("seqeval.metrics.sequence_labeling").precision_recall_fscore_support
        scores = score(true, predicted, average="micro", zero_division=0)
    return {name: float(value) for name, value in zip(("precision", "recall", "f1"), scores)}
