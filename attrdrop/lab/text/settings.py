"""The settings of an experiment on text, and its data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import ADDROP, PLAIN
from attrdrop.lab.runs.settings import (
    Device,
    FirstSeed,
    Option,
    Options,
    Panel,
    SeededOptions,
    Seeds,
    arms_of,
    non_negative,
    one_of,
    positive,
    share,
)
from attrdrop.ops.keep_mask import REGIONS

ATTENTION_DROPOUT, R_DROP, DROP_HEAD = "attention-dropout", "r-drop", "drop-head"
HIDDEN_CUT, DROP_KEY, MIXOUT, CHILD_TUNING = "hidden-cut", "drop-key", "mixout", "child-tuning"
ARMS = (PLAIN, ADDROP, ATTENTION_DROPOUT, R_DROP, DROP_HEAD, HIDDEN_CUT, DROP_KEY, MIXOUT, CHILD_TUNING)
SPANS = ("attention", "random")  # what places those of hidden-cut
R_DROP_LOSSES = ("mean", "sum")
FILES = ("train", "dev", "test", "text_column", "text_pair_column", "label_column", "encoding")  # fields of Data

# Some minutes on two CPU cores; few sentences and many epochs, on which plain training overfits (docs/evidence.md).
DEMO: dict[str, Any] = {
    "model": "bert-tiny",
    "seeds": 5,
    "epochs": 8,
    "early_stopping_patience": 8,
    "batch_size": 32,
    "train_size": 512,
    "dev_size": 300,
    "test_size": 1000,
    "max_length": 40,
    "lr": 3e-4,
    "p": 0.9,
    "q": 0.9,
}
PRESETS = {"demo": DEMO}

P = Annotated[
    float, Option(Panel.ADDROP, "Share of each row's positions that are candidates, highest attribution first.")
]
Q = Annotated[float, Option(Panel.ADDROP, "Probability with which a candidate is dropped.")]
Layers = Annotated[str, Option(Panel.ADDROP, "Layers to drop in: all, first, or numbers from 0 such as 0,1,2.")]


@dataclass(frozen=True)
class Data(Options):
    """A task by name or from files, and how much of it is used."""

    task: Annotated[
        str,
        Option(
            Panel.DATA, "rotten-tomatoes or another bundled set, or one from the hub such as rte (package datasets)."
        ),
    ] = "rotten-tomatoes"
    task_type: Annotated[
        str | None,
        Option(
            Panel.DATA,
            "classification, regression, token-classification, seq2seq, masked-lm or causal-lm; a named task has a "
            "default.",
        ),
    ] = None
    train: Annotated[
        Path | None,
        Option(Panel.DATA, "Your own data: .csv, .tsv or .jsonl, for some task types .txt or .conll; .gz works too."),
    ] = None
    dev: Annotated[
        Path | None,
        Option(Panel.DATA, "Development file, used for early stopping; by default a tenth of --train."),
    ] = None
    test: Annotated[Path | None, Option(Panel.DATA, "Test file; without it the development score is reported.")] = None
    other: Annotated[
        tuple[str, ...],
        Option(
            Panel.DATA,
            "Other data sets or files with the same labels to evaluate on, separated by commas: amazon-reviews, "
            "tweets. Map different labels after a colon, as in hans.tsv:non-entailment=neutral+contradiction.",
        ),
    ] = ()
    text_column: Annotated[
        str | None,
        Option(Panel.DATA, "Column with the text; text, sentence and sentence1 are recognised."),
    ] = None
    text_pair_column: Annotated[str | None, Option(Panel.DATA, "Column with the second text, for pair tasks.")] = None
    label_column: Annotated[
        str | None,
        Option(Panel.DATA, "Column with the class, number or target text; label is recognised."),
    ] = None
    encoding: Annotated[
        str, Option(Panel.DATA, "Encoding of your files; older European files use cp1252 or latin-1.")
    ] = "utf-8"
    train_size: Annotated[int | None, Option(Panel.DATA, "Use only this many training examples.", min=2)] = None
    dev_size: Annotated[int | None, Option(Panel.DATA, "Use only this many development examples.", min=1)] = None
    test_size: Annotated[int | None, Option(Panel.DATA, "Use only this many test examples.", min=1)] = None

    @property
    def files(self) -> dict[str, Any]:
        """The user's files and their columns."""
        return {name: getattr(self, name) for name in FILES}


