"""Every arm at every seed, with results on disk after each run; what is done already is not done again."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attrdrop import image_plots
from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.images.data import ImageTask
from attrdrop.lab.images.report import KIND, OCCLUDED_FIGURE, RESULTS, ImageReport, maps_figure
from attrdrop.lab.images.settings import RELDROP, ImageSettings
from attrdrop.lab.images.training import ImageTrainer, as_dict
from attrdrop.lab.results import check_output, described, replace_file, unwritable


class ImageExperiment:
    """Validates everything at construction and writes nothing until `run`."""

    def __init__(
        self, settings: ImageSettings, task: ImageTask, device: torch.device, output: Path, overwrite: bool = False
    ) -> None:
        self.settings, self.output = settings, output
        self.trainer = ImageTrainer(settings, task, device)
        header = _header(settings, task, device)
        self.report = ImageReport(header, _finished_runs(header, output, overwrite))
        self.report.header["complete"] = not self.planned
        if self.planned:
            self.trainer.check()

    @property
    def planned(self) -> list[tuple[int, str]]:
        """What is left to do. The order of arms turns from seed to seed, so that a slow minute hits all of them."""
        done = {(run["seed"], run["arm"]) for run in self.report.runs}
        arms = self.settings.arms
        order = [
            (seed, arm)
            for place, seed in enumerate(self.settings.seed_list)
            for arm in arms[place % len(arms) :] + arms[: place % len(arms)]
        ]
        return [run for run in order if run not in done]

    def work(self, arm: str) -> float:
        """Rough cost of one run, in the units that `run` reports."""
        return self.trainer.work(arm)

    def run(self, starting: Callable[[str, int], None], advance: Callable[[float], None]) -> None:
        """Do every run that is left, announcing each; whatever ends this early, the finished runs are on disk."""
        self._save(figures=not self.planned)
        try:
            for seed, arm in self.planned:
                starting(arm, seed)
                self._run_one(arm, seed, advance)
                self.report.header["complete"] = not self.planned
                self._save(figures=not self.planned)
        except BaseException:  # it may have come in the middle of a file
            self._save()
            raise

    def _run_one(self, arm: str, seed: int, advance: Callable[[float], None]) -> None:
        try:
            run, model = self.trainer.run(arm, seed, advance)
        except (RunError, InputError, torch.OutOfMemoryError) as error:  # InputError: an image that cannot be read
            advice = "; try a smaller --batch-size." if isinstance(error, torch.OutOfMemoryError) else ""
            raise RunError(f"{arm}, seed {seed}: {error}{advice}") from error
        if seed == self.settings.first_seed:
            self._draw(arm, model)
        self.report.runs.append(as_dict(run))  # last: a run that counts as finished has its figures

    def _draw(self, arm: str, model: nn.Module) -> None:
        """Relevance on test images, and for RelDrop what it shows to the model."""
        figure = io.BytesIO()
        images, relevance, titles = self.trainer.maps(model)
        image_plots.heat_maps(images, relevance, figure, titles)
        figures = {maps_figure(arm): figure.getvalue()}
        if arm == RELDROP:
            figure = io.BytesIO()
            image_plots.contact_sheet(self.trainer.occluded(model), figure)
            figures[OCCLUDED_FIGURE] = figure.getvalue()
        try:
            for name, content in figures.items():
                replace_file(self.output / name, content)
        except OSError as error:
            raise unwritable(self.output, error) from error

    def _save(self, figures: bool = True) -> None:
        try:
            self.report.save(self.output, figures)
        except OSError as error:
            raise unwritable(self.output, error) from error


def _finished_runs(header: dict[str, Any], output: Path, overwrite: bool) -> list[dict[str, Any]]:
    """Runs of the very same experiment that the folder holds."""
    if overwrite or not (output / RESULTS).is_file():
        check_output(output, overwrite)
        return []
    found = ImageReport.load(output, "; give another folder, or --overwrite")
    if any(found.header.get(key) != json.loads(json.dumps(header[key])) for key in ("settings", "task")):
        raise InputError(
            f"--output: {output} holds results of other settings or data; give another folder, or --overwrite."
        )
    header["started"] = found.header["started"]
    return found.runs


def _header(settings: ImageSettings, task: ImageTask, device: torch.device) -> dict[str, Any]:
    return described(device) | {
        "kind": KIND,
        "task": {
            "name": task.name,
            "labels": task.label_names,
            "sizes": {"train": len(task.train.labels), "test": len(task.test.labels)},
            "pixels": [task.channels, *task.size],
            "checksums": [task.train.checksum(), task.test.checksum()],
        },
        "settings": dataclasses.asdict(settings),
    }
