"""Image classifiers by name, from scratch or from weights: ours, those of transformers, torchvision and timm."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop import models
from attrdrop.lab.errors import InputError, said
from attrdrop.lab.images.settings import LIBRARIES, PRETRAINED

Weights = Mapping[str, Tensor]
SMALL = 64  # pixels a side up to which a residual network has the stem for small images
_WRAPPED = ("state_dict", "model", "model_state_dict")  # entries of checkpoints that hold the weights
SAVED = ("weights.pt", "model.safetensors")  # files of a model's folder that --save left
_SAME_PLACE = 0.5  # of the weights must fit, or they are another model's


def build(name: str, weights: str, classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    """A model with these outputs, for images of so many channels and pixels.

    weights: "" for random ones, "pretrained" for those of the package, else a file. A head for other classes than ours
    is left out of them and starts anew.

    Raises:
        InputError: the package is not there, does not know the model, or the weights do not fit.
    """
    library, _, of_library = name.partition(":")
    if library in LIBRARIES:
        model = _of_library(library, of_library, weights == PRETRAINED, classes, channels)
        return model if weights in ("", PRETRAINED) else loaded(model, read_weights(Path(weights)), weights)
    state = None
    if weights == PRETRAINED:
        state = _of_torchvision(name)
    elif weights:
        state = read_weights(Path(weights))
    if name == "vit-tiny":
        model = _vit(classes, channels, size)
    else:
        if state is not None and models.resnet.is_torchvision(state):
            state = models.resnet.from_torchvision(state)
        stem = None if state is None else state.get("stem.0.weight")
        small = min(size) <= SMALL if stem is None else stem.shape[-1] == 3
        model = getattr(models, name)(classes, small_images=small, channels=channels)
    return model if state is None else loaded(model, state, weights)


def loaded(model: nn.Module, state: Weights, source: str) -> nn.Module:
    """The model with all weights that fit it by name and shape.

    Raises InputError where most do not.
    """
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < _SAME_PLACE * len(own):
        raise InputError(
            f"--weights: {source} holds {len(state)} tensors, of which {len(fitting)} fit one of the {len(own)} of "
            f"{type(model).__name__}; they belong to another model."
        )
    model.load_state_dict(fitting, strict=False)
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of torch.save or safetensors, by name; nothing in it is run. Or in a folder of --save."""
    if path.is_dir():
        path = next((file for name in SAVED if (file := path / name).is_file()), path)
    if not path.is_file():
        raise InputError(f"--weights: there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, ImportError) as error:
        reason = said(error).splitlines()[0] if isinstance(error, Exception) else ""
        raise InputError(f"--weights: {path} holds no weights that can be read: {reason}.") from None
    for wrapped in _WRAPPED:
        if isinstance(content, Mapping) and isinstance(content.get(wrapped), Mapping):
            content = content[wrapped]
    tensors = content if isinstance(content, Mapping) else {}
    found = {str(name).removeprefix("module."): value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not found:
        raise InputError(f"--weights: {path} holds no tensors by name.")
    return found


def _vit(classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {
        "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768,
        "image_size": size, "patch_size": max(1, min(size) // 8), "num_channels": channels, "num_labels": classes,
    }  # fmt: skip
    return ViTForImageClassification(ViTConfig(**sizes))


def _of_torchvision(name: str) -> Weights:
    """Those of ImageNet, for the residual network of the same name."""
    package = _package("torchvision")
    try:
        return package.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
    except (ValueError, KeyError):
        raise InputError(f"--weights: torchvision has no pretrained {name}; give a file.") from None
    except OSError as error:
        raise InputError(f"--weights: the weights of {name} cannot be fetched: {said(error)}; give a file.") from None


def _of_library(library: str, name: str, pretrained: bool, classes: int, channels: int) -> nn.Module:
    package = _package(library)
    try:
        if library == "timm":
            return package.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels)
        if channels != 3:
            raise InputError(
                f"--model: models of torchvision take 3 channels, and the images have {channels}; timm's do."
            )
        model = package.models.get_model(name, weights=None, num_classes=classes)
        if not pretrained:
            return model
        state = package.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
        return loaded(model, state, f"{library}:{name}")
    except OSError as error:
        raise InputError(f"--weights: the weights of {name} cannot be fetched: {said(error)}; give a file.") from None
    except (ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--model: {library} cannot make {name}: {said(error)}.") from None


def _package(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"--model, --weights: the package {name} is not installed: pip install {name}.") from None
    except (RuntimeError, OSError) as error:  # of another build of torch
        raise InputError(f"--model, --weights: the package {name} cannot be imported: {said(error)}.") from None
