"""A trained image classifier on its test split, on shifted sets, and on images of none of its classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attrdrop import lrp, metrics
from attrdrop.lab.errors import InputError, listed
from attrdrop.lab.images.data import IMAGENET_MEAN, IMAGENET_STD, Images, ImageTask
from attrdrop.lab.images.files import FileImages, box_files, class_folders, class_list, file_images
from attrdrop.lab.images.settings import ImageData
from attrdrop.lab.images.training import MEASURED
from attrdrop.lab.runs.training import EVAL_BATCH, logits_of, rank_accuracy, spaced

Row = dict[str, Any]


def from_class_folders(
    folder: Path, size: int, classes: Path | None, boxes: Path | None
) -> tuple[ImageTask, list[str]]:
    """Images for testing alone, such as ImageNet's val, and the folders of the classes in the order of the outputs."""
    if not folder.is_dir():
        raise InputError(f"--data: there is no folder {folder}.")
    found = class_folders(folder)
    known = {name: name for name in found} if classes is None else class_list(classes)
    if unlisted := [name for name in found if name not in known]:
        raise InputError(f"--classes: {classes} does not name the class folders {listed(unlisted)} of {folder}.")
    test = file_images(folder, found, list(known), size, None if boxes is None else box_files(boxes))
    task = ImageTask(folder.name, list(known.values()), test, test, IMAGENET_MEAN, IMAGENET_STD, "none")
    return task, list(known)


def subset(folder: Path, names: Sequence[str], size: int) -> tuple[FileImages, list[int]]:
    """A shifted set: its images, labelled by their place among the classes that it has, and these classes."""
    found = class_folders(folder) if folder.is_dir() else {}
    if unknown := [name for name in found if name not in names]:
        raise InputError(
            f"--shifted: {folder} holds class folders for which the model has no output: {listed(unknown)}."
        )
    own = [name for name in names if name in found]
    if not own:
        raise InputError(f"--shifted: {folder} holds no folder of any of the model's classes.")
    return file_images(folder, found, own, size), [names.index(name) for name in own]


def odd_images(folder: Path, names: Sequence[str], size: int) -> tuple[FileImages, list[int]]:
    """Images of none of the classes, and the classes that they are held against: those that folders are named after.

    ImageNet-O names its folders after the class that an image was taken for. Other names: all classes.
    """
    found = class_folders(folder) if folder.is_dir() else {}
    if not found:
        raise InputError(f"--odd: {folder} holds no class folders with images.")
    own = [place for place, name in enumerate(names) if name in found]
    return file_images(folder, found, list(found), size), own or list(range(len(names)))


class Evaluator:
    """Scores a model; each row holds a set and its measures."""

    def __init__(self, model: nn.Module, task: ImageTask, device: torch.device) -> None:
        self.model, self.task, self.device = model.to(device).eval(), task, device
        self._own: Tensor | None = None

    def test_row(self) -> Row:
        """On the test split, with rank accuracy where objects are known."""
        test = self.task.test
        row = self._scores(self.own, test.labels, None, f"{self.task.name} test")
        indices = spaced(test, MEASURED)
        if (masks := test.objects(indices)) is not None:
            x = self.task.normalised(test.pixels(indices, "none", None), self.device)
            parts = zip(x.split(EVAL_BATCH), test.labels[indices].to(self.device).split(EVAL_BATCH), strict=True)
            relevance = torch.cat([lrp.relevance(self.model, a, b, output=logits_of) for a, b in parts])
            row["rank_accuracy"] = rank_accuracy(relevance, masks)
        return row

    def shifted_row(self, folder: Path, names: Sequence[str], size: int) -> Row:
        """On a shifted set, among the classes that it has."""
        images, classes = subset(folder, names, size)
        return self._scores(self._logits(images), images.labels, classes, folder.name)

    def odd_row(self, folder: Path, names: Sequence[str], size: int) -> Row:
        """How well images of no class are told from those of the test split that are of the same folders' classes."""
        images, classes = odd_images(folder, names, size)
        is_inside = torch.isin(self.task.test.labels, torch.tensor(classes))
        if not bool(is_inside.any()):
            raise InputError(
                f"--odd: no test image is of a class that {folder} names, so there is nothing to separate."
            )
        inside = metrics.class_subset(self.own[is_inside], classes)
        outside = metrics.class_subset(self._logits(images), classes)
        return {
            "set": folder.name, "images": len(outside), "classes": len(classes),
            "aupr": metrics.aupr(inside, outside), "auroc": metrics.auroc(inside, outside),
        }  # fmt: skip

    @property
    def own(self) -> Tensor:
        """The logits of the test split."""
        if self._own is None:
            self._own = self._logits(self.task.test)
        return self._own

    @torch.no_grad()
    def _logits(self, images: Images) -> Tensor:
        """float32 (N, classes), on the CPU."""
        parts = []
        for batch in torch.arange(len(images.labels)).split(EVAL_BATCH):
            x = self.task.normalised(images.pixels(batch, "none", None), self.device)
            parts.append(logits_of(self.model(x)).float().cpu())
        return torch.cat(parts)

    def _scores(self, logits: Tensor, labels: Tensor, classes: list[int] | None, name: str) -> Row:
        count = len(self.task.label_names) if classes is None else len(classes)
        return {"set": name, "images": len(labels), "classes": count} | metrics.evaluate(logits, labels, classes)


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows, with a column for each measure that occurs."""
    return pd.DataFrame(rows)


def task_and_folders(data: ImageData, load: Any) -> tuple[ImageTask, list[str]]:
    """What is tested, and the names that other sets use for class folders."""
    if data.dataset == "folder" and data.data is not None and not (data.data / "train").is_dir():
        task, names = from_class_folders(data.data, data.image_size, data.classes, data.boxes)
        return task.limited(None, data.test_size), names
    task = load(data)
    if data.dataset != "folder" or data.data is None:
        return task, task.label_names
    known = class_folders(data.data / "train") if data.classes is None else class_list(data.classes)
    return task, list(known)
