"""`attrdrop evaluate-images` and `attrdrop maps`: class subsets, odd images, boxes, rules side by side."""

import numpy as np
import pandas as pd
import pytest
import torch
from lab_runs import names, one_thread, squares  # noqa: F401
from PIL import Image
from refusals import assert_refused
from typer.testing import CliRunner

from attrdrop import metrics
from attrdrop.lab.cli.main import app
from attrdrop.lab.errors import InputError
from attrdrop.lab.images.data import from_folder
from attrdrop.lab.images.evaluation import Evaluator, from_class_folders, odd_images, subset
from attrdrop.lab.images.files import class_list
from attrdrop.lab.images.models import build

CPU = torch.device("cpu")
CLASSES = ("n01", "n02", "n03", "n04")


def write(folder, counts, seed=0, size=(20, 30)):
    """Images of noise in class folders, brighter by class."""
    draws = np.random.default_rng(seed)
    for level, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            pixels = draws.integers(0, 60, (*size, 3), dtype=np.uint8) + np.uint8(45 * level)
            Image.fromarray(pixels).save(folder / name / f"{name}_{n}.png")
    return folder


@pytest.fixture
def sets(tmp_path):
    """val of four classes, a shifted set of two, an odd set named after two, and a list of the classes."""
    write(tmp_path / "val", dict.fromkeys(CLASSES, 5))
    write(tmp_path / "imagenet-r", {"n04": 3, "n02": 4}, 1)
    write(tmp_path / "imagenet-o", {"n01": 4, "n02": 2}, 2)
    words = {"n01": "tench, Tinca tinca", "n02": "goldfish", "n03": "great white shark", "n04": "tiger shark"}
    lines = [f"{name} {words[name]}" for name in reversed(CLASSES)]
    (tmp_path / "classes.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    torch.save(build("resnet10", "", 4, 3, (16, 16)).state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_a_class_list_names_and_orders_the_classes(sets):
    assert list(class_list(sets / "classes.txt").items())[-1] == ("n01", "tench")
    task, folders = from_class_folders(sets / "val", 16, sets / "classes.txt", None)
    assert folders == list(reversed(CLASSES))
    assert task.label_names[-1] == "tench"
    assert task.test.labels.bincount().tolist() == [5] * 4
    assert task.test.paths[0].parent.name == "n04"
    (sets / "short.txt").write_text("n01 a\nn02 b\n")
    with pytest.raises(InputError, match=r"--classes: .*does not name the class folders 'n03', 'n04'"):
        from_class_folders(sets / "val", 16, sets / "short.txt", None)
    (sets / "twice.txt").write_text("n01 a\nn01 b\n")
    with pytest.raises(InputError, match=r"must name two or more classes, each once"):
        class_list(sets / "twice.txt")


def test_subsets_are_labelled_by_the_places_of_their_classes(sets):
    images, classes = subset(sets / "imagenet-r", CLASSES, 16)
    assert classes == [1, 3]
    assert images.labels.tolist() == [0] * 4 + [1] * 3
    odd, against = odd_images(sets / "imagenet-o", CLASSES, 16)
    assert against == [0, 1]
    assert len(odd.labels) == 6
    write(sets / "foreign", {"zebra": 2}, 3)
    assert odd_images(sets / "foreign", CLASSES, 16)[1] == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"--shifted: .*the model has no output: 'zebra'"):
        subset(sets / "foreign", CLASSES, 16)


