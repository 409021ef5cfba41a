"""Point cloud archives as they are published: text files in class folders, HDF5 files, ShapeNet's part benchmark."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attrdrop.lab.errors import InputError, bad_byte, said
from attrdrop.lab.points.settings import PointSettings
from attrdrop.ops import farthest_point_sample

POOL = 2048  # points kept of a longer cloud, of which training draws some
Split = tuple[Tensor, Tensor]  # points float32 (N, P, C), labels int64 (N,)


@dataclass(frozen=True)
class Reading:
    """What is taken of each cloud.

    points: how many the model sees. sampling: "first" keeps the first of the file (up to POOL, or points if that is
    more), "farthest" those that farthest-point sampling chooses. Shorter clouds are repeated. normals: channels 3 to 5.
    """

    points: int
    sampling: str = PointSettings.sampling
    normals: bool = PointSettings.normals

    @property
    def channels(self) -> int:
        return 6 if self.normals else 3

    @property
    def rows(self) -> int | None:
        """How many lines of a file are needed; None for all."""
        return max(self.points, POOL) if self.sampling == "first" else None

    def chosen(self, cloud: np.ndarray) -> np.ndarray:
        """(P, C or more) -> float32 (kept, C)."""
        cloud = cloud[:, : self.channels]
        if self.sampling == "farthest":
            places = torch.from_numpy(np.ascontiguousarray(cloud[:, :3]))
            chosen = farthest_point_sample(places[None], min(self.points, len(cloud)))[0]
            return cloud[np.resize(chosen.numpy(), self.points)]
        return cloud[: self.rows]


def centred(cloud: np.ndarray) -> np.ndarray:
    """(P, C): places moved to mean 0 and scaled into the unit sphere; normals stay."""
    places = cloud[:, :3] - cloud[:, :3].mean(0)
    radius = np.linalg.norm(places, axis=1).max()
    return np.concatenate([places / radius if radius > 0 else places, cloud[:, 3:]], axis=1)


def read_folder(name: str, folder: Path, reading: Reading) -> tuple[list[str], Split, Split]:
    """Class names, training and test split of an archive; which layout it has is told by the files in it."""
    if not folder.is_dir():
        raise InputError(f"--data: {folder} is a file; give the folder of {name}.")
    for marker, read in LAYOUTS[name].items():
        if (folder / marker).is_file():
            names, splits = read(folder, reading)
            for split, (_, labels) in zip(("train", "test"), splits, strict=True):
                if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
                    raise InputError(
                        f"--data: {folder}: labels of the {split} split must lie in [0, {len(names)}), the classes "
                        f"named, got {int(labels.min())} to {int(labels.max())}."
                    )
            return names, splits[0], splits[1]
    raise InputError(f"--data: {folder} holds none of {', '.join(LAYOUTS[name])}, so it is not a folder of {name}.")


def _read_text(folder: Path, reading: Reading) -> tuple[list[str], list[Split]]:
    """modelnet40_normal_resampled: lists of names, <class>/<name>.txt with x,y,z,nx,ny,nz on a line."""
    names = _lines(folder / "modelnet40_shape_names.txt")

    def files(part: str) -> list[tuple[Path, int]]:
        path = folder / f"modelnet40_{part}.txt"
        found = []
        for item in _lines(path):
            label = item.rpartition("_")[0]
            if label not in names:
                raise InputError(f"--data: {path}: {item} belongs to no class in modelnet40_shape_names.txt.")
            found.append((folder / label / f"{item}.txt", names.index(label)))
        return found

    return names, [_clouds(files(part), ",", reading) for part in ("train", "test")]


def _read_parts(folder: Path, reading: Reading) -> tuple[list[str], list[Split]]:
    """ShapeNet's part benchmark with normals: <synset>/<id>.txt with x y z nx ny nz part on a line."""
    pairs = [line.split() for line in _lines(folder / "synsetoffset2category.txt")]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"--data: {folder / 'synsetoffset2category.txt'} must hold a class and its folder on a line.")
    synsets = {synset: label for label, (_, synset) in enumerate(pairs)}

    def files(part: str) -> list[tuple[Path, int]]:
        path = folder / "train_test_split" / f"shuffled_{part}_file_list.json"
        found = []
        for item in _json_list(path):
            synset, _, name = str(item).removeprefix("shape_data/").rpartition("/")
            if synset not in synsets:
                raise InputError(f"--data: {path}: {item} is in no folder of synsetoffset2category.txt.")
            found.append((folder / synset / f"{name}.txt", synsets[synset]))
        return found

    return [name for name, _ in pairs], [_clouds(files(part), r"\s+", reading) for part in ("train", "test")]


