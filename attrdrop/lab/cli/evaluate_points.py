"""The command `attrdrop evaluate-points`."""

from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.points import load
from attrdrop.lab.cli.terminal import console
from attrdrop.lab.points.settings import PointData, PointEvaluation

COLUMNS = {"accuracy": "accuracy, %", "class_accuracy": "class acc., %", "calibration_error": "calib. err., %"}
LOST = "accuracy_lost_"


@command({}, without=("train_size", "dev_size"))
def evaluate_points(options: PointEvaluation, data: PointData) -> None:
    """Score a point cloud classifier saved by train-points: loss, accuracy, and accuracy as points are lost.

    MODEL is a folder such as runs/points/models/reldrop, which records
    its number of points and width; name the data set as for train-points.
    """
    from attrdrop.lab.points.evaluation import restored, scores, settings_of
    from attrdrop.lab.points.training import PointTrainer
    from attrdrop.lab.runs.layout import WideTable
    from attrdrop.lab.runs.results import replace_files

    settings, labels = settings_of(options.model, options.device)
    trainer = PointTrainer(settings, load(data, settings))
    model = restored(options.model, trainer, labels)
    with console.status("Scoring"):
        row = scores(trainer, model)
    if options.output is not None:
        import pandas as pd

        replace_files(options.output.parent, {options.output.name: pd.DataFrame([row]).to_csv(index=False).encode()})
    cells = [str(row["clouds"]), str(row["classes"]), f"{row['loss']:.3f}", *(_percent(row[name]) for name in COLUMNS)]
    console.print(WideTable("", ["clouds", "classes", "loss", *COLUMNS.values()], [(row["set"], cells)]))
    console.print()
    lost = {f"{name.removeprefix(LOST)} %": _percent(row[name]) for name in row if name.startswith(LOST)}
    lost["mean"] = _percent(row["point_loss"])
    console.print(WideTable("Points lost", list(lost), [("accuracy, %", list(lost.values()))]))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
