"""A small data set for transformers' Trainer, and its arguments."""

import torch
from models import batch
from transformers import TrainingArguments


class Sentences(torch.utils.data.Dataset):
    def __init__(self, count=24):
        samples = batch("bert", size=count)
        self.rows = [{key: value[i] for key, value in samples.items()} for i in range(count)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def arguments(folder, **options):
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=4, num_train_epochs=2, learning_rate=1e-3, use_cpu=True,
        logging_strategy="epoch", save_strategy="no", report_to=[], disable_tqdm=True, seed=3,
    )  # fmt: skip
    return TrainingArguments(**{**defaults, **options})
