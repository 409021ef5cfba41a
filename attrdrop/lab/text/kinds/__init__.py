"""Task types: how examples become batches, what a model predicts for them, and how that is scored."""

from attrdrop.lab.text.kinds.base import Kind, Metric, Prediction, Row
from attrdrop.lab.text.kinds.language import CausalLanguage, MaskedLanguage
from attrdrop.lab.text.kinds.seq2seq import SequenceToSequence
from attrdrop.lab.text.kinds.sequence import Classification, Regression
from attrdrop.lab.text.kinds.tokens import TokenClassification

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
