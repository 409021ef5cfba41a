"""Which pixels of an image file a classifier's answer depends on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop import lrp
from attrdrop.lab.errors import InputError
from attrdrop.lab.images.models import build, read_weights
from attrdrop.lab.images.settings import PRETRAINED

MEAN, STD, IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1000  # of ImageNet, of its classes
SIZE = 224  # pixels a side, where nothing else is said


def explained(
    name: str,
    weights: str,
    files: Sequence[Path],
    size: int | None,
    given: tuple[str, str],
    rule: lrp.Rule,
    target: int | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, list[int], list[float]]:
    """Images (N, 3, size, size) in [0, 1], their relevance, the classes explained and their logits.

    size: None for that of the model's image processor, else 224. given: mean and deviation that the model's images are
    normalised with, as text; "" where nothing is said.
    """
    if _is_of_transformers(name):
        if weights not in ("", PRETRAINED):
            raise InputError(f"--weights: {name} has its own weights, so {weights} cannot be loaded.")
        model, own = _of_transformers(name)
        size = size or own.get("size", SIZE)
    else:
        size = size or SIZE
        model = build(name, weights, _classes(weights), 3, (size, size))
        own = getattr(model, "pretrained_cfg", None) or {}  # timm's
    model = model.to(device).eval()
    images = torch.stack([_read(path, size) for path in files])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalisation(own, *given))
    x = ((images - mean) / std).to(device)
    with torch.no_grad():
        outputs = model(x)
    logits = getattr(outputs, "logits", outputs)
    if target is not None and not 0 <= target < logits.shape[1]:
        raise InputError(f"--target: {target} is not a class of {name}, which has 0 to {logits.shape[1] - 1}.")
    chosen = logits.argmax(1) if target is None else torch.full((len(files),), target, device=device)
    relevance = lrp.relevance(model, x, chosen, rule=rule).cpu()
    return images, relevance, chosen.tolist(), logits.gather(1, chosen[:, None])[:, 0].tolist()


def _is_of_transformers(name: str) -> bool:
    """Whether it is a folder or an id of the hub."""
    return ":" not in name and ("/" in name or Path(name).is_dir())


def _of_transformers(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A classifier of transformers, and what its image processor says of images, where it has one."""
    from transformers import AutoModelForImageClassification, BaseImageProcessor

    from attrdrop.lab.text.models import loaded, model_path, quiet

    quiet()
    model = loaded(AutoModelForImageClassification, name)
    try:
        said, _ = BaseImageProcessor.get_image_processor_dict(model_path(name))
    except OSError:
        return model, {}
    own = {"mean": said.get("image_mean"), "std": said.get("image_std"), "size": _side(said)}
    if said.get("do_normalize") is False:
        own.update(mean=(0.0,), std=(1.0,))
    return model, {key: value for key, value in own.items() if value is not None}


def _side(said: Mapping[str, Any]) -> int | None:
    """Pixels a side of what a processor gives."""
    size = said.get("crop_size") if said.get("do_center_crop") else None
    size = said.get("size") if size is None else size
    return size.get("height", size.get("shortest_edge")) if isinstance(size, Mapping) else size


def normalisation(own: Mapping[str, Any], mean: str, std: str) -> tuple[list[float], list[float]]:
    """The given values, else the model's own, else ImageNet's."""
    usual = (own.get("mean", MEAN), own.get("std", STD))
    found = [_numbers(*entry) for entry in zip(("--mean", "--std"), (mean, std), usual, strict=True)]
    if min(found[1]) <= 0:
        raise InputError(f"--std: {std} must be above 0.")
    return found[0], found[1]


def _numbers(option: str, text: str, usual: Sequence[float]) -> list[float]:
    """One number per channel (red, green, blue), or one for all."""
    if not text:
        return list(usual)
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise InputError(f"{option}: {text!r} must be a number, or three separated by commas, such as 0.5,0.5,0.5.")
    return values


def _classes(weights: str) -> int:
    if weights in ("", PRETRAINED):
        return IMAGENET
    matrices = [values for values in read_weights(Path(weights)).values() if values.dim() == 2]
    if not matrices:
        raise InputError(f"--weights: {weights} holds no linear layer that could be the head.")
    return len(matrices[-1])


def _read(path: Path, size: int) -> Tensor:
    """The middle square of an image file (3, size, size), in [0, 1]."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            picture = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"--image: {path} could not be read as an image: {error}.") from error
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1) / 255
