"""A tag per word, such as named entities, scored by spans."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from attrdrop.lab.errors import InputError
from attrdrop.lab.text.kinds.base import IGNORED, Collate, Kind, Metric, Prediction, Row, cross_entropy_sum, rows_of
from attrdrop.lab.text.tasks import Examples


class TokenClassification(Kind):
    """The first piece of a word stands for it; other pieces are not active, in training as in scoring.

    Words that truncation cut off count as predicted outside of every span.
    """

    name = "token-classification"
    factory = AutoModelForTokenClassification
    metrics: ClassVar = {"span-f1": Metric("span F1"), "accuracy": Metric("tag accuracy")}
    splits_words = True
    scorer = "seqeval"

    def encode(self, examples: Examples) -> list[Row]:
        if not self.tokenizer.is_fast:
            raise InputError(
                f"--task-type: {self.name} needs a fast tokenizer, which maps each piece to its word; this "
                "model's tokenizer is a slow one."
            )
        encoded = self.tokenizer(examples.texts, is_split_into_words=True, truncation=True, max_length=self.max_length)
        assert examples.labels is not None
        rows = []
        for index, (row, tags) in enumerate(zip(rows_of(encoded), examples.labels, strict=True)):
            words = encoded.word_ids(index)
            is_first = [word is not None and word != before for word, before in zip(words, [None, *words])]  # noqa: B905
            labels = [tags[word] if first else IGNORED for word, first in zip(words, is_first, strict=True)]
            active = [word for word, first in zip(words, is_first, strict=True) if first]
            rows.append(row | {"labels": labels, "words": active, "tags": tags})
        return rows

    def encode_to_train(self, examples: Examples) -> list[Row]:
        """Without words that are nothing to the tokenizer: the loss of a batch of them would be NaN."""
        rows = [row for row in self.encode(examples) if row["words"]]
        if not rows:
            raise InputError(f"--task-type: {self.name} finds no word in these texts that the tokenizer knows.")
        return rows

    def collate(self, seed: int) -> Collate:
        pad = DataCollatorForTokenClassification(self.tokenizer)
        return lambda rows: pad(self._select(rows))

    def predict(self, model: Any, rows: list[Row], batch: dict[str, Tensor]) -> Prediction:
        logits, labels = model(**batch).logits, batch["labels"]
        best = logits.argmax(-1)
        predicted = []
        for row, tags, active in zip(rows, best, labels != IGNORED, strict=True):
            names = ["O"] * len(row["tags"])
            for word, tag in zip(row["words"], tags[active].tolist(), strict=True):
                names[word] = self.task.label_names[tag]
            predicted.append(names)
        expected = [[self.task.label_names[tag] for tag in row["tags"]] for row in rows]
        return Prediction(*cross_entropy_sum(logits, labels), predicted, expected)

    def written(self, predicted: list[Any]) -> list[str]:
        return [" ".join(tags) for tags in predicted]

    def score(self, metric: str, found: Prediction) -> float:
        from seqeval.metrics import accuracy_score, f1_score

        if metric == "accuracy":
            return float(accuracy_score(found.expected, found.predicted))
        return float(f1_score(found.expected, found.predicted, zero_division=0))
