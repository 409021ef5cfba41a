"""Measures beside the score: loss, calibration, the gap between training and held-out loss, texts that lose tokens."""

import numpy as np
import pytest
import torch
from lab_runs import one_thread, sticks  # noqa: F401
from sklearn.metrics import accuracy_score, log_loss

from attrdrop import metrics
from attrdrop.lab.points.data import from_npz
from attrdrop.lab.points.readers import Reading
from attrdrop.lab.points.settings import PointSettings
from attrdrop.lab.points.training import PointTrainer
from attrdrop.lab.text import tasks
from attrdrop.lab.text.evaluation import DELETED, mean_loss, predictions, without_tokens
from attrdrop.lab.text.settings import Settings
from attrdrop.lab.text.training import Trainer


@pytest.fixture(scope="module")
def trained(tiny_bert):
    """A trainer on few sentences, with the log loss as its metric, and what it trained."""
    settings = Settings(model=str(tiny_bert), epochs=2, lr=1e-3, max_length=32, metric="log-loss")
    trainer = Trainer(settings, tasks.rotten_tomatoes().limited(40, 24, 24))
    return trainer, *trainer.trained("ad-drop", 0)


def test_measures_are_those_of_the_test_split(trained):
    trainer, run, model = trained
    rows = trainer.test_rows
    found = predictions(model, trainer.kind, rows)
    with torch.no_grad():
        alone = [model(**trainer.kind.collate(0)([row])).logits[0].double().softmax(0).tolist() for row in rows]
    labels = [row["labels"] for row in rows]
    assert found.expected == labels
    assert torch.tensor(found.log_p).exp().tolist() == [pytest.approx(row, abs=1e-5) for row in alone]
    assert run.measures["loss"] == run.test_score == pytest.approx(log_loss(labels, alone), rel=1e-4)
    assert run.measures["accuracy"] == accuracy_score(labels, [row.index(max(row)) for row in alone])
    log_p = torch.tensor(found.log_p)
    assert run.measures["calibration_error"] == metrics.calibration_error(log_p, torch.tensor(labels))
    assert run.measures["brier_score"] == metrics.brier_score(log_p, torch.tensor(labels))


def test_the_log_loss_chooses_the_epoch_of_the_lowest_one(trained):
    _, run, _ = trained
    assert run.dev_score == min(epoch.dev_loss for epoch in run.epochs)


def test_the_fitted_loss_is_without_dropout_and_masks(trained):
    """Of the training rows, as many as development ones; under dropout and masks the loss is another."""
    trainer, run, model = trained
    assert len(trainer.watched_rows) == 24
    best = run.epochs[run.best_epoch - 1]
    assert best.fitted_loss == mean_loss(model, trainer.kind, trainer.watched_rows)
    assert best.fitted_loss == pytest.approx(predictions(model, trainer.kind, trainer.watched_rows).mean_loss, rel=1e-5)
    assert best.fitted_loss != best.train_loss


def test_deleted_tokens(trained):
    trainer, run, model = trained
    rows, special = trainer.test_rows, {*trainer.kind.tokenizer.all_special_ids}
    one_word = rows[0] | {name: rows[0][name][:3] for name in ("input_ids", "attention_mask")}
    one_word["input_ids"][2] = rows[0]["input_ids"][-1]  # [CLS] word [SEP]
    count = sum(len(row["input_ids"]) - 2 for row in rows)
    before = [row["input_ids"] for row in rows]
    for share in DELETED:
        found = without_tokens(rows, share, special)
        for row, whole, longer in zip(found, rows, before, strict=True):
            ids = row["input_ids"]
            assert {len(value) for value in row.values() if isinstance(value, list)} == {len(ids)}
            assert (ids[0], ids[-1], row["labels"]) == (whole["input_ids"][0], whole["input_ids"][-1], whole["labels"])
            remaining = iter(longer)  # of the smaller share, in its order
            assert all(token in remaining for token in ids)
        before = [row["input_ids"] for row in found]
        left = sum(len(row["input_ids"]) - 2 for row in found)
        assert left / count == pytest.approx(1 - share, abs=4 * (share * (1 - share) / count) ** 0.5)
        assert without_tokens([one_word], share, special) == [one_word]
    scores = [predictions(model, trainer.kind, without_tokens(rows, share, special)).mean_loss for share in DELETED]
    assert run.deletion_score == pytest.approx(sum(scores) / 3)


def test_tokens_with_labels_are_not_deleted(tiny_bert):
    settings = Settings(model=str(tiny_bert), epochs=2, max_length=32)
    run = Trainer(settings, tasks.load_task("brown-names").limited(16, 8, 8)).run("plain", 0)
    assert run.deletion_score is None
    assert set(run.measures) == {"loss"}


def test_a_run_on_clouds_has_the_same_measures(tmp_path):
    np.savez(tmp_path / "sticks.npz", **sticks())
    settings = PointSettings(model="pointnet", width=0.1, points=24, epochs=3, batch_size=16, arms=("plain",))
    trainer = PointTrainer(settings, from_npz(tmp_path / "sticks.npz", Reading(24)))
    run, model = trainer.trained("plain", 0)
    logits, labels = trainer.logits(model, trainer.task.test), trainer.task.test.labels
    assert run.loss == run.epochs[-1].test_loss == torch.nn.functional.cross_entropy(logits, labels).item()
    assert run.brier_score == metrics.brier_score(logits, labels)
    assert run.epochs[-1].fitted_loss != run.epochs[-1].train_loss
