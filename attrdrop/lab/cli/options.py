"""Command-line options that several commands share. Their defaults stand with each command."""

from pathlib import Path
from typing import Annotated

import typer

from attrdrop.lab.cli.terminal import ADDROP, DATA, MODEL, OUTPUT, RIVALS, TRAINING, option

Seeds = Annotated[int, option(TRAINING, "Runs per arm, each with its own seed.", min=1)]
FirstSeed = Annotated[int, option(TRAINING, "The first seed; the others follow it.", min=0)]
Device = Annotated[str, option(TRAINING, "auto, cpu or cuda.")]
Threads = Annotated[int | None, option(TRAINING, "CPU threads; PyTorch chooses without it.", min=1)]
Resumed = Annotated[
    Path, option(OUTPUT, "Folder for tables and figures. What it holds of the same experiment is not repeated.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace earlier results in the output folder.", rich_help_panel=OUTPUT)
]

# Of the commands that fine-tune on text
TaskType = Annotated[
    str | None,
    option(
        DATA,
        "classification, regression, token-classification, seq2seq, masked-lm or causal-lm; a named task has its own.",
    ),
]
Train = Annotated[
    Path | None, option(DATA, "Your own data: .csv, .tsv or .jsonl, for some task types .txt or .conll; also .gz.")
]
Dev = Annotated[Path | None, option(DATA, "Development file, used for early stopping; without it a tenth of --train.")]
Test = Annotated[Path | None, option(DATA, "Test file; without it the development score is reported.")]
Other = Annotated[
    str | None,
    option(
        DATA,
        "Other data sets or files with the same labels to evaluate on, with commas between: amazon-reviews, tweets.",
    ),
]
TextColumn = Annotated[
    str | None, option(DATA, "Column with the text; text, sentence and sentence1 are found by themselves.")
]
TextPairColumn = Annotated[str | None, option(DATA, "Column with the second text, for tasks on pairs.")]
LabelColumn = Annotated[
    str | None, option(DATA, "Column with the class, number or target text; label is found by itself.")
]
TrainSize = Annotated[int | None, option(DATA, "Use only so many training examples.", min=2)]
DevSize = Annotated[int | None, option(DATA, "Use only so many development examples.", min=1)]
TestSize = Annotated[int | None, option(DATA, "Use only so many test examples.", min=1)]
Model = Annotated[
    str,
    option(
        MODEL,
        "minilm (a package, no download), bert-tiny (shipped), scratch (small, untrained), a folder, or a hub id.",
    ),
]
MaxLength = Annotated[int, option(MODEL, "Longer texts are cut to so many tokens.", min=4)]
MetricName = Annotated[
    str | None, option(TRAINING, "What chooses the best epoch and is reported; the task has its own.")
]
Epochs = Annotated[int, option(TRAINING, "Most epochs a run takes.", min=1)]
BatchSize = Annotated[int, option(TRAINING, "Examples per step.", min=1)]
LearningRate = Annotated[float, option(TRAINING, "Learning rate of AdamW.")]
WeightDecay = Annotated[float, option(TRAINING, "Weight decay of AdamW.", min=0)]
Patience = Annotated[int, option(TRAINING, "Stop after so many epochs without a better development score.", min=1)]
P = Annotated[float, option(ADDROP, "Share of each row's positions that are candidates, highest attribution first.")]
Q = Annotated[float, option(ADDROP, "Probability with which a candidate is dropped.")]
IGASteps = Annotated[int, option(ADDROP, "Steps of the integral of IGA; each costs a pass per layer.", min=1)]
Layers = Annotated[str, option(ADDROP, "Layers to drop in: all, first, or numbers from 0 such as 0,1,2.")]
Attention = Annotated[
    str, option(ADDROP, "In encoder-decoder models: encoder, decoder, cross, or several with commas between.")
]
Pass1 = Annotated[str, option(ADDROP, "Attribution pass with ordinary dropout (train) or without (eval).")]
Rate = Annotated[float, option(RIVALS, "Share that attention-dropout, drop-head, hidden-cut and drop-key drop.")]
Consistency = Annotated[
    float, option(RIVALS, "Weight of the divergence between the two passes of r-drop and hidden-cut.")
]