@dataclass(frozen=True)
class Evaluation(Options):
    """A saved model, and the sets to score it on."""

    model: Annotated[str, Option(Panel.MODEL, "Folder of a saved model, or a hub id.", is_argument=True)]
    on: Annotated[
        tuple[str, ...],
        Option(
            Panel.DATA,
            "Data sets and files, separated by commas: rotten-tomatoes, tweets, reviews.csv, "
            "rte:not_entailment=neutral+contradiction. By default the set that the model was trained on.",
        ),
    ] = ()
    split: Annotated[
        str,
        Option(Panel.DATA, "Split of a named data set: test, dev or train.", check=one_of(("test", "dev", "train"))),
    ] = "test"
    test_size: Annotated[int | None, Option(Panel.DATA, "Use only this many examples of each set.", min=1)] = None
    text_column: Annotated[str | None, Option(Panel.DATA, "Text column of files.")] = None
    text_pair_column: Annotated[str | None, Option(Panel.DATA, "Second text column of files.")] = None
    label_column: Annotated[
        str | None, Option(Panel.DATA, "Label column of files; without one, a file only gets predictions.")
    ] = None
    encoding: Annotated[str, Option(Panel.DATA, "Encoding of files.")] = "utf-8"
    task_type: Annotated[str | None, Option(Panel.MODEL, "As in finetune, if the model does not say it.")] = None
    max_length: Annotated[int | None, Option(Panel.MODEL, "Longer texts are cut to this many tokens.", min=4)] = None
    metric: Annotated[str | None, Option(Panel.DATA, "As in finetune; by default the one used in training.")] = None
    device: Device = "auto"
    output: Annotated[Path | None, Option(Panel.RESULTS, "Folder for the scores and predictions.")] = None
    overwrite: Annotated[
        bool, Option(Panel.RESULTS, "Replace earlier results in the output folder.", names=("--overwrite",))
    ] = False
    glue: Annotated[
        str | None,
        Option(
            Panel.RESULTS,
            "GLUE task: also write the file for its server, for the hidden test split or the file given by --on.",
        ),
    ] = None


