"""`attrdrop train-images` end to end on random 16x16 images, its loaders, and what becomes of bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
from lab_runs import names, one_thread, results, squares  # noqa: F401
from PIL import Image
from refusals import assert_refused
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app
from attrdrop.lab.errors import InputError
from attrdrop.lab.images import data
from attrdrop.lab.images.settings import ARMS, ImageSettings
from attrdrop.lab.images.training import ImageTrainer

CPU = torch.device("cpu")
TABLES = [".lock", "curves.csv", "flipping.csv", "results.json", "runs.csv", "trials"]
FIVE = ARMS[:5]
SMALL = ["--dataset", "npz", "--epochs", "1", "--batch-size", "16"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    np.savez(path, **squares())
    return path


@pytest.fixture
def train(npz, tmp_path):
    def train(*arguments, file=npz):
        output = tmp_path / "out"
        command = ["train-images", *SMALL, "--data", str(file), "--output", str(output), *map(str, arguments)]
        return CliRunner().invoke(app, command, env={"COLUMNS": "80"}), output

    return train


@pytest.mark.slow
def test_five_arms_at_two_seeds(train):
    arguments = "--arms", ",".join(FIVE), "--seeds", 2
    outcome, output = train(*arguments)
    assert outcome.exit_code == 0, outcome.output
    figures = ["curves.png", "flipping.png", "occluded.png", *(f"maps_{arm}.png" for arm in FIVE)]
    assert names(output) == sorted([*TABLES, *figures])
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in figures)

    content = results(output)
    assert content["complete"]
    assert content["task"]["sizes"] == {"train": 48, "test": 12}
    order = [(run["seed"], run["arm"]) for run in content["runs"]]
    assert order == [(0, arm) for arm in FIVE] + [(1, arm) for arm in (*FIVE[1:], FIVE[0])]
    runs = {(run["arm"], run["seed"]): run for run in content["runs"]}
    for (arm, _), run in runs.items():
        assert 0 <= run["rank_accuracy"] <= 1
        assert len(run["flipping"]["random"]) == len(run["flipping"]["fraction"]) == 17
        assert (run["attributed"] > 0) == (arm in ("reldrop", "relcutmix"))
        assert (run["epochs"][0]["changed"] > 0) == (arm != "plain")
    for seed in (0, 1):  # the same draws of sizes in every arm
        areas = [runs[arm, seed]["epochs"][0]["changed"] for arm in FIVE[1:]]
        assert areas == pytest.approx([areas[0]] * 4, rel=1e-9)

    frame = pd.read_csv(output / "runs.csv")
    assert list(frame.arm) == [arm for _, arm in order]
    assert (frame[frame.arm == "plain"].step_ratio == 1).all()
    assert len(pd.read_csv(output / "curves.csv")) == 10
    assert len(pd.read_csv(output / "flipping.csv")) == 10 * 2 * 17
    differences = content["summary"]["accuracy_difference_to_plain"]
    assert list(differences) == list(FIVE[1:])
    assert all(found["n"] == 2 for found in differences.values())
    for text in ("accuracy, %", "erased, %", "rank acc., %", "2 seeds", "48 train, 12 test", "occluded.png"):
        assert text in outcome.output
    assert max(len(line) for line in outcome.output.splitlines() if not line.startswith("Warning: ")) <= 80
    row = next(line for line in outcome.output.splitlines() if line.startswith("step, ms"))
    assert len(row.split()) == 2 + 5  # on one line at 80 columns

    again, _ = train(*arguments)
    assert again.exit_code == 0
    assert "10 of 10 runs are in" in again.output
    assert "run 1" not in again.output
    assert results(output) == content
    shown = CliRunner().invoke(app, ["report", str(output)])
    assert shown.exit_code == 0
    assert "channel Gini" in shown.output

    other, _ = train(*arguments, "--p", 0.4)
    assert other.exit_code == 2
    assert "other settings" in other.output
    assert results(output) == content
    fewer, _ = train("--arms", "erasing", "--seeds", 1, "--overwrite")
    assert fewer.exit_code == 0, fewer.output
    assert names(output) == sorted([*TABLES, "curves.png", "flipping.png", "maps_erasing.png"])
    assert "acc. - plain" in fewer.output


@pytest.mark.slow
def test_a_vision_transformer_trains_with_reldrop(train):
    outcome, output = train("--model", "vit-tiny", "--arms", "reldrop", "--seeds", 1, "--train-size", 24)
    assert outcome.exit_code == 0, outcome.output
    (run,) = results(output)["runs"]
    assert run["attributed"] > 0
    assert 0 <= run["rank_accuracy"] <= 1


def test_other_data_of_the_same_name_and_size_are_refused(train, tmp_path):
    paths = [tmp_path / name / "same.npz" for name in "ab"]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        np.savez(path, **squares(30, 1, seed=seed))
    first, _ = train("--arms", "plain", "--seeds", 1, file=paths[0])
    assert first.exit_code == 0, first.output
    second, _ = train("--arms", "plain", "--seeds", 1, file=paths[1])
    assert second.exit_code == 2
    assert "other settings or data" in second.output


@pytest.mark.parametrize("arm", ARMS[1:])
def test_no_probability_trains_like_the_plain_arm(arm):
    arrays = squares(33)
    x, y = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(arrays["y"])
    images = data.ArrayImages(x, y)
    task = data.ImageTask("squares", ["a", "b", "c"], images, images, [0.4] * 3, [0.3] * 3, "crop-flip")
    settings = ImageSettings(device="cpu", p=0.0, epochs=2, batch_size=16)
    trainer = ImageTrainer(settings, task)
    assert trainer.steps == 2  # the third batch would be one image, on which BatchNorm cannot train
    losses = []
    for name in ("plain", arm):
        model = trainer.build(5)
        changing = trainer.arms[name](model, settings, task, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        order = torch.Generator().manual_seed(5)
        parts = [
            trainer._train_epoch(1, model, changing, optimizer, schedule, order, lambda work: None) for _ in range(2)
        ]
        losses.append([loss for part in parts for loss in part[0]])
        assert [part[2] for part in parts] == [0, 0]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("size", [(3, 5), (8, 20)])
def test_images_smaller_than_the_patches_of_the_measures(size):
    images = data.ArrayImages(torch.randint(0, 256, (8, 1, *size), dtype=torch.uint8), torch.arange(8) % 2)
    task = data.ImageTask("small", ["a", "b"], images, images, [0.5], [0.3], "none")
    trainer = ImageTrainer(ImageSettings(device="cpu", epochs=1, batch_size=8), task)
    trainer.check()
    advanced = []
    run, model = trainer.trained("reldrop", 0, advanced.append)
    assert sum(advanced) == pytest.approx(trainer.work("reldrop"))
    assert 0 <= run.flipping_auc["random"] <= 1
    _, relevance, titles = trainer.maps(model)
    assert relevance.shape == (8, 1, *size)
    assert all(title in ("a", "b", "a, taken for b", "b, taken for a") for title in titles)
    shown, titles = trainer.occluded(model)
    assert shown.shape == (16, 1, *size)
    assert titles == [f"{name}, {kind} block" for kind in ("guided", "random") for name in "abababab"]


def bad_options():
    yield ["--dataset", "imagenet"], ["--dataset: 'imagenet'", "mnist, planted, cifar10, cifar100, npz, folder"]
    yield ["--dataset", "mnist"], ["--data: mnist is a package"]
    yield ["--data", "none.npz"], ["--data", "none.npz"]
    yield ["--model", "resnet9"], ["--model: 'resnet9'", "vit-tiny"]
    yield ["--model", "timm:"], ["--model: 'timm:'", "timm:resnet26"]
    yield ["--weights", "none.pt"], ["--weights: there is no file none.pt"]
    yield ["--rule", "lrp"], ["--rule: 'lrp'", "epsilon-plus-flat"]
    yield ["--vary", "gamma=1,2"], ["--vary: 'gamma' is not one of", "alpha, alpha_end, beta"]
    yield ["--vary", "alpha"], ["--vary: 'alpha' is not a setting with its values"]
    yield ["--vary", "alpha=0.5,high"], ["--alpha: 'high' is not a valid float"]
    yield ["--vary", "alpha=0.5,1.5"], ["--alpha: 1.5 is not a probability"]
    yield ["--arms", "plain,plain alpha=0"], ["'plain alpha=0' changes 'alpha', and plain depends on nothing"]
    yield ["--dev-size", "48"], ["--dev-size: 48 leaves none of the 48 training examples"]
    yield ["--classes", "list.txt"], ["--classes: it is for image files; --dataset npz has none"]
    yield ["--arms", "plain,foo"], ["--arms: 'foo'", "relcutmix"]
    yield ["--arms", "plain,plain"], ["--arms", "each once"]
    yield ["--arms", ""], ["--arms"]
    yield ["--stop-at", "foo"], ["--stop-at foo", "stem, stages, head"]
    yield ["--stop-at", "head"], ["--stop-at head", "(N, C, h, w)"]
    yield ["--stop-at", "stages"], ["--stop-at stages", "did not run"]
    yield ["--p", "1.5"], ["--p: 1.5", "0 to 1"]
    yield ["--alpha", "nan"], ["--alpha: nan", "0 to 1"]
    yield ["--min-area", "0.5", "--max-area", "0.1"], ["--min-area, --max-area", "0.5 and 0.1"]
    yield ["--lr", "0"], ["--lr: 0.0"]
    yield ["--batch-size", "49"], ["--batch-size: 49", "48 training images"]
    yield ["--batch-size", "1"], ["--batch-size"]
    yield ["--train-size", "2"], ["--train-size: 2", "3 classes"]
    yield ["--device", "gpu"], ["--device: 'gpu'", "auto, cpu, cuda"]
    if not torch.cuda.is_available():
        yield ["--device", "cuda"], ["--device: cuda"]


@pytest.mark.parametrize(("arguments", "fragments"), bad_options(), ids=lambda value: " ".join(value)[:30])
def test_bad_options_are_one_sentence_and_nothing_written(train, arguments, fragments):
    outcome, output = train(*arguments)
    assert_refused(outcome, output, *fragments)


def bad_arrays():
    arrays = squares(20)
    yield "no y", {"x": arrays["x"]}, "there is no y in it"
    yield "floats", arrays | {"x": arrays["x"] / 255}, "x of"
    yield "channels", arrays | {"x": arrays["x"][..., :2]}, "got uint8 (20, 16, 16, 2)"
    yield "lengths", arrays | {"y": arrays["y"][:5]}, "must be 20 integers, got int64 (5,)"
    yield "labels", arrays | {"y": arrays["y"] / 2}, "must be 20 integers, got float64"
    yield "one class", arrays | {"y": 0 * arrays["y"]}, "one class only"
    yield "mask", arrays | {"mask": arrays["mask"][:, :5]}, "mask of"
    yield "objects", {"x": arrays["x"], "y": np.array([None] * 20)}, "it holds something else"


@pytest.mark.parametrize(("arrays", "fragment"), [pytest.param(a, f, id=name) for name, a, f in bad_arrays()])
def test_bad_arrays(train, tmp_path, arrays, fragment):
    np.savez(tmp_path / "bad.npz", **arrays)
    outcome, output = train(file=tmp_path / "bad.npz")
    assert_refused(outcome, output, "--data", "bad.npz", fragment)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 half of it", None], ids=repr)
def test_files_that_are_no_npz(tmp_path, content):
    path = tmp_path / "bad.npz"
    np.save(path.open("wb"), np.zeros(3)) if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"^--data: .*bad\.npz is not an \.npz file with arrays x and y: [^.]*\.$"):
        data.from_npz(path)


def test_npz_with_masks_is_split_by_class(npz):
    task = data.from_npz(npz)
    assert task.label_names == ["0", "1", "2"]
    assert (task.channels, task.size) == (3, (16, 16))
    assert task.train.labels.bincount().tolist() == [16] * 3
    assert task.test.labels.bincount().tolist() == [4] * 3
    pixels = task.test.pixels(torch.arange(12), "none", None)
    assert (pixels.amin(1)[task.test.masks] == 255).all()
    everything = task.normalised(task.train.pixels(torch.arange(48), "none", None), CPU)
    assert torch.allclose(everything.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(everything.std((0, 2, 3)), torch.ones(3), atol=1e-3)
    smaller = task.limited(9, 6)
    assert smaller.train.labels.bincount().tolist() == [3] * 3
    assert smaller.test.masks.shape == (6, 16, 16)


def test_grey_images_and_labels_that_are_any_integers(tmp_path):
    arrays = squares(20, 1)
    np.savez(tmp_path / "grey.npz", x=arrays["x"][..., 0], y=arrays["y"] * 10 - 7)
    task = data.from_npz(tmp_path / "grey.npz")
    assert task.label_names == ["-7", "3", "13"]
    assert task.channels == 1
    assert task.train.masks is None


@pytest.fixture
def folders(tmp_path):
    """train/ and val/ with two classes of PNG, JPEG, palette and grey files of several sizes."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = draws.integers(0, 100, (20 + n, 30, 3), dtype=np.uint8) + np.uint8(150 * label)
                picture = Image.fromarray(pixels).convert(("RGB", "L", "P")[n % 3])
                picture.save(folder / f"{n}.{'png' if n % 3 else 'JPEG'}")
            (folder / "notes.txt").write_text("no image")
    return tmp_path / "set"


