"""Relevance by way of zennit, captum and LXT: optional rivals, each in the fastest form that its users have.

Weights need no gradient. zennit and captum are given a copy of the model that has a module for each function. LXT
patches classes of transformers for the whole process; they are set back after each call.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from bench.steps import zennit_peer

EPS = 1e-6


def zennit_epsilon(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Epsilon in all layers, in proportion at sums."""
    peer = zennit_peer.Relevance(model, torch.float32)
    zennit = importlib.import_module("zennit")
    layers = [*zennit.composites.layer_map_base(), (zennit.types.Linear, zennit.rules.Epsilon(epsilon=EPS))]
    composite = zennit.composites.LayerMapComposite(layers, canonizers=peer.attribute.composite.canonizers)
    return _attributed(zennit.attribution.Gradient(peer.copy, composite))


def zennit_plus_flat(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return _attributed(zennit_peer.Relevance(model, torch.float32).attribute)


def _attributed(attribute: Callable) -> Callable[[Tensor, Tensor], Tensor]:
    def call(images: Tensor, labels: Tensor) -> Tensor:
        def start(logits: Tensor) -> Tensor:
            return nn.functional.one_hot(labels, logits.shape[1]) * logits.detach()

        return attribute(images, start)[1]

    return call


def captum_epsilon(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Epsilon in all layers, which are captum's own rules but for sums and shortcuts."""
    attr = importlib.import_module("captum.attr")
    rules = importlib.import_module("captum.attr._utils.lrp_rules")
    added = importlib.import_module("captum.attr._utils.custom_modules").Addition_Module
    copy = zennit_peer.in_modules(model, divides=False)
    for module in copy.modules():
        if hasattr(module, "add"):
            module.add = added()
            module.shortcut = module.shortcut if len(module.shortcut) else nn.Identity()
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.Identity, added, nn.AdaptiveAvgPool2d)
    treated = [module for module in copy.modules() if isinstance(module, kinds)]
    found = attr.LRP(copy)

    def call(images: Tensor, labels: Tensor) -> Tensor:
        for module in treated:  # a call takes them away
            module.rule = rules.EpsilonRule(EPS)
        return found.attribute(images, target=labels)

    return call


def _load_lxt() -> ModuleType:
    """LXT's patches for Llama, without those for other models, which need other versions of transformers."""
    if "lxt.efficient" not in sys.modules:
        package = importlib.import_module("lxt")
        for name in ("lxt.efficient", "lxt.efficient.models"):
            sys.modules[name] = empty = ModuleType(name)
            empty.__path__ = [str(Path(package.__path__[0], *name.split(".")[1:]))]
    return importlib.import_module("lxt.efficient.models.llama")


class _Functions(dict):
    """What LXT leaves as a dictionary, as transformers 5 asks it."""

    get_interface = dict.get


@contextlib.contextmanager
def _patched() -> Iterator[None]:
    llama = _load_lxt()
    targets = list(llama.attnLRP)
    kept = [dict(vars(target)) for target in targets]
    for target, patch in llama.attnLRP.items():
        patch(target)
    llama.modeling_llama.ALL_ATTENTION_FUNCTIONS = _Functions(llama.modeling_llama.ALL_ATTENTION_FUNCTIONS)
    try:
        yield
    finally:
        for target, before in zip(targets, kept, strict=True):
            for name, value in before.items():
                if vars(target)[name] is not value:
                    setattr(target, name, value)


def lxt_attnlrp(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """AttnLRP of embeddings for the next token, gradient times input under LXT's patches."""
    model = model.eval().requires_grad_(False)

    def call(embedded: Tensor, tokens: Tensor) -> Tensor:
        x = embedded.detach().requires_grad_(True)
        with _patched():
            logits = model(inputs_embeds=x).logits[:, -1]
            (grad,) = torch.autograd.grad(logits.gather(1, tokens[:, None]).sum(), x)
        return x.detach() * grad

    return call


PEERS = {
    "zennit, epsilon": zennit_epsilon,
    "zennit, epsilon-plus-flat": zennit_plus_flat,
    "captum, epsilon": captum_epsilon,
    "LXT, AttnLRP": lxt_attnlrp,
}
"""By arm; the name before the comma is that of the package."""


def missing(arm: str) -> Exception | None:
    """Why an arm cannot run here."""
    loaders = {
        "zennit": zennit_peer.missing,
        "captum": lambda: importlib.import_module("captum.attr"),
        "LXT": _load_lxt,
    }
    try:
        found = loaders.get(arm.partition(",")[0], lambda: None)()
    except (ImportError, AttributeError) as error:
        return error
    return found if isinstance(found, Exception) else None
