"""Task types: how examples become batches, what a model predicts for them, and how that is scored."""

from attrdrop.lab.kinds.base import Kind, Metric, Prediction, Row
from attrdrop.lab.kinds.language import CausalLanguage, MaskedLanguage
from attrdrop.lab.kinds.seq2seq import SequenceToSequence
from attrdrop.lab.kinds.sequence import Classification, Regression
from attrdrop.lab.kinds.tokens import TokenClassification

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        Classification,
        Regression,
        TokenClassification,
        SequenceToSequence,
        MaskedLanguage,
        CausalLanguage,
    )
}

__all__ = ["KINDS", "Kind", "Metric", "Prediction", "Row"]