def test_rows_hold_the_metrics_of_sliced_logits(sets, weights):
    task, folders = from_class_folders(sets / "val", 16, None, None)
    model = build("resnet10", str(weights), 4, 3, (16, 16))
    evaluator = Evaluator(model, task, CPU)

    def logits(images):
        with torch.no_grad():
            return model(task.normalised(images.pixels(torch.arange(len(images.labels)), "none", None), CPU))

    own, (shifted, classes), (odd, against) = (
        logits(task.test), subset(sets / "imagenet-r", folders, 16), odd_images(sets / "imagenet-o", folders, 16),
    )  # fmt: skip
    row = evaluator.shifted_row(sets / "imagenet-r", folders, 16)
    assert (row["images"], row["classes"]) == (7, 2)
    assert row["top1"] == metrics.top1(logits(shifted)[:, classes], shifted.labels)
    assert row["aurra"] == pytest.approx(metrics.aurra(logits(shifted)[:, classes], shifted.labels))
    inside = own[(task.test.labels < 2)][:, against]
    row = evaluator.odd_row(sets / "imagenet-o", folders, 16)
    assert row["aupr"] == pytest.approx(metrics.aupr(inside, logits(odd)[:, against]))
    assert evaluator.test_row()["top1"] == metrics.top1(own, task.test.labels)
    assert "rank_accuracy" not in evaluator.test_row()


def boxes(folder, stem, *corners):
    folder.mkdir(exist_ok=True)
    objects = "".join(
        f"<object><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in corners
    )
    (folder / f"{stem}.xml").write_text(f"<annotation><filename>{stem}</filename>{objects}</annotation>")


def test_boxes_are_masks_of_what_is_shown(sets):
    """Images of 30 x 20: the centre of 17.5 pixels a side begins at x 6.25, y 1.25; 16 pixels show it."""
    boxes(sets / "xml", "n01_0", (0, 0, 15, 10))
    boxes(sets / "xml", "n02_1", (6.25, 1.25, 6.25 + 17.5 / 4, 1.25 + 17.5 / 2), (20, 15, 30, 20))
    task, _ = from_class_folders(sets / "val", 16, None, sets / "xml")
    masks = task.test.objects(torch.tensor([0, 6, 1]))
    assert masks.shape == (3, 16, 16)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:8, :8] = True
    assert torch.equal(masks[0], expected)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:8, :4] = True
    expected[13:, 13:] = True
    assert torch.equal(masks[1], expected)
    assert not masks[2].any()
    bright = task.test.pixels(torch.tensor([0]), "none", None)
    assert bright.shape == (1, 3, 16, 16)
    (sets / "xml" / "n01_1.xml").write_text("<annotation>")
    task, _ = from_class_folders(sets / "val", 16, None, sets / "xml")
    with pytest.raises(InputError, match=r"--boxes: .*n01_1.xml cannot be read"):
        task.test.objects(torch.tensor([1]))
    with pytest.raises(InputError, match=r"--boxes: there is no XML file"):
        from_class_folders(sets / "val", 16, None, sets / "imagenet-r")


def test_boxes_reach_training_sets_too(sets, tmp_path):
    write(tmp_path / "set" / "train", dict.fromkeys(CLASSES, 2))
    (sets / "val").rename(tmp_path / "set" / "val")
    boxes(sets / "xml", "n01_0", (0, 0, 30, 20))
    task = from_folder(tmp_path / "set", 16, sets / "classes.txt", sets / "xml").limited(None, None, 4)
    assert task.label_names[-1] == "tench"
    assert len(task.dev.labels) == 4
    assert task.test.objects(torch.tensor([15]))[0].all()  # n01 is the last class


def test_the_command_scores_all_sets(sets, weights):
    boxes(sets / "xml", "n01_0", (8, 4, 20, 16))
    arguments = [
        "evaluate-images", "--dataset", "folder", "--data", sets / "val", "--image-size", 16, "--model", "resnet10",
        "--weights", weights, "--shifted", sets / "imagenet-r", "--odd", sets / "imagenet-o", "--boxes", sets / "xml",
        "--output", sets / "table.csv",
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "120"})
    assert outcome.exit_code == 0, outcome.output
    for text in ("top-1, %", "AURRA, %", "AUPR, %", "rank acc., %", "val test", "imagenet-r", "imagenet-o"):
        assert text in outcome.output
    frame = pd.read_csv(sets / "table.csv")
    assert list(frame["images"]) == [20, 7, 6]
    assert list(frame["classes"]) == [4, 2, 2]
    assert frame["rank_accuracy"].notna().tolist() == [True, False, False]


