"""Language models: predict words from the other words (masked) or from the previous ones (causal)."""

import abc
import math
from typing import Any, ClassVar

from sklearn.metrics import accuracy_score
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, DataCollatorForLanguageModeling

from attrdrop.lab.errors import InputError
from attrdrop.lab.text.kinds.base import IGNORED, Collate, Kind, Metric, Prediction, Row, cross_entropy_sum, rows_of
from attrdrop.lab.text.tasks import Examples


class _Language(Kind):
    metrics: ClassVar = {
        "perplexity": Metric("perplexity", better=-1, percent=False),
        "accuracy": Metric("token accuracy"),
    }

    def model_options(self, config: Any = None) -> dict[str, Any]:
        return {}

    def encode(self, examples: Examples) -> list[Row]:
        """Rows of the texts that have something to predict."""
        rows = rows_of(self.tokenizer(examples.texts, truncation=True, max_length=self.max_length))
        kept = [row for row in rows if self._has_tokens(row["input_ids"])]
        if not kept:
            raise InputError(f"--task-type: {self.name} finds nothing to predict in any of these texts.")
        return kept

    @abc.abstractmethod
    def _has_tokens(self, ids: list[int]) -> bool:
        """Whether there is a token to predict."""

    def score(self, metric: str, found: Prediction) -> float:
        if metric == "accuracy":
            return float(accuracy_score(found.expected, found.predicted))
        return math.exp(min(found.mean_loss, 700))  # beyond, it is no float

    def _predicted(self, logits: Tensor, labels: Tensor) -> Prediction:
        active = labels != IGNORED
        return Prediction(
            *cross_entropy_sum(logits, labels), logits.argmax(-1)[active].tolist(), labels[active].tolist()
        )


class MaskedLanguage(_Language):
    """15 % of the tokens are hidden, changed or left as they are, and to be found."""

    name = "masked-lm"
    factory = AutoModelForMaskedLM

    def encode(self, examples: Examples) -> list[Row]:
        if self.tokenizer.mask_token is None:
            raise InputError(
                f"--task-type: {self.name} needs a tokenizer with a mask token, and this model's has none."
            )
        return super().encode(examples)

    def _has_tokens(self, ids: list[int]) -> bool:
        return not set(self.tokenizer.all_special_ids).issuperset(ids)

    def collate(self, seed: int) -> Collate:
        hide = DataCollatorForLanguageModeling(self.tokenizer, seed=seed)

        def collate(rows: list[Row]) -> Any:
            batch = hide(rows)
            while not (batch["labels"] != IGNORED).any():  # few short texts: a loss over nothing would be NaN
                batch = hide(rows)
            return batch

        return collate

    def predict(self, model: Any, rows: list[Row], batch: dict[str, Tensor]) -> Prediction:
        return self._predicted(model(**batch).logits, batch["labels"])


class CausalLanguage(_Language):
    """Each token from those before it."""

    name = "causal-lm"
    factory = AutoModelForCausalLM

    def model_options(self, config: Any = None) -> dict[str, Any]:
        # An encoder would see the tokens that it is to predict.
        return {"is_decoder": True} if hasattr(config, "is_decoder") else {}

    def _has_tokens(self, ids: list[int]) -> bool:
        return len(ids) > 1

    def collate(self, seed: int) -> Collate:
        return DataCollatorForLanguageModeling(self.tokenizer, mlm=False)

    def predict(self, model: Any, rows: list[Row], batch: dict[str, Tensor]) -> Prediction:
        return self._predicted(model(**batch).logits[:, :-1], batch["labels"][:, 1:])
