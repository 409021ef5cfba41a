"""Text: embeddings that take the place of tokens, and the places whose logits are explained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.checks import is_int
from attrdrop.lrp.engine import Propagation
from attrdrop.lrp.request import Request, can_look, submodule


@contextlib.contextmanager
def embedded(request: Request, propagation: Propagation, points: list[Tensor]) -> Iterator[None]:
    """The graph begins meanwhile where the model embeds its tokens; what it makes of them is added to points."""
    if not request.has_tokens or (request.modules and request.stops):
        yield
        return
    handles = []

    def root(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        ids = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if ids is None or not isinstance(output, Tensor):
            return None
        is_wanted = _are_the_inputs(request, module, ids, output)
        if not is_wanted and not _is_of_tokens(request, module):
            return None
        with torch._C.DisableTorchFunction():
            output = propagation.root(output)
            propagation.start(output, is_raw=False)
        if is_wanted:
            points.append(output)
        return output

    try:
        for module in _embeddings(request):
            handles.append(module.register_forward_hook(root, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not points:
        where = "no nn.Embedding of the model receives them"
        where = where if request.embedding is None else "the given embedding does not receive them"
        raise ValueError(f"inputs are integers, but {where}; pass the module that embeds them as embedding=")


def _embeddings(request: Request) -> list[nn.Module]:
    if request.embedding is not None:
        return [submodule("embedding", request.model, request.embedding)]
    found: list[nn.Module] = [module for module in request.model.modules() if isinstance(module, nn.Embedding)]
    own = _own_embedding(request.model)
    return found if own is None or any(own is module for module in found) else [*found, own]


def _own_embedding(model: nn.Module) -> nn.Module | None:
    """What a model of transformers says embeds its inputs."""
    try:
        own = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return own if isinstance(own, nn.Module) else None


def _are_the_inputs(request: Request, module: nn.Module, ids: Tensor, output: Tensor) -> bool:
    """Whether a module embeds the inputs, and not other tokens, their positions or types."""
    inputs = request.inputs
    if output.shape[:-1] != inputs.shape or ids.numel() != inputs.numel():
        return False
    if ids.data_ptr() == inputs.data_ptr():
        return True
    if request.embedding is not None:
        others = (x for x in request.arguments.values() if isinstance(x, Tensor))
        return all(ids.data_ptr() != x.data_ptr() for x in others)
    return module is _own_embedding(request.model) and torch.equal(ids.view_as(inputs), inputs)


def _is_of_tokens(request: Request, module: nn.Module) -> bool:
    """Whether it embeds other tokens, such as a decoder's: activations too, which take their share of products."""
    own = _own_embedding(request.model)
    return own is not None and getattr(module, "weight", None) is getattr(own, "weight", own)


def explained(request: Request, logits: Tensor) -> Tensor:
    """The rows of logits that are explained (M, classes), of (N, classes) or (N, T, classes)."""
    position = request.position
    if logits.dim() != (2 if position is None else 3):
        wanted, hint = "(N, classes)", "select them with output=, or select a position in the text with position="
        if position is not None:
            wanted, hint = "(N, T, classes)", "position= selects a position in a text"
        raise ValueError(f"the model must return logits of shape {wanted}, got {tuple(logits.shape)}; {hint}")
    count = request.inputs.shape[0]
    if logits.shape[0] != count:
        raise ValueError(f"the model must return one row of logits per sample, {count}, got {logits.shape[0]}")
    if position is None:
        return logits
    if isinstance(position, Tensor) and position.dtype == torch.bool:
        if position.shape != logits.shape[:2]:
            raise ValueError(
                f"position as a mask must be of shape {tuple(logits.shape[:2])}, got {tuple(position.shape)}"
            )
        return logits[position]
    samples = torch.arange(count, device=logits.device)
    return logits[samples, _indices(request, position, count, logits.shape[1], logits.device)]


def targets(request: Request) -> Tensor | str:
    """A class for each row that is explained."""
    position, target = request.position, request.target
    if isinstance(position, Tensor) and position.dtype == torch.bool and isinstance(target, Tensor):
        return target[position]
    return target


def _indices(request: Request, position: Any, count: int, length: int, device: torch.device) -> Tensor:
    """A place for each sample."""
    valid = _valid(request, (count, length))
    if isinstance(position, str):
        if position != "last":
            raise ValueError(f"position must be 'last', an index, one per sample or a mask, got {position!r}")
        places = torch.arange(length, device=device).expand(count, length)
        return (places if valid is None else places * valid.to(device).bool()).amax(1)
    if is_int(position):
        position = torch.full((count,), position, device=device)
    if not isinstance(position, Tensor) or position.dtype != torch.int64 or tuple(position.shape) != (count,):
        got = (
            f"{position.dtype} of {tuple(position.shape)}" if isinstance(position, Tensor) else type(position).__name__
        )
        raise ValueError(f"position must be 'last', an index, int64 of shape ({count},) or a bool mask, got {got}")
    if can_look(position) and count:
        low, high = (int(x) for x in position.aminmax())
        if low < -length or high >= length:
            raise ValueError(
                f"position must lie in [{-length}, {length}), the text has {length} positions, got {low} to {high}"
            )
        if valid is not None and not valid.bool().gather(1, position.to(valid.device)[:, None] % length).all():
            raise ValueError("position must be in the text, got a padding position; position='last' is the last token")
    return position % length


def _valid(request: Request, shape: tuple[int, int]) -> Tensor | None:
    """Which places of the text that is explained are no padding, where the model is told."""
    is_double = getattr(getattr(request.model, "config", None), "is_encoder_decoder", False)
    is_double = is_double or any(name.startswith("decoder_") for name in (request.keyword or "", *request.arguments))
    mask = request.arguments.get("decoder_attention_mask" if is_double else "attention_mask")
    return mask if isinstance(mask, Tensor) and tuple(mask.shape) == shape else None