def test_a_saved_model_is_scored_on_any_set(tmp_path):
    np.savez(tmp_path / "squares.npz", **squares())
    common = ["--dataset", "npz", "--data", str(tmp_path / "squares.npz")]
    trained = ["train-images", *common, "--epochs", "1", "--batch-size", "16", "--seeds", "1", "--arms", "plain"]
    outcome = CliRunner().invoke(app, [*trained, "--save", "--output", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    model = str(tmp_path / "out" / "models" / "plain")
    scored = CliRunner().invoke(app, ["evaluate-images", *common, "--weights", model], env={"COLUMNS": "120"})
    assert scored.exit_code == 0, scored.output
    accuracy = pd.read_csv(tmp_path / "out" / "runs.csv")["test_accuracy"][0]
    assert f"{100 * accuracy:.1f}" in scored.output
    assert_refused(CliRunner().invoke(app, ["evaluate-images", *common]), tmp_path / "none", "--weights: give a file")


@pytest.fixture
def maps(tmp_path):
    def maps(*arguments):
        command = ["maps", *map(str, arguments), "--output", str(tmp_path / "maps")]
        return CliRunner().invoke(app, command, env={"COLUMNS": "120"}), tmp_path / "maps"

    return maps


def test_maps_compare_rules_before_and_after_training(maps, tmp_path):
    np.savez(tmp_path / "squares.npz", **squares())
    outcome, output = maps(
        "--dataset", "npz", "--data", tmp_path / "squares.npz", "--train", "--epochs", 1, "--batch-size", 16,
        "--samples", 5, "--rules", "epsilon,abs-gradient", "--epsilons", "0.001,1",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    assert names(output) == ["maps_after.png", "maps_before.png", "rules.csv"]
    frame = pd.read_csv(output / "rules.csv")
    rules = ["epsilon 0.001", "epsilon 1", "abs-gradient", "random order"]
    assert list(frame.rule) == 2 * rules
    assert list(frame.moment) == ["before"] * 4 + ["after"] * 4
    covered = 16 / 256
    assert frame[frame.rule == "random order"].rank_accuracy.tolist() == pytest.approx([covered] * 2)
    assert frame.flipping.between(0, 1).all()
    assert (frame.rank_accuracy[:2].nunique()) == 2  # epsilon matters
    for text in ("before training", "after training", "rank acc., %", "ms each"):
        assert text in outcome.output
    again, _ = maps("--dataset", "npz", "--data", tmp_path / "squares.npz")
    assert again.exit_code == 2
    assert "is not empty" in again.output


def test_maps_refuse_what_they_cannot_draw(maps):
    for arguments, fragment in (
        (("--rules", "lrp"), "--rules: 'lrp' is not one of"),
        (("--rules", "epsilon,epsilon"), "--rules: name at least one rule, each once"),
        (("--epsilons", "0"), "--epsilons: 0.0 is not a stabiliser"),
    ):
        outcome, output = maps(*arguments)
        assert_refused(outcome, output, fragment)


@pytest.mark.slow
def test_planted_truth_tells_good_rules_from_bad_ones(maps):
    """The first of the summary's next checks, in one command."""
    outcome, output = maps("--dataset", "planted", "--train-size", 1500, "--epochs", 5, "--train", "--lr", 0.1)
    assert outcome.exit_code == 0, outcome.output
    frame = pd.read_csv(output / "rules.csv").set_index(["moment", "rule"])["rank_accuracy"]["after"]
    assert frame["epsilon-plus-flat"] > 2 * frame["random order"]
    assert frame["epsilon-plus-flat"] > frame["gradient-times-input"]
