"""The Trainer integration."""

import re
import warnings

import pytest
import torch
from models import build
from sentences import Sentences, arguments
from transformers import Trainer, TrainerCallback

from attrdrop import ADDropConfig, ADDropTrainer


def train(folder, trainer_class=ADDropTrainer, attention="attrdrop", resume=None, options=None, **more):
    model = build("bert", attention=attention)
    more = {"train_dataset": Sentences(), **more}
    trainer = trainer_class(model=model, args=arguments(folder, **(options or {})), **more)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_cross_tuning_is_seen_in_the_log(tmp_path):
    trainer = train(tmp_path, addrop=ADDropConfig(p=0.5, q=0.5))
    fractions = [row["addrop_fraction_dropped"] for row in trainer.state.log_history if "loss" in row]
    assert fractions[0] == 0.0
    assert 0.15 < fractions[1] < 0.5


def test_a_single_epoch_under_cross_tuning_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="a run of one epoch is plain training") as found:
        ADDropTrainer(model=build("bert"), args=arguments(tmp_path, num_train_epochs=1), train_dataset=Sentences())
    assert __file__ in [entry.filename for entry in found]


class Stream(torch.utils.data.IterableDataset):
    """Data without length."""

    def __init__(self, count=24):
        self.rows = Sentences(count)

    def __iter__(self):
        return iter(self.rows[index] for index in range(len(self.rows)))


def fractions_of(trainer):
    return [row["addrop_fraction_dropped"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        (dict(max_steps=5), {}, r"AD-DROP begins in epoch 2, so a run of one epoch \(5 steps\) is plain training"),
        (dict(max_steps=3), dict(train_dataset=Stream()), r"it is unknown whether 3 steps \(max_steps\) reach it"),
        (dict(), dict(addrop=ADDropConfig(every=2)), "begins in epoch 3, so a run of 2 epochs is plain training"),
        (
            dict(max_steps=5), dict(addrop=ADDropConfig(alternate="steps", every=5)),
            "AD-DROP begins after 5 steps, so a run of 5 is plain training",
        ),
    ],
    ids=["max_steps", "no length", "every", "steps"],
)  # fmt: skip
def test_a_run_that_never_comes_to_addrop_is_warned_about_once(tmp_path, options, more, message):
    options = dict(logging_strategy="steps", logging_steps=1, **options)
    with pytest.warns(UserWarning, match="with cross_tuning") as found:
        trainer = train(tmp_path, options=options, **more)
    assert set(fractions_of(trainer)) == {0.0}
    said = [entry for entry in found if "cross_tuning" in str(entry.message)]
    assert len(said) == 1
    assert re.search(message, str(said[0].message))
    assert said[0].filename == __file__


@pytest.mark.filterwarnings("ignore:with cross_tuning")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_passes_over_data_without_length_are_epochs(tmp_path, accumulation):
    """Eight samples: two steps a pass of batches of four, or one of two batches."""
    options = dict(max_steps=8 // accumulation, logging_strategy="steps", logging_steps=1)
    options["gradient_accumulation_steps"] = accumulation
    trainer = train(tmp_path, train_dataset=Stream(8), options=options)
    is_active = [fraction > 0 for fraction in fractions_of(trainer)]
    assert is_active == ([False, False, True, True] * 2 if accumulation == 1 else [False, True] * 2)


def test_an_epoch_that_was_stopped_early_is_over(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step % 2 == 0

    trainer = train(tmp_path, options=dict(logging_strategy="steps", logging_steps=1), callbacks=[Stop()])
    assert [fraction > 0 for fraction in fractions_of(trainer)] == [False, False, True, True]


def test_alternation_by_steps(tmp_path):
    options = dict(max_steps=6, logging_strategy="steps", logging_steps=1, gradient_accumulation_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = train(
            tmp_path, train_dataset=Stream(64), options=options, addrop=ADDropConfig(alternate="steps", every=2)
        )
    assert [fraction > 0 for fraction in fractions_of(trainer)] == [False, False, True, True, False, False]


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_each_model_of_model_init_is_trained_with_addrop(tmp_path, name):
    made = []

    def model_init():
        made.append(build(name))
        return made[-1]

    config = ADDropConfig(p=0.5, q=0.5, cross_tuning=False)
    trainer = ADDropTrainer(model_init=model_init, args=arguments(tmp_path), train_dataset=Sentences(), addrop=config)
    trainer.train()
    first = trainer.addrop
    trainer.train()
    assert len(made) == 3
    assert first.config is trainer.addrop.config is config
    fractions = fractions_of(trainer)
    assert len(fractions) == 2
    assert min(fractions) > 0.1


class CountLayers(TrainerCallback):
    """How many layers each step masked, by run."""

    def __init__(self):
        self.runs = []
        self.trainer = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.runs.append([])

    def on_step_end(self, args, state, control, **kwargs):
        self.runs[-1].append(self.trainer.addrop.statistics().valid)
        self.trainer.addrop.reset_statistics()


def test_a_search_trains_each_trials_model_with_addrop(tmp_path):
    """The trials' models have two, three and one layers."""
    optuna = pytest.importorskip("optuna")
    depths = [2, 3, 1]

    def model_init(trial):
        return build("bert", num_hidden_layers=1 if trial is None else depths[trial.number])

    counter = CountLayers()
    trainer = ADDropTrainer(
        model_init=model_init, args=arguments(tmp_path, max_steps=2, logging_strategy="no"), callbacks=[counter],
        train_dataset=Sentences(8), eval_dataset=Sentences(4), addrop=ADDropConfig(cross_tuning=False),
    )  # fmt: skip
    counter.trainer = trainer
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
        n_trials=3, backend="optuna", direction="minimize", sampler=optuna.samplers.RandomSampler(0),
    )  # fmt: skip
    assert best.run_id in "012"
    one = counter.runs[2]
    assert min(one) > 0
    assert [[valid / ones for valid, ones in zip(run, one, strict=True)] for run in counter.runs] == [
        [depth] * 2 for depth in depths
    ]


def test_without_drops_it_is_the_plain_trainer(tmp_path):
    ours = train(tmp_path / "a", addrop=ADDropConfig(p=0.0, cross_tuning=False))
    plain = train(tmp_path / "b", trainer_class=Trainer, attention="sdpa")
    for (name, a), (_, b) in zip(ours.model.named_parameters(), plain.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "options",
    [
        dict(gradient_accumulation_steps=3, label_smoothing_factor=0.1),
        dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}),
        dict(bf16=True),
    ],
    ids=["accumulation", "checkpointing", "bf16"],
)
def test_options_of_the_trainer(tmp_path, options):
    trainer = train(tmp_path, addrop=ADDropConfig(p=0.5, q=0.5, cross_tuning=False), options=options)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert all(row["addrop_fraction_dropped"] > 0.1 for row in rows)
    assert trainer.evaluate(Sentences(4))["eval_loss"] > 0


def test_a_resumed_run_draws_the_same_masks(tmp_path):
    config = ADDropConfig(p=0.5, q=0.5, cross_tuning=False)
    whole = train(tmp_path / "a", addrop=config, options=dict(save_strategy="epoch"))
    checkpoint = sorted((tmp_path / "a").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[0]
    resumed = train(tmp_path / "b", addrop=config, resume=str(checkpoint))
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