@dataclass(frozen=True)
class Settings(SeededOptions):
    """Hyper-parameters of all arms; those of AD-DROP are named as in `attrdrop.ADDrop`.

    metric chooses the best epoch, None for the task's own. rate is what the rivals of AD-DROP drop, consistency the
    weight of the divergence in the loss of R-Drop and HiddenCut.
    """

    model: Annotated[
        str,
        Option(
            Panel.MODEL,
            "minilm (a package, no download), bert-tiny (bundled), scratch (small, untrained), a folder, or a hub id.",
        ),
    ] = "minilm"
    arms: Annotated[
        tuple[str, ...],
        Option(Panel.TRAINING, f"What to compare, separated by commas: {', '.join(ARMS)}.", check=arms_of(ARMS)),
    ] = (PLAIN, ADDROP)
    metric: Annotated[
        str | None,
        Option(Panel.TRAINING, "Score that chooses the best epoch and is reported; each task has a default."),
    ] = None
    seeds: Seeds = 3
    first_seed: FirstSeed = 0
    epochs: Annotated[int, Option(Panel.TRAINING, "Maximum number of epochs.", min=1)] = 6
    batch_size: Annotated[int, Option(Panel.TRAINING, "Examples per step.", min=1)] = 16
    lr: Annotated[float, Option(Panel.TRAINING, "Learning rate of AdamW.", check=positive("learning rate", "2e-5"))] = (
        2e-5
    )
    weight_decay: Annotated[float, Option(Panel.TRAINING, "Weight decay of AdamW.", min=0)] = 0.01
    max_length: Annotated[int, Option(Panel.MODEL, "Longer texts are cut to this many tokens.", min=4)] = 128
    early_stopping_patience: Annotated[
        int, Option(Panel.TRAINING, "Stop after this many epochs without a better development score.", min=1)
    ] = 3
    device: Device = "auto"
    p: P = 0.3
    q: Q = 0.3
    attribution: Annotated[
        str,
        Option(
            Panel.ADDROP,
            "What positions are ranked by: gradient (GA), its integral (IGA), attention (AA), or nothing (RD).",
        ),
    ] = "GA"
    iga_steps: Annotated[
        int | None,
        Option(Panel.ADDROP, "Steps of IGA's integral; each costs a pass per layer. Default 20, with gauss 5.", min=1),
    ] = None
    iga_rule: Annotated[
        str, Option(Panel.ADDROP, "Rule of the integral: riemann, or gauss, which needs fewer steps.")
    ] = "riemann"
    iga_scope: Annotated[
        str,
        Option(
            Panel.ADDROP,
            "What IGA scales: each layer separately (layer), or all at once (joint), at one pass per step.",
        ),
    ] = "layer"
    layers: Layers = "all"
    attention: Annotated[
        str,
        Option(Panel.ADDROP, "In encoder-decoder models: encoder, decoder, cross, or several, separated by commas."),
    ] = "encoder"
    units: Annotated[
        tuple[str, ...],
        Option(
            Panel.ADDROP,
            "What is dropped, separated by commas: attention, feed-forward, heads; the latter two only with GA and RD.",
        ),
    ] = ("attention",)
    target: Annotated[
        str, Option(Panel.ADDROP, "What is attributed: the logit of the pseudo (predicted) or gold label.")
    ] = "pseudo"
    pass1: Annotated[
        str, Option(Panel.ADDROP, "Attribution pass with ordinary dropout (train) or without it (eval).")
    ] = "train"
    pass1_dtype: Annotated[
        str | None, Option(Panel.ADDROP, "Approximate: bfloat16 runs only the attribution pass in that precision.")
    ] = None
    region: Annotated[
        str,
        Option(
            Panel.ADDROP,
            "Which attributions are candidates: high, or low as in the paper's preliminary experiment.",
            check=one_of(REGIONS),
        ),
    ] = "high"
    cross_tuning: Annotated[
        bool,
        Option(Panel.ADDROP, "Train plainly in odd epochs and with AD-DROP in even ones, or with AD-DROP in all."),
    ] = True
    mask_every: Annotated[
        int, Option(Panel.ADDROP, "Approximate: only every n-th step has masks, the others are plain.", min=1)
    ] = 1
    sample_share: Annotated[
        float, Option(Panel.ADDROP, "Approximate: probability with which a sample is attributed and has a mask.")
    ] = 1.0
    rate: Annotated[
        float,
        Option(Panel.RIVALS, "Share that each rival except r-drop drops of its own units.", check=share()),
    ] = 0.1
    consistency: Annotated[
        float,
        Option(
            Panel.RIVALS,
            "Weight of the divergence between the two passes of r-drop and hidden-cut.",
            check=non_negative("weight"),
        ),
    ] = 1.0
    spans: Annotated[
        str, Option(Panel.RIVALS, "How hidden-cut places its spans: attention or random.", check=one_of(SPANS))
    ] = SPANS[0]
    r_drop_loss: Annotated[
        str,
        Option(
            Panel.RIVALS,
            "How r-drop combines its two cross-entropies: mean, with the weight of other arms, or sum, as published.",
            check=one_of(R_DROP_LOSSES),
        ),
    ] = R_DROP_LOSSES[0]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cross_tuning and self.epochs < 2 and ADDROP in self.arms:
            raise InputError(
                f"--epochs: {self.epochs} never reaches an AD-DROP epoch, which under cross-tuning are the even ones; "
                "take 2 or more, or --no-cross-tuning."
            )

    @property
    def addrop_arguments(self) -> dict[str, Any]:
        names = (
            "p", "q", "attribution", "iga_steps", "iga_rule", "iga_scope", "target", "pass1", "pass1_dtype", "region",
            "cross_tuning", "mask_every", "sample_share",
        )  # fmt: skip
        attention = [part.strip() for part in self.attention.split(",")]
        return {name: getattr(self, name) for name in names} | {
            "layers": _parse_layers(self.layers),
            "attention": attention,
            "units": self.units,
        }


def _parse_layers(text: str) -> str | list[int]:
    if text in ("all", "first"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--layers: {text!r} must be 'all', 'first' or numbers from 0 such as 0,1,2.") from None
