"""Loaders of `attrdrop train-points`: furniture, archives of ModelNet and ShapeNet in every layout, arrays."""

import json
import math
import sys

import h5py
import numpy as np
import pytest
import torch

from attrdrop.lab.errors import InputError
from attrdrop.lab.points.data import Augmentation, Clouds, PointTask, load_task
from attrdrop.lab.points.readers import Reading, centred

CLASSES = ("night_stand", "sofa")


def raw(index, points=40, columns=6):
    return np.random.default_rng(index).uniform(-3, 5, (points, columns)).astype(np.float32)


def expected(cloud, channels=3):
    places = cloud[:, :3] - cloud[:, :3].mean(0)
    return np.concatenate([places / np.linalg.norm(places, axis=1).max(), cloud[:, 3:channels]], 1)


def write_text(path, cloud, separator):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(f"{value:.7g}" for value in row) + "\n" for row in cloud))


def modelnet_text(folder):
    """Six training and two test clouds of 40 points with normals."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("modelnet40_shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    for part, numbers in (("train", (1, 2, 3)), ("test", (4,))):
        items = [f"{name}_{number:04d}" for name in CLASSES for number in numbers]
        folder.joinpath(f"modelnet40_{part}.txt").write_text("\n".join(items))
        for item in items:
            label = item.rpartition("_")[0]
            write_text(folder / label / f"{item}.txt", raw(10 * CLASSES.index(label) + int(item[-4:])), ",")
    return folder


def shapenet_text(folder):
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("synsetoffset2category.txt").write_text("night_stand\t01\nsofa\t02\n")
    folder.joinpath("train_test_split").mkdir(exist_ok=True)
    for part, numbers in (("train", (1, 2, 3)), ("test", (4,))):
        items = [f"shape_data/0{label + 1}/{number}" for label in range(2) for number in numbers]
        folder.joinpath("train_test_split", f"shuffled_{part}_file_list.json").write_text(json.dumps(items))
        for label in range(2):
            for number in numbers:
                cloud = np.concatenate([raw(10 * label + number), np.full((40, 1), 2.0)], 1)
                write_text(folder / f"0{label + 1}" / f"{number}.txt", cloud, " ")
    return folder


def hdf5(names_file, lists):
    def make(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath(names_file).write_text("night_stand\t01\nsofa\t02\n")
        for part, listed, numbers in (("train", lists[0], (1, 2, 3)), ("test", lists[1], (4,))):
            files = []
            for label in range(2):
                clouds = np.stack([raw(10 * label + number) for number in numbers])
                files.append(f"data/somewhere/ply_data_{part}{label}.h5")
                with h5py.File(folder / f"ply_data_{part}{label}.h5", "w") as file:
                    file["data"], file["normal"] = clouds[..., :3], clouds[..., 3:]
                    file["label"] = np.full((len(clouds), 1), label, dtype=np.uint8)
            folder.joinpath(listed).write_text("\n".join(files) + "\n")
        return folder

    return make


MODELNET_H5 = hdf5("shape_names.txt", ("train_files.txt", "test_files.txt"))
SHAPENET_H5 = hdf5("all_object_categories.txt", ("train_hdf5_file_list.txt", "test_hdf5_file_list.txt"))
ARCHIVES = {
    "modelnet40-text": ("modelnet40", modelnet_text),
    "modelnet40-h5": ("modelnet40", MODELNET_H5),
    "shapenet-text": ("shapenet", shapenet_text),
    "shapenet-h5": ("shapenet", SHAPENET_H5),
    "shapenet-h5-renamed": ("shapenet", MODELNET_H5),
}


@pytest.mark.parametrize("normals", [False, True])
@pytest.mark.parametrize("archive", ARCHIVES)
def test_archives_in_every_layout(tmp_path, archive, normals):
    name, make = ARCHIVES[archive]
    task = load_task(name, make(tmp_path / "set"), Reading(16, normals=normals))
    channels = 6 if normals else 3
    assert task.label_names == list(CLASSES)
    assert (task.channels, task.points) == (channels, 16)
    assert task.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert task.test.labels.tolist() == [0, 1]
    clouds = [raw(10 * label + number) for label in range(2) for number in (1, 2, 3)]
    wanted = np.stack([expected(cloud, channels) for cloud in clouds])
    np.testing.assert_allclose(task.train.points, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(task.test.points[1], expected(raw(14), channels), rtol=1e-4, atol=1e-5)
    assert task.train.points.dtype == torch.float32


@pytest.mark.parametrize("archive", ["modelnet40-text", "modelnet40-h5"])
def test_farthest_points(tmp_path, archive):
    name, make = ARCHIVES[archive]
    task = load_task(name, make(tmp_path / "set"), Reading(7, "farthest"))
    cloud, chosen = raw(1)[:, :3].astype(np.float64), [0]
    while len(chosen) < 7:
        distances = [min(np.linalg.norm(point - cloud[i]) for i in chosen) for point in cloud]
        chosen.append(int(np.argmax(distances)))
    np.testing.assert_allclose(task.train.points[0], expected(cloud[chosen]), rtol=1e-4, atol=1e-5)


def test_short_clouds_are_repeated_and_long_ones_cut(tmp_path):
    folder = modelnet_text(tmp_path)
    long, short = raw(7, 3000), raw(8, 5)
    write_text(folder / "sofa" / "sofa_0001.txt", long, ",")
    write_text(folder / "sofa" / "sofa_0002.txt", short, ",")
    task = load_task("modelnet40", folder, Reading(64))
    assert task.train.points.shape == (6, 2048, 3)
    np.testing.assert_allclose(task.train.points[3], expected(long[:2048]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(task.train.points[4, :10], np.tile(expected(short), (2, 1)), rtol=1e-4, atol=1e-5)


def test_furniture():
    task, again = (load_task("furniture", None, Reading(256)) for _ in range(2))
    assert len(task.label_names) == 13
    assert task.train.points.shape == (329, 1024, 3)
    assert task.test.points.shape == (109, 1024, 3)
    assert task.train.checksum() == again.train.checksum() != task.test.checksum()
    shares = task.train.labels.bincount() / (task.train.labels.bincount() + task.test.labels.bincount())
    assert (abs(shares - 0.75) < 0.05).all()
    radius = task.train.points.norm(dim=2)
    assert torch.allclose(radius.amax(1), torch.ones(329), atol=1e-5)
    assert task.train.points.mean(1).abs().max() < 1e-5
    smaller = task.limited(39, 13)
    assert (len(smaller.train.labels), len(smaller.test.labels)) == (39, 13)
    assert len(load_task("furniture", None, Reading(7, "farthest")).train.points[0]) == 7


def test_arrays(tmp_path):
    x = np.stack([raw(i) for i in range(20)]).astype(np.float64)
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(20) % 2 * 5 - 2)
    task = load_task("npz", tmp_path / "mine.npz", Reading(40, normals=True))
    assert task.name == "mine"
    assert task.label_names == ["-2", "3"]
    assert task.train.points.shape == (16, 40, 6)
    assert task.test.labels.bincount().tolist() == [2, 2]
    assert load_task("npz", tmp_path / "mine.npz", Reading(40)).channels == 3


def test_clouds_of_one_place_are_only_moved():
    assert not centred(np.full((3, 3), 5.0)).any()


# Augmentation


def small_task(channels=3, points=30, count=40):
    clouds = torch.randn(count, points, channels, generator=torch.Generator().manual_seed(0))
    part = Clouds(clouds, torch.arange(count) % 2)
    return PointTask("made up", ["a", "b"], part, part, 12)


def test_without_a_generator_the_first_points_are_taken():
    task = small_task()
    indices = torch.tensor([5, 3])
    assert torch.equal(task.batch(task.test, indices, None, None), task.test.points[indices, :12])


@pytest.mark.parametrize("rotate", [False, True])
def test_augmentation_is_one_scale_shift_and_turn_of_some_points(rotate):
    task, indices = small_task(6), torch.arange(40)
    change = Augmentation(jitter=0.0, rotate=rotate)
    changed, again = (task.batch(task.train, indices, change, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(changed, again)
    assert changed.shape == (40, 12, 6)
    scales, angles, choices = [], [], set()
    for old, new in zip(task.train.points.double(), changed.double(), strict=True):
        # Normals tell which points were chosen (their y does not change) and how they were turned.
        chosen = (old[None, :, 4] - new[:, None, 4]).abs().argmin(1)
        assert len(chosen.unique()) == 12
        choices.add(tuple(chosen.tolist()))
        normal, turned = old[chosen, 3:], new[:, 3:]
        angle = torch.atan2(turned[:, 0], turned[:, 2]) - torch.atan2(normal[:, 0], normal[:, 2])
        angle = angle.remainder(2 * math.pi)
        sin, cos = angle[0].sin(), angle[0].cos()
        matrix = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], dtype=torch.float64)
        torch.testing.assert_close(normal @ matrix, turned, rtol=0, atol=1e-5)
        places = old[chosen, :3] @ matrix
        scale = (new[0, :3] - new[1, :3]).norm() / (places[0] - places[1]).norm()
        shift = new[0, :3] - scale * places[0]
        torch.testing.assert_close(scale * places + shift, new[:, :3], rtol=0, atol=1e-5)
        assert shift.abs().max() <= 0.1 + 1e-5
        scales.append(scale.item())
        angles.append(angle[0].item())
    assert 0.8 <= min(scales) < 0.9 < 1.15 < max(scales) <= 1.25
    assert len(choices) == 40
    assert (np.ptp(angles) > 1) == rotate


def test_jitter_moves_every_point_a_little():
    task = small_task()
    still, moved = (
        task.batch(task.train, torch.arange(40), Augmentation(jitter=jitter), torch.Generator().manual_seed(1))
        for jitter in (0.0, 0.02)
    )
    difference = moved - still
    assert 0.018 < difference.std() < 0.022
    assert difference.abs().max() <= 0.1 + 1e-6


# Files that are broken


def broken_text():
    yield "ragged", lambda path: path.write_text("1,2,3,4,5,6\n1,2,3,4,5,6,7\n"), "Expected 6 fields in line 2, saw 7"
    yield "short line", lambda path: path.write_text("1,2,3,4,5,6\n1,2,\n"), "point 2: a number is missing, NaN"
    yield "NaN", lambda path: path.write_text("1,2,3,4,5,6\n1,2,nan,4,5,6\n"), "point 2: a number is missing, NaN"
    yield "infinite", lambda path: path.write_text("1,inf,3,4,5,6\n"), "point 1: a number is missing, NaN or infinite"
    yield "text", lambda path: path.write_text("1,2,3,4,5,6\na,b,c,d,e,f\n"), "cannot be read as a cloud"
    yield "empty", lambda path: path.write_text(""), "cannot be read as a cloud: No columns to parse from file"
    yield "missing", lambda path: path.unlink(), "cannot be read as a cloud: No such file or directory"
    yield "channels", lambda path: path.write_text("1,2\n3,4\n"), "has 2 numbers per line, but x, y and z are needed"
    yield "binary", lambda path: path.write_bytes(b"\xff\xfe\x00\x01" * 9), "cannot be read as a cloud"


@pytest.mark.parametrize(("damage", "fragment"), [pytest.param(d, f, id=name) for name, d, f in broken_text()])
def test_broken_text_names_the_file(tmp_path, damage, fragment):
    folder = modelnet_text(tmp_path)
    damage(folder / "sofa" / "sofa_0002.txt")
    with pytest.raises(InputError, match=r"^--data: .*sofa_0002\.txt") as caught:
        load_task("modelnet40", folder, Reading(16))
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_normals_that_are_not_there(tmp_path):
    folder = modelnet_text(tmp_path / "text")
    write_text(folder / "sofa" / "sofa_0003.txt", raw(1, columns=3), ",")
    with pytest.raises(InputError, match=r"sofa_0003\.txt has 3 numbers per line, but x, y, z and a normal are"):
        load_task("modelnet40", folder, Reading(16, normals=True))
    folder = MODELNET_H5(tmp_path / "h5")
    with h5py.File(folder / "ply_data_test0.h5", "a") as file:
        del file["normal"]
    with pytest.raises(InputError, match=r"ply_data_test0\.h5 is not an HDF5 file .* normal \(N, P, 3\): no entry"):
        load_task("modelnet40", folder, Reading(16, normals=True))
    with pytest.raises(InputError, match=r"--normals: clouds of .*furniture_points\.npz have none"):
        load_task("furniture", None, Reading(16, normals=True))


def broken_lists():
    yield "modelnet40-text", "modelnet40_train.txt", "chair_0001", "chair_0001 belongs to no class in"
    yield "modelnet40-text", "modelnet40_test.txt", "\n", "is empty"
    yield "modelnet40-text", "modelnet40_train.txt", None, "cannot be read: No such file"
    yield "shapenet-text", "synsetoffset2category.txt", "sofa", "must hold a class and its folder on a line"
    yield "shapenet-text", "train_test_split/shuffled_test_file_list.json", '["shape_data/03/1"]', "is in no folder of"
    yield "shapenet-text", "train_test_split/shuffled_test_file_list.json", "{}", "must be a non-empty list of files"
    yield "shapenet-text", "train_test_split/shuffled_test_file_list.json", "[", "cannot be read"
    yield "modelnet40-h5", "test_files.txt", "other.h5", "other.h5 is not an HDF5 file"
    yield "modelnet40-h5", "shape_names.txt", "sofa", "must lie in [0, 1), the classes named, got 0 to 1"


@pytest.mark.parametrize(
    ("archive", "file"),
    [
        ("modelnet40-text", "modelnet40_shape_names.txt"),
        ("shapenet-text", "train_test_split/shuffled_test_file_list.json"),
    ],
)
def test_the_byte_of_a_list_that_is_no_text_is_found(tmp_path, archive, file):
    name, make = ARCHIVES[archive]
    folder = make(tmp_path / "set")
    (folder / file).write_bytes(b"a\nb\n\xe9\n")
    with pytest.raises(InputError, match=r"cannot be read: it is not in UTF-8, line 3 holds the byte 0xe9\.$"):
        load_task(name, folder, Reading(16))


@pytest.mark.parametrize(("archive", "file", "content", "fragment"), broken_lists())
def test_broken_lists(tmp_path, archive, file, content, fragment):
    name, make = ARCHIVES[archive]
    folder = make(tmp_path / "set")
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(InputError, match=r"^--data: ") as caught:
        load_task(name, folder, Reading(16))
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"data": np.zeros((3, 40, 2))}, "do not fit"),
        ({"data": np.zeros((3, 120))}, "is not an HDF5 file with data (N, P, 3)"),
        ({"data": np.zeros((0, 40, 3)), "label": np.zeros((0, 1), int)}, "do not fit"),
        ({"data": np.full((3, 40, 3), np.nan)}, "must be finite, got NaN or infinity in cloud 0"),
        ({"data": np.zeros((3, 5, 3))}, "--points: 16 are more than the 5"),
        ({"label": np.zeros((2, 1), int)}, "with 2 labels do not fit"),
        ({"label": None}, "no entry"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_broken_hdf5(tmp_path, change, fragment):
    folder = MODELNET_H5(tmp_path / "set")
    with h5py.File(folder / "ply_data_train0.h5", "a") as file:
        for key, value in change.items():
            del file[key]
            if value is not None:
                file[key] = value
    with pytest.raises(InputError, match=r"ply_data_train0\.h5") as caught:
        load_task("modelnet40", folder, Reading(16))
    assert fragment in str(caught.value)


def test_files_that_are_no_hdf5_and_no_h5py(tmp_path, monkeypatch):
    folder = MODELNET_H5(tmp_path / "set")
    (folder / "ply_data_test1.h5").write_text("hello")
    with pytest.raises(InputError, match=r"ply_data_test1\.h5 is not an HDF5 file with data"):
        load_task("modelnet40", folder, Reading(16))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="HDF5 files need the package h5py: pip install h5py"):
        load_task("modelnet40", folder, Reading(16))


def test_folders_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"holds none of modelnet40_shape_names\.txt, shape_names\.txt, so it is no"):
        load_task("modelnet40", tmp_path, Reading(16))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give the folder of shapenet"):
        load_task("shapenet", tmp_path / "file", Reading(16))


def bad_arrays():
    x, y = np.stack([raw(i, columns=3) for i in range(10)]), np.arange(10) % 2
    nan = x.copy()
    nan[3, 2, 1] = np.nan
    yield "NaN", {"x": nan, "y": y}, "must be finite, got NaN or infinity in cloud 3"
    yield "channels", {"x": x[..., :2], "y": y}, "must be numbers (N, P, 3 or 6), got float32 (10, 40, 2)"
    yield "one point", {"x": x[:, :1], "y": y}, "--points: 16 are more than the 1 that clouds"
    yield "no point", {"x": x[:, :0], "y": y}, "must be numbers (N, P, 3 or 6)"
    yield "text", {"x": x.astype(str), "y": y}, "must be numbers (N, P, 3 or 6)"
    yield "complex", {"x": x.astype(complex), "y": y}, "must be numbers (N, P, 3 or 6)"
    yield "labels", {"x": x, "y": y / 2}, "must be 10 integers, got float64"
    yield "one class", {"x": x, "y": 0 * y}, "one class only"
    yield "no y", {"x": x}, "there is no y in it"


@pytest.mark.parametrize(("arrays", "fragment"), [pytest.param(a, f, id=name) for name, a, f in bad_arrays()])
def test_bad_arrays(tmp_path, arrays, fragment):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=r"bad\.npz") as caught:
        load_task("npz", tmp_path / "bad.npz", Reading(16))
    assert fragment in str(caught.value)
