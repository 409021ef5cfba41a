"""What masks do to a fine-tuned model that was not trained under them (after Section 2.2)."""

import dataclasses
from functools import partial
from typing import Any

import torch

from attrdrop.lab.errors import RunError
from attrdrop.lab.names import ADDROP, PLAIN
from attrdrop.lab.text.evaluation import EVAL_BATCH, EVAL_SEED
from attrdrop.lab.text.examples import SEQ2SEQ
from attrdrop.lab.text.kinds import Prediction
from attrdrop.lab.text.methods import ADDropMethod, make_method
from attrdrop.lab.text.models import load_model
from attrdrop.lab.text.training import Trainer

RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
LAYERS = ("first", "all")
DROPS: dict[str, dict[str, Any]] = {
    "high": {"region": "high"}, "low": {"region": "low"}, "random": {"attribution": "RD"},
}  # fmt: skip


def measure(trainer: Trainer, seed: int) -> dict[str, Any]:
    """Rows with layers, drop, rate, and the loss and score of the development split: a plainly fine-tuned model under
    masks that take that share of each row of attention, by the gold label's attribution; at rate 0 nothing is dropped.

    Raises RunError for text to text, whose score needs a text that is written without masks.
    """
    if trainer.kind.name == SEQ2SEQ:
        raise RunError(f"the probe cannot mask what {SEQ2SEQ} writes; leave the task out")
    _, trained = trainer.trained(PLAIN, seed)
    model, _ = load_model(ADDROP, seed, trainer.settings, trainer.kind)  # whose attention can be masked
    model.load_state_dict(trained.state_dict())
    settings = dataclasses.replace(trainer.settings, q=1.0, target="gold", pass1="eval", cross_tuning=False)
    rows = []
    for layers in LAYERS:
        rows.append({"layers": layers, "drop": "none", "rate": 0.0, **_scored(trainer, model, None)})
        for drop, changes in DROPS.items():
            for rate in RATES:
                changed = dataclasses.replace(settings, layers=layers, p=rate, **changes)
                method = make_method(ADDROP, model, changed, seed)
                assert isinstance(method, ADDropMethod)
                rows.append({"layers": layers, "drop": drop, "rate": rate, **_scored(trainer, model, method)})
    return {"rows": rows, "metric": dataclasses.asdict(trainer.metric)}


def _scored(trainer: Trainer, model: Any, method: ADDropMethod | None) -> dict[str, float]:
    collate, found = trainer.kind.collate(EVAL_SEED), Prediction()
    for start in range(0, len(trainer.dev_rows), EVAL_BATCH):
        part = trainer.dev_rows[start : start + EVAL_BATCH]
        batch = collate(part).to(trainer.device)
        model.train()  # AD-DROP does nothing outside of training; its first pass runs without dropout here
        masks = method.addrop.attribute(**batch) if method else None
        model.eval()
        masked = model if masks is None else partial(model, attrdrop=masks)
        with torch.no_grad():
            found += trainer.kind.predict(masked, part, batch)
    return {"loss": found.mean_loss, "score": trainer.kind.score(trainer.metric_name, found)}
