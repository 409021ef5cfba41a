"""AD-DROP in Lightning's Trainer, on one process or on each of a gloo group.

Run by torchrun with a file and cases, "optimisation:attribution" each; rank 0 saves what each gave.
"""

import sys

import torch
import torch.distributed as dist
from engines import place
from lightning.pytorch import LightningModule, Trainer
from models import build
from sentences import Sentences
from torch.utils.data import DataLoader, Subset

from attrdrop.integrations.lightning import ADDropCallback

EPOCHS, ACCUMULATED, COUNT, BATCH = 2, 2, 8, 2
SETTINGS = dict(p=0.4, q=0.5, iga_steps=3)


def rows():
    """Of each batch, the part of this process."""
    rank, processes = place()
    return DataLoader(Subset(Sentences(COUNT), range(rank, COUNT, processes)), batch_size=BATCH // processes)


class Classifier(LightningModule):
    def __init__(self, optimisation):
        super().__init__()
        self.net = build("bert", torch.float64)
        self.automatic_optimization = optimisation == "automatic"

    def training_step(self, inputs, index):
        loss = self.addrop(**inputs).loss
        if not self.automatic_optimization:
            self.manual_backward(loss / ACCUMULATED)
            if (index + 1) % ACCUMULATED == 0:
                self.optimizers().step()
                self.optimizers().zero_grad()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(optimisation, attribution):
    """The weights, and the fraction dropped in the last epoch."""
    options = {"accumulate_grad_batches": ACCUMULATED} if optimisation == "automatic" else {}
    processes = place()[1]
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", max_epochs=EPOCHS,
        use_distributed_sampler=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ADDropCallback(model="net", attribution=attribution, **SETTINGS)],
        **options,
    )  # fmt: skip
    classifier = Classifier(optimisation)
    trainer.fit(classifier, rows())
    weights = {name: weight.detach().clone() for name, weight in classifier.net.named_parameters()}
    return weights, trainer.callback_metrics["addrop_fraction_dropped"].item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    file, *cases = sys.argv[1:]
    results = {case: train(*case.split(":")) for case in cases}
    if dist.get_rank() == 0:
        torch.save(results, file)
    dist.destroy_process_group()