def _h5_reader(names_file: str, lists: tuple[str, str]) -> Callable[[Path, Reading], tuple[list[str], list[Split]]]:
    """HDF5 archives: lists of *.h5 with data (N, P, 3), label (N, 1) and perhaps normal (N, P, 3)."""

    def read(folder: Path, reading: Reading) -> tuple[list[str], list[Split]]:
        names = [line.split()[0] for line in _lines(folder / names_file)]
        splits = []
        for part in lists:
            files = [folder / Path(line).name for line in _lines(folder / part)]  # they name folders of their author
            points, labels = zip(*(_read_h5(path, reading) for path in files), strict=True)
            splits.append((torch.from_numpy(np.concatenate(points)), torch.from_numpy(np.concatenate(labels))))
        return names, splits

    return read


LAYOUTS: dict[str, dict[str, Callable[[Path, Reading], tuple[list[str], list[Split]]]]] = {
    "modelnet40": {
        "modelnet40_shape_names.txt": _read_text,
        "shape_names.txt": _h5_reader("shape_names.txt", ("train_files.txt", "test_files.txt")),
    },
    "shapenet": {
        "synsetoffset2category.txt": _read_parts,
        "all_object_categories.txt": _h5_reader(
            "all_object_categories.txt", ("train_hdf5_file_list.txt", "test_hdf5_file_list.txt")
        ),
        "shape_names.txt": _h5_reader("shape_names.txt", ("train_files.txt", "test_files.txt")),
    },
}
"""By data set: a file that tells the layout, and what reads it."""


def _clouds(files: Iterable[tuple[Path, int]], separator: str, reading: Reading) -> Split:
    paths, labels = zip(*files, strict=True)
    clouds = [_read_cloud(path, separator, reading) for path in paths]  # threads would take longer
    size = max(map(len, clouds))
    points = np.stack([np.resize(cloud, (size, reading.channels)) for cloud in clouds])
    return torch.from_numpy(points), torch.tensor(labels)


def _read_cloud(path: Path, separator: str, reading: Reading) -> np.ndarray:
    """float32 (kept, C); short clouds are repeated up to the points that the model sees."""
    try:
        frame = pd.read_csv(path, sep=separator, header=None, nrows=reading.rows, dtype=np.float32)
    except (OSError, ValueError) as error:  # ValueError: parser errors, empty files, text
        raise InputError(f"--data: {path} cannot be read as a cloud: {said(error)}.") from None
    cloud = frame.to_numpy()
    _check_channels(path, cloud.shape[1], reading)
    bad = ~np.isfinite(cloud[:, : reading.channels]).all(1)
    if bad.any():
        raise InputError(f"--data: {path}, point {bad.argmax() + 1}: a number is missing, NaN or infinite.")
    chosen = centred(reading.chosen(cloud))
    return np.resize(chosen, (max(len(chosen), reading.points), reading.channels))


def _read_h5(path: Path, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, kept, C), int64 (N,)"""
    try:
        import h5py
    except ImportError:
        raise InputError("--data: HDF5 files need the package h5py: pip install h5py.") from None
    try:
        with h5py.File(path) as file:
            parts: list[Any] = [file["data"][:], *([file["normal"][:]] if reading.normals else [])]
            labels = file["label"][:].reshape(-1).astype(np.int64)
        clouds = np.concatenate(parts, axis=2).astype(np.float32)
        if clouds.shape[2] != reading.channels or len(labels) != len(clouds) or clouds.size == 0:
            raise ValueError(f"shapes {[part.shape for part in parts]} with {len(labels)} labels do not fit")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = "data (N, P, 3) and label (N, 1)" + (" and normal (N, P, 3)" if reading.normals else "")
        raise InputError(f"--data: {path} is not an HDF5 file with {wanted}: {said(error)}.") from None
    if reading.points > clouds.shape[1]:
        raise InputError(f"--points: {reading.points} are more than the {clouds.shape[1]} that clouds of {path} have.")
    bad = ~np.isfinite(clouds).all((1, 2))
    if bad.any():
        raise InputError(f"--data: {path} must be finite, got NaN or infinity in cloud {bad.argmax()}.")
    return np.stack([centred(reading.chosen(cloud)) for cloud in clouds]), labels


def _check_channels(path: Path, columns: int, reading: Reading) -> None:
    if columns < reading.channels:
        wanted = "x, y, z and a normal" if reading.normals else "x, y and z"
        raise InputError(f"--data: {path} has {columns} numbers per line, but {wanted} are needed.")


def _lines(path: Path) -> list[str]:
    """Lines of a list that are not blank; at least one."""
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"--data: {path} is empty.")
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"--data: {path} cannot be read: {said(error)}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--data: {path} cannot be read: it is not in UTF-8, {bad_byte(error)}.") from None


def _json_list(path: Path) -> list[Any]:
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"--data: {path} cannot be read: {said(error)}.") from None
    if not isinstance(found, list) or not found:
        raise InputError(f"--data: {path} must be a non-empty list of files.")
    return found
