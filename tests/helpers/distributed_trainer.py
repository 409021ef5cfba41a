"""ADDropTrainer under an engine on each process of a gloo group: four steps, then the last two again from a checkpoint.

Run by torchrun with a folder, the name of an engine and attributions. Rank 0 saves the models in a folder for each of
these; each process, what it dropped and what its log says.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from engines import state_of_accelerate, zero
from models import build
from sentences import Sentences, arguments
from transformers import TrainerCallback

from attrdrop import ADDropConfig, ADDropTrainer

STEPS, SAVED, BATCH = 4, 2, 8
ENGINES = {
    "alone": {},
    "ddp": {"ddp_backend": "gloo"},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}},
    **{f"zero{stage}": {"deepspeed": stage} for stage in (1, 2, 3)},
}


class Count(TrainerCallback):
    """The statistics at the end of each step."""

    def __init__(self):
        self.trainer, self.counted = None, []

    def on_step_end(self, args, state, control, **kwargs):
        found = self.trainer.addrop.statistics()
        self.counted.append((found.dropped, found.valid))


def dtype_of(name):
    """DeepSpeed trains in float32."""
    return torch.float32 if name.startswith("zero") else torch.float64


def options_of(name):
    """Those of the Trainer. A state of accelerate that knows gloo is made beforehand, where it makes none by itself."""
    options = dict(ENGINES[name])
    if "fsdp" in options or "deepspeed" in options:
        state_of_accelerate("fsdp" if "fsdp" in options else "deepspeed")
        options |= dict(use_cpu=False, accelerator_config={"use_configured_state": True})
    if "deepspeed" in options:
        sizes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        options["deepspeed"] = zero(options["deepspeed"], **dict.fromkeys(sizes, "auto"))
    return options


def train(folder, name, attribution, dtype, processes=1, resume=None):
    """The trainer, and what it counted; samples of a step are the same however many processes share them."""
    counter = Count()
    options = dict(max_steps=STEPS, save_strategy="steps", save_steps=SAVED, logging_strategy="steps", logging_steps=1)
    options["per_device_train_batch_size"] = BATCH // processes
    options["average_tokens_across_devices"] = False  # which makes gradients of BERT twice as large in two processes
    addrop = ADDropConfig(p=0.4, q=0.5, attribution=attribution, iga_steps=3, cross_tuning=False)
    trainer = ADDropTrainer(
        build("bert", dtype), arguments(folder, **options, **options_of(name)), train_dataset=Sentences(24),
        callbacks=[counter], addrop=addrop,
    )  # fmt: skip
    counter.trainer = trainer
    trainer.train(resume_from_checkpoint=resume)
    return trainer, counter.counted


def main(folder, name, attribution):
    how = name, attribution, dtype_of(name), 2
    trainer, counted = train(folder, *how)
    trainer.save_model(folder / "whole")
    logged = [row["addrop_fraction_dropped"] for row in trainer.state.log_history if "loss" in row]
    resumed, _ = train(folder / "again", *how, resume=folder / f"checkpoint-{SAVED}")
    resumed.save_model(folder / "resumed")
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps({"counted": counted, "logged": logged}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, name, *attributions = sys.argv[1:]
    for attribution in attributions:
        main(Path(folder) / attribution, name, attribution)
    dist.destroy_process_group()
