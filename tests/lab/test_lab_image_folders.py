"""Folders of image files as they are found in the wild: what is taken, what is passed over, what is refused by name."""

import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import assert_sentence

from attrdrop.lab.errors import InputError
from attrdrop.lab.images import data


def save(path, level=100, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (20, 16), level).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Four training and two test images of two classes."""
    for name in ("cat", "dog"):
        for file in ("train/{}/0.png", "train/{}/1.png", "val/{}/0.png"):
            save(tmp_path / file.format(name))
    return tmp_path


def sizes(task):
    return [part.labels.bincount().tolist() for part in (task.train, task.test)]


@pytest.mark.parametrize(
    "file",
    [
        "train/.ipynb_checkpoints/0-checkpoint.png",
        "train/__MACOSX/cat/0.png",
        "val/.thumbnails/0.png",
        "train/cat/.ipynb_checkpoints/0-checkpoint.png",
        "train/dog/._0.png",
    ],
)
def test_what_is_hidden_is_passed_over(folder, file):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = data.load_task("folder", folder, 16)
    assert (task.label_names, sizes(task)) == (["cat", "dog"], [[2, 2], [1, 1]])


def test_images_in_folders_below_and_of_other_endings_count(folder):
    for name in ("train/cat/old/2.tif", "train/cat/old/new/3.TIFF", "train/dog/2.gif", "val/dog/1.ppm"):
        save(folder / name, 200)
    task = data.load_task("folder", folder, 16)
    assert sizes(task) == [[4, 3], [1, 2]]
    bright = task.train.pixels(torch.arange(7), "none", None).flatten(1).float().mean(1)
    assert bright.tolist() == [100, 100, 200, 200, 100, 100, 200]


def test_files_that_are_no_images_by_their_endings_are_counted(folder):
    for name in ("train/cat/a.heic", "train/dog/b.HEIC", "train/dog/notes.txt", "train/dog/c"):
        (folder / name).write_text("")
    with pytest.warns(UserWarning, match=r"/train are left out, .*: 2 \.heic, 1 without one, 1 \.txt$"):
        assert sizes(data.load_task("folder", folder, 16)) == [[2, 2], [1, 1]]


@pytest.mark.parametrize(
    ("file", "fragments"),
    [
        ("val/Dog/0.png", ["/val holds", "/train lacks: 'Dog'; those of training are 'cat', 'dog'"]),
        ("val/images/0.png", ["lacks: 'images'"]),
        ("train/cow/", ["/train holds class folders without image files", ".png", "'cow'; fill or remove"]),
        ("train/cow/empty/a.txt", ["without image files", "'cow'"]),
        ("val/cow/", ["/val holds", "lacks: 'cow'"]),
        ("train/0.png", ["/train/0.png is not in a class folder"]),
        ("val/0.png", ["/val/0.png is not in a class folder"]),
    ],
)
def test_folders_and_files_in_the_wrong_place_are_named(folder, file, fragments):
    path = folder / file
    path.mkdir() if file.endswith("/") else save(path.with_suffix(".png")).rename(path)
    with pytest.raises(InputError) as caught:
        data.load_task("folder", folder, 16)
    assert_sentence(caught, "--data", *fragments)


def grey16(path, value, side=16):
    """An image of one level, of 16 bits."""
    array = np.full((side, side), value, np.uint16)
    if path.suffix == ".pgm":
        path.write_bytes(f"P5 {side} {side} 65535\n".encode() + array.astype(">u2").tobytes())
    else:
        Image.fromarray(array).save(path)


def tiff12(path, value, side=16):
    """The same of 12 bits, two pixels in three bytes, which Pillow reads and does not write."""
    pixels = bytes([value >> 4, (value & 15) << 4 | value >> 8, value & 255]) * (side * side // 2)
    entries = {256: side, 257: side, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: len(pixels)}
    tags = b"".join(struct.pack("<HHIHH", tag, 3, 1, entry, 0) for tag, entry in entries.items())
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", 9) + tags + bytes(4))


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (32768, 128), (32639, 127), (257, 1), (65535, 255)])
def test_grey_images_of_sixteen_bits_keep_their_levels(folder, name, value, expected):
    grey16(folder / "val" / "cat" / name, value)
    task = data.load_task("folder", folder, 16)
    pixels = task.test.pixels(torch.tensor([1]), "none", None)
    assert pixels.unique().tolist() == [expected]


def test_grey_images_of_twelve_bits_keep_their_levels(folder):
    tiff12(folder / "val" / "cat" / "x.tif", 2048)
    pixels = data.load_task("folder", folder, 16).test.pixels(torch.tensor([1]), "none", None)
    assert pixels.unique().tolist() == [128]


@pytest.mark.parametrize(("dtype", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_pixels_without_a_known_range_are_refused(folder, dtype, mode):
    Image.fromarray(np.full((16, 16), 1000, dtype)).save(folder / "train" / "dog" / "deep.tif")
    with pytest.raises(InputError) as caught:
        data.load_task("folder", folder, 16)
    assert_sentence(caught, "deep.tif", f"of the mode {mode}", "8 or 16 bits")
