"""The commands `attrdrop maps` and `attrdrop maps-points`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrdrop.lab.cli import images, points
from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import console
from attrdrop.lab.images.settings import PRESETS, ImageData, ImageSettings
from attrdrop.lab.names import PLAIN
from attrdrop.lab.points.settings import PRESETS as POINT_PRESETS
from attrdrop.lab.points.settings import PointData, PointSettings
from attrdrop.lab.runs.settings import MapOptions

TABLE = "rules.csv"
COLUMNS = {  # of the table, and how they are shown
    "rank_accuracy": ("rank acc., %", 100, 1),
    "mass_accuracy": ("mass acc., %", 100, 1),
    "pointing_game": ("peak on object, %", 100, 1),
    "flipping": ("flip top, %", 100, 1),
    "milliseconds": ("ms each", 1, 2),
}
TRAINED = ("model", "epochs", "batch_size", "lr", "weight_decay", "first_seed", "device")  # settings of both
KEPT = (*TRAINED, "weights")
POINTS_KEPT = (*TRAINED, "width", "points", "sampling", "normals", "jitter", "rotate")


@command(
    PRESETS,
    "demo: few images and epochs.",
    without=[field.name for field in dataclasses.fields(ImageSettings) if field.name not in KEPT],
)
def maps(options: MapOptions, data: ImageData, settings: ImageSettings) -> None:
    """Draw the relevance of validation images by several rules, before and after training.

    Look at it before a long run: if it does not lie on the objects, use
    another rule. If the objects are known (mnist, planted, masks of an
    .npz file, XML boxes), the table says how much of it lies on them.
    "Flip top" is the mean probability of the class as the most relevant
    patches are removed; lower is better, and the last row has a random
    order.
    """
    from attrdrop.lab.images.maps import drawn
    from attrdrop.lab.images.training import ImageTrainer

    _compare(options, lambda settings: ImageTrainer(settings, images.load(data)), settings, drawn)


@command(
    POINT_PRESETS,
    "demo: a narrow model and few points.",
    without=[field.name for field in dataclasses.fields(PointSettings) if field.name not in POINTS_KEPT],
    output=Path("runs/maps-points"),
    rules=("epsilon-flat", "epsilon", "gradient-times-input"),
    epsilons=(1e-6,),
    samples=8,
)
def maps_points(options: MapOptions, data: PointData, settings: PointSettings) -> None:
    """Draw the relevance of validation clouds by several rules, before and after training.

    "Flip top" is the mean probability of the class as the most relevant
    points are removed; lower is better, and the last row has a random
    order.
    """
    from attrdrop.lab.points.maps import drawn
    from attrdrop.lab.points.training import PointTrainer

    _compare(options, lambda settings: PointTrainer(settings, points.load(data, settings)), settings, drawn)


def _compare(options: MapOptions, make: Callable[[Any], Any], settings: Any, drawn: Callable[..., bytes]) -> None:
    """Write the figures and the table; `make` gives a trainer for settings."""
    from attrdrop.lab.runs.maps import compared
    from attrdrop.lab.runs.results import check_output, replace_files

    check_output(options.output, options.overwrite)
    trainer = make(dataclasses.replace(settings, arms=(PLAIN,), seeds=1))
    seed = settings.first_seed
    models = {"before": trainer.build(seed)}
    if options.train:
        with console.status("Training"):
            models["after"] = trainer.trained(PLAIN, seed)[1]
    files, frames = {}, []
    for moment, model in models.items():
        frame = compared(trainer, model, options)
        frames.append(frame.assign(moment=moment))
        files[f"maps_{moment}.png"] = drawn(trainer, model, options)
        console.print(_table(frame, f"{moment} training"))
    import pandas as pd

    files[TABLE] = pd.concat(frames).to_csv(index=False).encode()
    replace_files(options.output, files)
    console.print(f"Figures are in [bold]{options.output}[/]: {', '.join(files)}")


def _table(frame: Any, title: str) -> Any:
    from attrdrop.lab.runs.layout import WideTable

    shown = {name: how for name, how in COLUMNS.items() if frame[name].notna().any()}
    rows = [
        (
            row["rule"],
            [
                "-" if row[name] != row[name] else f"{factor * row[name]:.{digits}f}"
                for name, (_, factor, digits) in shown.items()
            ],
        )
        for row in frame.to_dict("records")
    ]
    return WideTable(title, [label for label, _, _ in shown.values()], rows)