def test_folders_of_image_files(folders):
    task = data.load_task("folder", folders, 24)
    assert task.label_names == ["cat", "dog"]
    assert task.train.labels.tolist() == [0] * 6 + [1] * 6
    assert (task.channels, task.size, len(task.test.labels)) == (3, (24, 24), 4)
    generator = torch.Generator().manual_seed(0)
    for augment in ("none", "crop-flip"):
        pixels = task.train.pixels(torch.tensor([0, 11]), augment, generator)
        assert pixels.shape == (2, 3, 24, 24)
        assert pixels.dtype == torch.uint8
        assert pixels[0].float().mean() < 110 < pixels[1].float().mean()
    folders.joinpath("val").rename(folders / "test")
    assert len(data.load_task("folder", folders, 24).test.labels) == 4


def test_training_on_image_files(train, folders):
    options = "--dataset", "folder", "--image-size", 16, "--batch-size", 4, "--seeds", 1, "--arms", "reldrop"
    outcome, output = train(*options, file=folders)
    assert outcome.exit_code == 0, outcome.output
    other, _ = train(*options, "--image-size", 20, file=folders)
    assert other.exit_code == 2
    assert results(output)["task"]["pixels"] == [3, 16, 16]

    picture = folders / "train" / "cat" / "3.JPEG"
    picture.write_bytes(picture.read_bytes()[:-100])  # the header is whole
    broken, _ = train(*options, "--overwrite", file=folders)
    assert broken.exit_code == 1, broken.output
    message = " ".join(broken.output.split())
    assert "reldrop, seed 0: --data:" in message
    assert "3.JPEG cannot be read as an image" in message


def test_folders_that_are_none(train, folders, tmp_path):
    assert_refused(*train("--dataset", "folder", file=tmp_path), "must hold train and val")
    (folders / "train" / "cat" / "1.png").write_text("no image")
    assert_refused(*train("--dataset", "folder", file=folders), "1.png cannot be read as an image")
    for path in (folders / "val").glob("*/*.*"):
        path.unlink()
    (folders / "train" / "cat" / "1.png").unlink()
    assert_refused(*train("--dataset", "folder", file=folders), "holds no image files")
    (folders / "train" / "dog").rename(tmp_path / "dog")
    assert_refused(*train("--dataset", "folder", file=folders), "holds 1 class folders")


def test_output_folders_that_cannot_be_used(train, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "below"):
        outcome, unused = train("--output", output)
        assert_refused(outcome, unused, "--output", str(output))
    assert file.read_text() == "mine"
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    assert_refused(train("--output", full)[0], tmp_path / "out", "--output", "is not empty")
    (full / "results.json").write_text('{"runs": [], "summary": {}}')
    assert_refused(train("--output", full)[0], tmp_path / "out", "another command", "--overwrite")
