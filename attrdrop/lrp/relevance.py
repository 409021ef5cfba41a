"""Relevance of a model's inputs and layers for its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from attrdrop._core.modules import unwrap
from attrdrop.lrp.composites import EpsilonPlusFlat
from attrdrop.lrp.request import Request, submodule, unpacked
from attrdrop.lrp.rules import Rule
from attrdrop.lrp.walk import propagate


def relevance(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    target: Tensor | str,
    *,
    rule: Rule | None = None,
    start: str = "logit",
    stop_at: str | nn.Module | None = None,
    attention: str = "attnlrp",
    unknown: str = "error",
    output: Callable[[Any], Tensor] | None = None,
    arguments: Mapping[str, Any] | None = None,
    of: str | None = None,
    embedding: str | nn.Module | None = None,
    position: str | int | Tensor | None = None,
    per: str = "token",
    create_graph: bool = False,
) -> Tensor:
    """Layer-wise relevance propagation: how much each input element contributes to the target class.

    Takes one forward in eval mode and one backward without weight gradients. The model does not change: parameters,
    gradients, buffers, training flags and random number generators are as before, even after an error. Models inside
    DistributedDataParallel and torch.compile work, and autocast is respected. Blocks inside torch.utils.checkpoint run
    without checkpointing and keep what their backward needs; backward hooks of modules do not run.

    Args:
        model: from (N, ...) floats or (N, T) tokens to logits (N, classes), or (N, T, classes) with position, also
            inside an output object with ``logits`` or a tuple.
        inputs: (N, ...), floating point; or int64 or int32 tokens (N, T), whose embeddings have relevance; or a batch
            of keywords with one of these, such as a tokenizer returns (labels are left out).
        target: int64 (N,), a class for each sample, or "pred" for the predicted ones. With a mask of positions, (N, T).
        rule: a rule for every layer or a composite; default :func:`attrdrop.lrp.EpsilonPlusFlat`.
        start: relevance of the target's logit. "logit": its value; "one": 1; "contrastive": the logits against their
            softmax, (onehot - softmax) logits.
        stop_at: a submodule or its name: returns the relevance of its output instead. The backward ends there, and the
            layers below keep nothing for it. If a module runs several times, its last output counts.
        attention: "attnlrp" halves relevance at each product of two activations; "detach" sends all of it through the
            values and none through the attention probabilities.
        unknown: what to do about a function without a rule: "error", or "gradient" to use the plain gradient.
        output: selects the logits from what the model returns in eval mode. It is required if a model in training mode
            returns outputs of another width there, for instance features in eval mode.
        arguments: further keyword arguments of the model.
        of: which entry of a batch of keywords gets relevance; by default "input_ids" or what replaces it. Explain the
            tokens of an encoder and a decoder one after the other.
        embedding: the module that embeds the tokens, or its name; by default every ``nn.Embedding`` that receives the
            inputs. It counts as the first layer, so rules for the first layer apply to no other.
        position: for logits (N, T, classes), the positions to explain: "last" for the last token that is not padding by
            the attention mask, an index, int64 (N,), or a bool mask (N, T), whose logits are explained together.
        per: relevance per "token", the sum over its embedding, or per "dimension" of the embedding.
        create_graph: whether relevance itself has a gradient, for the model's parameters and for inputs that require
            one, so that it can be part of a loss. Supported for Epsilon, Zero, ZPlus, Gamma and plain gradients.

    Returns:
        Relevance, shape of inputs (with stop_at: of that module's output; of tokens per dimension: (N, T, D)), float32
        for half-precision inputs.

    Raises:
        TypeError, ValueError: an argument is not as said above, a layer has no rule, the model has no linear layer,
            nothing embeds the tokens, or inputs contain NaN or infinity (checked only on the CPU).
    """
    inner = unwrap(model)
    modules = [] if stop_at is None else [submodule("stop_at", inner, stop_at)]
    rule = EpsilonPlusFlat() if rule is None else rule
    x, others, keyword = unpacked(inputs, arguments, of)
    means = (rule, start, attention, unknown, output, others, keyword, embedding, position, per, create_graph)
    return propagate(Request(inner, x, target, *means, modules=modules))[0]


def layer_relevance(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    target: Tensor | str,
    layers: Sequence[str],
    *,
    rule: Rule | None = None,
    start: str = "logit",
    attention: str = "attnlrp",
    unknown: str = "error",
    output: Callable[[Any], Tensor] | None = None,
    arguments: Mapping[str, Any] | None = None,
    of: str | None = None,
    embedding: str | nn.Module | None = None,
    position: str | int | Tensor | None = None,
) -> dict[str, Tensor]:
    """Relevance of the outputs of submodules, all from one pass; arguments and errors as :func:`relevance`.

    Args:
        layers: names of submodules, as in ``model.named_modules()``. A layer and the BatchNorm after it are one layer
            with one rule; naming the layer makes the BatchNorm a separate layer, naming the BatchNorm does not.

    Returns:
        By name, relevance with the shape of that module's output. Summed over space it is the relevance per channel:
        ``attrdrop.metrics.channel_relevance``.
    """
    inner = unwrap(model)
    modules = [submodule("layers", inner, name) for name in layers]
    if not modules:
        raise ValueError("layers must name at least one submodule, got none")
    rule = EpsilonPlusFlat() if rule is None else rule
    x, others, keyword = unpacked(inputs, arguments, of)
    means = (rule, start, attention, unknown, output, others, keyword, embedding, position)
    found = propagate(Request(inner, x, target, *means, modules=modules, stops=False))
    return dict(zip(layers, found, strict=True))
