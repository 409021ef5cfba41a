"""Images in class folders: which files they are, and their pixels."""

import os
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from attrdrop.lab.arrays import checksum
from attrdrop.lab.errors import InputError, check_name, listed, said

SUFFIXES = {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
HIDDEN = {"__MACOSX", "@eaDir", "lost+found"}  # folders of systems and archives, beside those with a dot
SHOWN = 0.875  # of the shorter side, in testing
LOOKED_AT = 1000  # image files of a split that are opened before training begins
_EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
_BITS_PER_SAMPLE = 258  # a tag of TIFF


@dataclass(frozen=True)
class FileImages:
    """Images in files, read when they are needed; cut to size x size.

    boxes: files of ImageNet's XML by name without ending, which say where objects are.
    """

    paths: list[Path]
    labels: Tensor
    size: int
    boxes: Mapping[str, Path] | None = None

    def objects(self, indices: Tensor) -> Tensor | None:
        """What the boxes of an image cover of its centre, as `pixels` shows it unaugmented."""
        if self.boxes is None:
            return None
        masks = torch.zeros(len(indices), self.size, self.size, dtype=torch.bool)
        for mask, place in zip(masks, indices.tolist(), strict=True):
            if file := self.boxes.get(self.paths[place].stem):
                _mark(mask, file, self.paths[place])
        return masks

    def pixels(self, indices: Tensor, augment: str, generator: torch.Generator | None) -> Tensor:
        draws = torch.rand(len(indices), 5, generator=generator).tolist()
        paths = [self.paths[i] for i in indices.tolist()]
        with ThreadPoolExecutor() as pool:
            arrays = list(pool.map(lambda path, draw: _read(path, self.size, augment, draw), paths, draws))
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

    def select(self, indices: Tensor) -> "FileImages":
        return FileImages([self.paths[i] for i in indices.tolist()], self.labels[indices], self.size, self.boxes)

    def checksum(self) -> int:
        names = "/".join(path.name for path in self.paths)
        return zlib.crc32(names.encode(errors="surrogateescape"), checksum(self.labels.numpy()))


def class_folders(split: Path) -> dict[str, list[Path]]:
    """The image files in the folders of a split, or below them, by class in alphabetical order.

    Hidden folders and files are passed over. Warns of files that are no images by their ending.
    """
    found: dict[str, list[Path]] = {}
    others: Counter[str] = Counter()
    for path in sorted(split.iterdir()):
        if _is_hidden(path.name):
            continue
        if path.is_dir():
            check_name(path, "--data")
            files = _files_below(path)
            found[path.name] = [file for file in files if file.suffix.lower() in SUFFIXES]
            others.update(file.suffix.lower() for file in files if file.suffix.lower() not in SUFFIXES)
        elif path.suffix.lower() in SUFFIXES:
            raise InputError(f"--data: the image {path} is not in a class folder; move it into one, or elsewhere.")
    if others:
        counts = ", ".join(f"{count} {suffix or 'without one'}" for suffix, count in others.most_common())
        warnings.warn(
            f"files in {split} are left out, because their extensions are not those of images: {counts}", stacklevel=2
        )
    return found


def file_images(
    split: Path,
    found: dict[str, list[Path]],
    names: Sequence[str],
    size: int,
    boxes: Mapping[str, Path] | None = None,
) -> FileImages:
    """The images of some classes; raises InputError where there are none, or some cannot be read."""
    chosen = [(path, label) for label, name in enumerate(names) for path in found.get(name, [])]
    if not chosen:
        raise InputError(f"--data: {split} holds no image files ({', '.join(sorted(SUFFIXES))}) in class folders.")
    for path, _ in chosen[:: max(1, len(chosen) // LOOKED_AT)]:
        _opened(path).close()
    return FileImages([path for path, _ in chosen], torch.tensor([label for _, label in chosen]), size, boxes)


def class_list(path: Path) -> dict[str, str]:
    """Class folders and what their classes are called, of a file with both on a line; the folder without a name.

    ImageNet's LOC_synset_mapping.txt is such a file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--classes: {path} cannot be read as a list of classes: {said(error)}.") from None
    parts = [line.split(maxsplit=1) for line in lines if line.strip()]
    found = {part[0]: part[-1].partition(",")[0].strip() for part in parts}
    if len(found) < max(2, len(parts)):
        raise InputError(
            f"--classes: {path} must name two or more classes, each once, one per line, got {len(parts)} lines."
        )
    return found


def box_files(folder: Path) -> dict[str, Path]:
    """ImageNet's XML files in a folder or below it, by the name of their image."""
    found = {path.stem: path for path in sorted(folder.rglob("*.xml"))} if folder.is_dir() else {}
    if not found:
        raise InputError(f"--boxes: there is no XML file in a folder {folder}.")
    return found


def _mark(mask: Tensor, file: Path, path: Path) -> None:
    """Set what lies in a box."""
    try:
        root = ElementTree.parse(file).getroot()
        corners = [
            [float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")] for box in root.iter("bndbox")
        ]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise InputError(f"--boxes: {file} cannot be read as ImageNet's boxes: {said(error)}.") from None
    with _opened(path) as image:
        shown = _centre(*image.size)
    scale = mask.shape[0] / (shown[2] - shown[0])
    for left, top, right, bottom in corners:
        rows = slice(max(0, round((top - shown[1]) * scale)), max(0, round((bottom - shown[1]) * scale)))
        columns = slice(max(0, round((left - shown[0]) * scale)), max(0, round((right - shown[0]) * scale)))
        mask[rows, columns] = True


def _centre(width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is shown of an image in testing."""
    side = min(width, height) * SHOWN
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def refuse_empty(split: Path, found: dict[str, list[Path]]) -> None:
    """Raise InputError where a class folder, among others, holds no image."""
    if empty := [name for name, files in found.items() if not files]:
        raise InputError(
            f"--data: {split} holds class folders without image files ({', '.join(sorted(SUFFIXES))}): "
            f"{listed(empty)}; fill or remove them."
        )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in HIDDEN


def _files_below(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [Path(place, name) for name in files if not _is_hidden(name)]
    return sorted(found)


def _read(path: Path, size: int, augment: str, draw: list[float]) -> np.ndarray:
    """RGB (size, size, 3): a random resized crop in training, else the centre."""
    from PIL import Image

    opened = _opened(path)
    try:
        image = _rgb(opened)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"--data: {path} cannot be read as an image: {error}.") from None
    width, height = image.size
    if augment == "none":
        box = _centre(width, height)
    else:
        area = width * height * (0.08 + 0.92 * draw[0])
        aspect = (3 / 4) ** (1 - 2 * draw[1])
        wide, high = min(width, (area * aspect) ** 0.5), min(height, (area / aspect) ** 0.5)
        left, top = (width - wide) * draw[2], (height - high) * draw[3]
        box = (left, top, left + wide, top + high)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if augment == "crop-flip" and draw[4] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def _opened(path: Path) -> Any:
    """A PIL image of which the header is read."""
    from PIL import Image

    try:
        image = Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"--data: {path} cannot be read as an image: {error}.") from None
    if image.mode not in _EIGHT_BITS and not _bits(image):
        image.close()
        raise InputError(
            f"--data: {path} cannot be read as an image: pixels of the mode {image.mode} have no known range; store it "
            "in colours of 8 bits, or grey of 8 or 16 bits."
        )
    return image


def _bits(image: Any) -> int:
    """Those of a grey image with more than 8, which Pillow would cut off at 255; 0 where they are not known."""
    if image.mode.startswith("I;16"):
        return getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else 0


def _rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode in _EIGHT_BITS:
        return image.convert("RGB")
    levels = np.asarray(image).astype(np.float64) * (255 / (2 ** _bits(image) - 1))
    return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
