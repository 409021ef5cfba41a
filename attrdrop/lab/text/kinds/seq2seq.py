"""Text to text: translation, scored by BLEU of what the model writes."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq

from attrdrop.lab.text.kinds.base import Collate, Kind, Metric, Prediction, Row, cross_entropy_sum, rows_of
from attrdrop.lab.text.tasks import Examples


class SequenceToSequence(Kind):
    """A text for each text. Scoring lets the model write greedily and compares with the reference as it is."""

    name = "seq2seq"
    factory = AutoModelForSeq2SeqLM
    metrics: ClassVar = {"bleu": Metric("BLEU"), "chrf": Metric("chrF")}
    scorer = "sacrebleu"

    def model_options(self, config: Any = None) -> dict[str, Any]:
        return {}

    def encode(self, examples: Examples) -> list[Row]:
        assert examples.labels is not None
        encoded = self.tokenizer(
            examples.texts, text_target=examples.labels, truncation=True, max_length=self.max_length
        )
        return [row | {"reference": text} for row, text in zip(rows_of(encoded), examples.labels, strict=True)]

    def collate(self, seed: int) -> Collate:
        pad = DataCollatorForSeq2Seq(self.tokenizer)
        return lambda rows: pad(self._select(rows))

    def predict(self, model: Any, rows: list[Row], batch: dict[str, Tensor]) -> Prediction:
        labels = batch["labels"]
        loss = cross_entropy_sum(model(**batch).logits, labels)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        written = model.generate(**inputs, max_new_tokens=self.max_length, do_sample=False, num_beams=1)
        predicted = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return Prediction(*loss, [text.strip() for text in predicted], [row["reference"] for row in rows])

    def written(self, predicted: list[Any]) -> list[str]:
        return predicted

    def score(self, metric: str, found: Prediction) -> float:
        import sacrebleu

        measure: Any = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}[metric]
        return measure(found.predicted, [found.expected]).score / 100
