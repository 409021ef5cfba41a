"""ADDropTrainer on each process of a gloo group. Each saves what it dropped, and what its log says of that. Run by
torchrun with a folder."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from models import build
from sentences import Sentences, arguments
from transformers import TrainerCallback

from attrdrop import ADDropConfig, ADDropTrainer


class Count(TrainerCallback):
    """The statistics at the end of the last step before each line of the log."""

    def __init__(self):
        self.trainer = None

    def on_step_end(self, args, state, control, **kwargs):
        self.counted = self.trainer.addrop.statistics()


if __name__ == "__main__":
    folder, counter = Path(sys.argv[1]), Count()
    options = dict(max_steps=2, logging_strategy="steps", logging_steps=2, ddp_backend="gloo")
    trainer = ADDropTrainer(
        build("bert"), arguments(folder, **options), train_dataset=Sentences(16), callbacks=[counter],
        addrop=ADDropConfig(p=0.4, q=0.5, cross_tuning=False),
    )  # fmt: skip
    counter.trainer = trainer
    trainer.train()
    logged = [row["addrop_fraction_dropped"] for row in trainer.state.log_history if "loss" in row]
    row = {"dropped": counter.counted.dropped, "valid": counter.counted.valid, "logged": logged}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(row))
    dist.destroy_process_group()
