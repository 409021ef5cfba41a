"""Point cloud sets: the bundled furniture, ModelNet and ShapeNet in their usual layouts, and .npz files."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attrdrop.lab.arrays import checksum, class_indices, read_npz
from attrdrop.lab.errors import InputError
from attrdrop.lab.points.readers import LAYOUTS, Reading, centred, read_folder
from attrdrop.lab.points.settings import PointSettings
from attrdrop.lab.runs.splits import sample, split, with_dev

FURNITURE = "furniture"
FURNITURE_PATH = Path(__file__).parents[1] / "data" / "furniture_points.npz"
FURNITURE_UNIT = 511
DATASETS = (FURNITURE, *LAYOUTS, "npz")


@dataclass(frozen=True)
class Augmentation:
    """Changes of a training cloud: a random choice of its points, one scale, one shift, noise, perhaps a rotation.

    jitter is the deviation of the noise, cut at five of them; the rotation is about the y axis, which points upwards.
    """

    jitter: float = PointSettings.jitter
    rotate: bool = PointSettings.rotate
    scale: tuple[float, float] = (0.8, 1.25)
    shift: float = 0.1

    def __call__(self, clouds: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """(n, P, C) -> (n, count, C); channels 3 to 5 are normals, which scale, shift and noise leave alone."""
        n, points, channels = clouds.shape
        chosen = torch.rand(n, points, generator=generator).argsort(1)[:, :count]
        clouds = clouds.gather(1, chosen[..., None].expand(-1, -1, channels))
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        low, high = self.scale
        scale = low + (high - low) * torch.rand(n, 1, 1, generator=generator)
        shift = self.shift * (2 * torch.rand(n, 1, 3, generator=generator) - 1)
        noise = torch.randn(n, count, 3, generator=generator).clamp(-5, 5)
        vectors = clouds.unflatten(2, (-1, 3))  # (n, count, 1 or 2, 3): places, normals
        if self.rotate:
            vectors = vectors @ _about_y(angle)[:, None]
        places = vectors[:, :, 0] * scale + shift + self.jitter * noise
        return torch.cat([places, vectors[:, :, 1:].flatten(2)], 2)


@dataclass(frozen=True)
class Clouds:
    """points float32 (N, P, C), C 3 or with normals 6; labels int64 (N,)."""

    points: Tensor
    labels: Tensor

    def select(self, indices: Tensor) -> "Clouds":
        """Some of the clouds."""
        return Clouds(self.points[indices], self.labels[indices])

    def checksum(self) -> int:
        """Of points and labels."""
        return checksum(self.points.numpy(), checksum(self.labels.numpy()))


@dataclass(frozen=True)
class PointTask:
    """A labelled set of clouds, split in two or three.

    Clouds hold `points` points or more, of which training draws some.
    """

    name: str
    label_names: list[str]
    train: Clouds
    test: Clouds
    points: int
    dev: Clouds | None = None

    @property
    def channels(self) -> int:
        return self.train.points.shape[2]

    def batch(
        self, clouds: Clouds, indices: Tensor, augmentation: Augmentation | None, generator: torch.Generator | None
    ) -> Tensor:
        """(n, points, C): augmented with draws of the generator, or the first points of each cloud."""
        chosen = clouds.points[indices]
        if augmentation is None or generator is None:
            return chosen[:, : self.points]
        return augmentation(chosen, self.points, generator)

    def limited(self, train_size: int | None, test_size: int | None, dev_size: int | None = None) -> "PointTask":
        """The task with splits cut down to so many clouds, classes in proportion, the same ones every time.

        dev_size: of a split that is taken away from the training clouds before they are cut down.
        """
        task = with_dev(self, dev_size)
        return replace(task, train=sample(task.train, train_size), test=sample(task.test, test_size))


def load_task(name: str, data: Path | None, reading: Reading) -> PointTask:
    """A set by name (furniture), or from the user's folder or file."""
    if name not in DATASETS:
        raise InputError(f"--dataset: {name!r} is not one of {', '.join(DATASETS)}.")
    if name == FURNITURE:
        if data is not None:
            raise InputError(f"--data: furniture is bundled; name the data set at {data} with --dataset.")
        return furniture(reading)
    if data is None:
        raise InputError(f"--dataset: {name} is not bundled; give its location with --data.")
    if not data.exists():
        raise InputError(f"--data: there is no file or folder {data}.")
    if name == "npz":
        return from_npz(data, reading)
    names, train, test = read_folder(name, data, reading)
    return PointTask(name, names, Clouds(*train), Clouds(*test), reading.points)


def furniture(reading: Reading) -> PointTask:
    """438 furniture and household shapes of 13 classes, 1,024 points each; a quarter is for testing."""
    with np.load(FURNITURE_PATH) as arrays:
        x, y, names = arrays["x"], arrays["y"], arrays["label_names"]
    x = x.astype(np.float32) / FURNITURE_UNIT
    return _in_memory(FURNITURE_PATH, FURNITURE, x, y.astype(np.int64), names.tolist(), reading, len(x) // 4)


def from_npz(path: Path, reading: Reading) -> PointTask:
    """x (N, P, 3) or with normals (N, P, 6), y (N,) integers; a fifth is for testing."""
    x, y, _ = read_npz(path)
    if x.dtype.kind not in "fiu" or x.ndim != 3 or x.shape[2] not in (3, 6) or len(x) < 2 or x.size == 0:
        raise InputError(f"--data: x of {path} must be numbers (N, P, 3 or 6), got {x.dtype} {x.shape}.")
    names, labels = class_indices(path, y, len(x))
    x = x.astype(np.float32)
    return _in_memory(path, path.stem, x, labels, [str(name) for name in names], reading, max(1, len(x) // 5))


def _in_memory(
    path: Path, name: str, x: np.ndarray, labels: np.ndarray, names: list[str], reading: Reading, held_out: int
) -> PointTask:
    if reading.points > x.shape[1]:
        raise InputError(f"--points: {reading.points} are more than the {x.shape[1]} that clouds of {path} have.")
    if reading.channels > x.shape[2]:
        raise InputError(f"--normals: clouds of {path} have none, only x, y and z.")
    bad = ~np.isfinite(x).all((1, 2))
    if bad.any():
        raise InputError(f"--data: x of {path} must be finite, got NaN or infinity in cloud {bad.argmax()}.")
    clouds = np.stack([centred(reading.chosen(cloud)) for cloud in x])
    train, test = split(Clouds(torch.from_numpy(clouds), torch.from_numpy(labels)), held_out)
    return PointTask(name, names, train, test, reading.points)


def _about_y(angle: Tensor) -> Tensor:
    """(n,) -> rotations (n, 3, 3) for row vectors."""
    sin, cos, zero, one = angle.sin(), angle.cos(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, zero, -sin, zero, one, zero, sin, zero, cos], 1).unflatten(1, (3, 3))
