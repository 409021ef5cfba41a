"""The command `attrdrop evaluate-images`."""

import dataclasses
from pathlib import Path
from typing import Any

from attrdrop.lab.cli.images import load
from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import console
from attrdrop.lab.errors import InputError
from attrdrop.lab.images.settings import EvaluationOptions, ImageData, ImageSettings

COLUMNS = {  # of the table, and how they are called
    "top1": "top-1, %",
    "calibration_error": "calib. err., %",
    "rms_calibration_error": "RMS calib., %",
    "aurra": "AURRA, %",
    "aupr": "AUPR, %",
    "auroc": "AUROC, %",
    "rank_accuracy": "rank acc., %",
}
KEPT = ("model", "weights", "device")  # of the settings


@command(
    {},
    without=[field.name for field in dataclasses.fields(ImageSettings) if field.name not in KEPT]
    + ["train_size", "dev_size"],
)
def evaluate_images(options: EvaluationOptions, data: ImageData, settings: ImageSettings) -> None:
    """Score a trained image classifier: top-1, calibration, AURRA, and AUPR on out-of-distribution images.

    The first row is the test split of any data set that train-images
    reads; a folder may also consist of class folders only, like
    ImageNet's val. --shifted takes sets like ImageNet-R and -A, scored
    among the classes they have; --odd takes sets like ImageNet-O.
    """
    if not settings.weights:
        raise InputError("--weights: give a file of weights, a folder written by train-images --save, or pretrained.")
    from attrdrop.lab.device import resolve_device
    from attrdrop.lab.images.evaluation import Evaluator, table, task_and_folders
    from attrdrop.lab.images.models import build

    task, names = task_and_folders(data, load)
    model = build(settings.model, settings.weights, len(task.label_names), task.channels, task.size)
    evaluator = Evaluator(model, task, resolve_device(settings.device))
    with console.status("Scoring"):
        rows = [evaluator.test_row()]
        rows += [evaluator.shifted_row(Path(folder), names, data.image_size) for folder in options.shifted]
        rows += [evaluator.odd_row(Path(folder), names, data.image_size) for folder in options.odd]
    frame = table(rows)
    if options.output is not None:
        try:
            options.output.write_text(frame.to_csv(index=False))
        except OSError as error:
            raise InputError(f"--output: {options.output} cannot be written: {error.strerror or error}.") from error
    console.print(_table(frame))


def _table(frame: Any) -> Any:
    from attrdrop.lab.runs.layout import WideTable

    shown = [name for name in COLUMNS if name in frame and frame[name].notna().any()]
    rows = [
        (
            row["set"],
            [str(row["images"]), str(row["classes"])]
            + ["-" if row[name] != row[name] else f"{100 * row[name]:.1f}" for name in shown],
        )
        for row in frame.to_dict("records")
    ]
    return WideTable("", ["images", "classes", *(COLUMNS[name] for name in shown)], rows)
