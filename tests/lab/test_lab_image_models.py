"""Models by name and their weights: ours from torchvision's files, models of packages, what does not fit."""

import importlib.util

import pytest
import torch
from lab_runs import one_thread  # noqa: F401
from torch import nn

from attrdrop import lrp, models
from attrdrop.lab.errors import InputError
from attrdrop.lab.images import models as by_name
from attrdrop.models import from_torchvision

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"no package {name}")
    for name in ("torchvision", "timm")
}


class Named(nn.Module):
    """A residual network with torchvision's names: what its files hold, written out by hand."""

    def __init__(self, blocks, bottleneck, width=4, classes=5):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            wide = width * 2**stage
            out = wide * (4 if bottleneck else 1)
            layer = []
            for place in range(count):
                stride = 2 if stage and not place else 1
                block = nn.Module()
                shapes = [(channels, wide, 1, 1), (wide, wide, 3, stride), (wide, out, 1, 1)]
                if not bottleneck:
                    shapes = [(channels, wide, 3, stride), (wide, wide, 3, 1)]
                for number, (i, o, kernel, step) in enumerate(shapes, 1):
                    setattr(block, f"conv{number}", nn.Conv2d(i, o, kernel, step, kernel // 2, bias=False))
                    setattr(block, f"bn{number}", nn.BatchNorm2d(o))
                if stride > 1 or channels != out:
                    block.downsample = nn.Sequential(
                        nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                    )
                layer.append(block)
                channels = out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                y = x
                last = 3 if hasattr(block, "conv3") else 2
                for number in range(1, last + 1):
                    y = getattr(block, f"bn{number}")(getattr(block, f"conv{number}")(y))
                    y = torch.relu(y) if number < last else y
                x = torch.relu(y + (block.downsample(x) if hasattr(block, "downsample") else x))
        return self.fc(x.mean((2, 3)))


SHAPES = {
    "resnet18": ([2, 2, 2, 2], False),
    "resnet34": ([3, 4, 6, 3], False),
    "resnet50": ([3, 4, 6, 3], True),
    "resnet101": ([3, 4, 23, 3], True),
}


def shaken(model):
    """With statistics of BatchNorm that are not those of the beginning."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_weights_of_torchvision_give_the_same_logits(name):
    torch.manual_seed(0)
    theirs = shaken(Named(*SHAPES[name]))
    ours = getattr(models, name)(5, width=4, small_images=False).eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    x = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"got 'classifier.weight'"):
        from_torchvision({"classifier.weight": x})


@pytest.mark.parametrize(("name", "parameters"), [("resnet34", 21_797_672), ("resnet101", 44_549_160)])
def test_parameters_are_those_of_the_published_networks(name, parameters):
    with torch.device("meta"):
        model = getattr(models, name)(1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.fixture
def checkpoint(tmp_path):
    """Of resnet18 with torchvision's names, as distributed training keeps it."""
    torch.manual_seed(0)
    state = shaken(Named(*SHAPES["resnet18"], width=64, classes=5)).state_dict()
    path = tmp_path / "resnet18.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    return path, state


def test_a_checkpoint_is_loaded_with_its_head_or_without(checkpoint):
    path, state = checkpoint
    same = by_name.build("resnet18", str(path), 5, 3, (64, 64))
    assert torch.equal(same.head.weight, state["fc.weight"])
    assert same.stem[0].kernel_size == (7, 7)
    assert torch.equal(same.stages[3][0].shortcut[1].running_var, state["layer4.0.downsample.1.running_var"])
    other = by_name.build("resnet18", str(path), 7, 3, (64, 64))
    assert other.head.out_features == 7
    assert torch.equal(other.stem[0].weight, state["conv1.weight"])
    assert lrp.relevance(other, torch.randn(2, 3, 64, 64), "pred").isfinite().all()


def test_what_training_saved_is_loaded_again(tmp_path):
    for name, size in (("resnet10", (32, 32)), ("vit-tiny", (16, 16))):
        model = by_name.build(name, "", 4, 1, size)
        torch.save(model.state_dict(), tmp_path / "model.pt")
        again = by_name.build(name, str(tmp_path / "model.pt"), 4, 1, size)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
        assert len(again.state_dict()) == len(model.state_dict())


def test_weights_in_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = by_name.build("resnet10", "", 4, 3, (32, 32))
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = by_name.build("resnet10", str(tmp_path / "model.safetensors"), 4, 3, (32, 32))
    assert torch.equal(again.head.weight, model.head.weight)


def test_weights_that_do_not_fit_are_refused(checkpoint, tmp_path):
    path, _ = checkpoint
    with pytest.raises(InputError, match=r"--weights: .*resnet18.pth holds .* they belong to another model"):
        by_name.build("vit-tiny", str(path), 5, 3, (32, 32))
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(InputError, match=r"text.pt holds no weights that can be read"):
        by_name.read_weights(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"list.pt holds no tensors by name"):
        by_name.read_weights(tmp_path / "list.pt")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is there")
def test_a_package_that_is_not_there_is_named():
    with pytest.raises(InputError, match="the package timm is not installed: pip install timm"):
        by_name.build("timm:resnet26", "", 5, 3, (32, 32))


@needs["torchvision"]
def test_models_of_torchvision(tmp_path):
    model = by_name.build("torchvision:resnet18", "", 5, 3, (32, 32))
    assert model.fc.out_features == 5
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = by_name.build("torchvision:resnet18", str(tmp_path / "model.pt"), 5, 3, (32, 32))
    assert torch.equal(again.fc.weight, model.fc.weight)
    ours = by_name.build("resnet18", str(tmp_path / "model.pt"), 5, 3, (64, 64)).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="--model: torchvision cannot make resnet17"):
        by_name.build("torchvision:resnet17", "", 5, 3, (32, 32))
    with pytest.raises(InputError, match="take 3 channels, and the images have 1"):
        by_name.build("torchvision:resnet18", "", 5, 1, (32, 32))


@needs["timm"]
def test_models_of_timm():
    model = by_name.build("timm:resnet10t", "", 5, 1, (32, 32))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(InputError, match="--model: timm cannot make resnet17"):
        by_name.build("timm:resnet17", "", 5, 3, (32, 32))
