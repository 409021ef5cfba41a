"""`attrdrop explain`: texts and image files, and what it refuses."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from attrdrop import lrp
from attrdrop.lab.cli.main import app
from attrdrop.models import resnet10

transformers = pytest.importorskip("transformers")


def run(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder of a tiny classifier with the shipped tokenizer."""
    from attrdrop.lab.text import shipped

    folder = tmp_path_factory.mktemp("model")
    transformers.AutoTokenizer.from_pretrained(shipped.BERT_TINY).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(shipped.BERT_TINY, id2label={0: "bad", 1: "good"})
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def test_texts(classifier, tmp_path):
    texts = ("--text", "a warm, funny film", "--text", "dull")
    done = run("--model", classifier, *texts, "--target", 1, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.output.count("good: ") == 2
    assert "funny" in done.output
    assert "[PAD]" not in done.output
    assert (tmp_path / "out" / "explained.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "explained.html").read_text(encoding="utf-8").count("<p ") == 2


def test_images(tmp_path):
    torch.manual_seed(0)
    torch.save(resnet10(7).state_dict(), tmp_path / "weights.pt")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    means = ("--model", "resnet10", "--weights", tmp_path / "weights.pt", "--image-size", 32)
    done = run(*means, "--image", tmp_path / "red.png", "--target", 6, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "red.png: 6, " in done.output
    others = [
        run(*means, "--image", tmp_path / "red.png", "--target", 6, "--output", tmp_path / str(place), *given).output
        for place, given in enumerate([("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"), ("--mean", "0")])
    ]
    assert others[0].splitlines()[0] == done.output.splitlines()[0] != others[1].splitlines()[0]
    for given, message in (
        (("--mean", "a"), "--mean: 'a' must be a number, or three separated by commas"),
        (("--std", "1,2"), "--std: '1,2' must be a number, or three"),
        (("--std", "0"), "--std: 0 must be above 0"),
    ):
        refused = run(*means, *given, "--image", tmp_path / "red.png", "--output", tmp_path / "no")
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.split())
    assert (tmp_path / "out" / "explained.png").read_bytes().startswith(b"\x89PNG")
    refused = run(*means, "--image", tmp_path / "weights.pt", "--output", tmp_path / "other")
    assert refused.exit_code == 2
    assert "could not be read as an image" in " ".join(refused.output.split())


def test_normalisation_is_what_is_said_or_what_the_model_says():
    from attrdrop.lab.images.explained import MEAN, STD, normalisation

    assert normalisation({}, "", "") == (list(MEAN), list(STD))
    own = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    assert normalisation(own, "", "") == ([0.5] * 3, [0.25] * 3)
    assert normalisation(own, "0.1", "1,2,3") == ([0.1], [1, 2, 3])


@pytest.mark.parametrize(
    ("processor", "usual"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 16, "width": 16}}, (0.5, 0.25, 16)),
        ({"do_normalize": False, "do_center_crop": True, "crop_size": {"height": 16, "width": 16},
          "size": {"shortest_edge": 20}}, (0.0, 1.0, 16)),
        (None, None),
    ],
)  # fmt: skip
def test_an_image_model_of_transformers_with_its_processor(processor, usual, tmp_path):
    from attrdrop.lab.images.explained import MEAN, SIZE, STD, explained

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**sizes, image_size=16 if processor else SIZE, patch_size=8, num_labels=4)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    if processor is not None:
        given = {"image_processor_type": "ViTImageProcessor", **processor}
        (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(given))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    means = (lrp.Epsilon(1e-6), None, torch.device("cpu"))
    images, relevance, classes, logits = explained(
        str(tmp_path / "vit"), "", [tmp_path / "red.png"], None, ("", ""), *means
    )
    mean, std, size = usual or (torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1), SIZE)
    assert images.shape == relevance.shape == (1, 3, size, size)
    x = (images - mean) / std
    with torch.no_grad():
        wanted = model(x).logits
    assert logits == [pytest.approx(float(wanted.amax()), rel=1e-5)]
    torch.testing.assert_close(relevance, lrp.relevance(model, x, torch.tensor(classes), rule=means[0]))


def test_an_image_model_of_transformers_has_its_own_weights(tmp_path):
    (tmp_path / "vit").mkdir()
    done = run("--model", tmp_path / "vit", "--image", "red.png", "--weights", "a.pt", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "has its own weights, so a.pt cannot be loaded" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --text or --image"),
        (["--text", "a", "--image", "b"], "give either --text or --image"),
        (["--text", "a", "--rule", "no"], "'no' is not one of epsilon-plus-flat"),
        (["--text", "a"], "explain takes a text classifier"),
    ],
)
def test_refusals(arguments, message, tmp_path):
    done = run("--model", "bert-tiny", *arguments, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_a_class_that_is_not_there(classifier, tmp_path):
    done = run("--model", classifier, "--text", "a", "--target", 2, "--output", tmp_path / "out")
    assert "--target: 2 is not a class" in " ".join(done.output.split())
