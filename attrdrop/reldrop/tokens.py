"""RelDrop on text: replaces tokens that a transformers model relies on before it trains on the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop import lrp
from attrdrop._core.checks import check_choice, is_int
from attrdrop._core.modules import outside_graphs, unwrap
from attrdrop.ops import draw_images, occlude_points
from attrdrop.reldrop.guided import Attribution, Guided
from attrdrop.schedules import Schedule

ZERO = "zero"


@dataclass(frozen=True)
class TokenStatistics:
    """What was actually replaced since the last reset.

    texts: all texts; tokens: their tokens without padding and protected ones; dropped: replaced tokens; attributed:
    texts for which relevance was computed; steps: calls in training mode.
    """

    texts: int = 0
    tokens: int = 0
    dropped: int = 0
    attributed: int = 0
    steps: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class RelDropTokens(Guided):
    """Replaces the most relevant tokens in some texts of a batch, as the last transform before the model.

    ::

        reldrop = attrdrop.RelDropTokens(
            model, value=tokenizer.mask_token_id, special=tokenizer.all_special_ids
        )
        for batch in loader:  # input_ids, attention_mask, labels, on the device
            model(**reldrop(batch)).loss.backward(); optimizer.step(); optimizer.zero_grad()

    It does nothing while the model is in evaluation mode. RelDrop's paper covers only images and point clouds; treating
    a text as a cloud of tokens is our extension. Texts are drawn before any relevance is computed, so only a share p of
    a batch is attributed.

    Args:
        model: the model being trained, from transformers or with its keywords; also inside DistributedDataParallel.
        value: the replacement for a token: the id of another token, such as the tokenizer's mask or padding token; or
            "zero", an embedding of zeros. Then the model gets ``inputs_embeds`` instead of ``input_ids``, computed by
            its own input embedding, which must not be sharded.
        special: ids of tokens that are never replaced. Padding, by the batch's attention_mask, and tokens marked by its
            special_tokens_mask are never replaced either.
        p: probability that a text loses tokens; a number, or a callable that takes the step (``attrdrop.schedules``).
        alpha: share of chance in the score by which tokens are dropped, also a number or callable. 1: random, without
            attribution.
        beta: the share of a text's tokens to drop, also a number or callable; rounded to whole tokens.
        mode, norm: see :func:`attrdrop.occlude_points`.
        rule: a rule or composite of ``attrdrop.lrp`` (default ``Epsilon(1e-6)``, with AttnLRP's rules for the rest);
            "random"; or a callable (model, input_ids, labels) -> relevance (N, T).
        target: "label", the class in the batch's labels, or "pred", the predicted one, as regression and token-level
            models need.
        position, embedding, start, unknown, output: see :func:`attrdrop.lrp.relevance`; position is for models with
            logits at each token.
        every: attribute only in every n-th step; the others drop at random. An approximation.
        cache_epochs: see :class:`RelDrop`; the texts must be padded to one length.
        warmup: number of initial steps that leave texts alone.
        seed: seed of all draws. They depend only on it, the step and the sample's position in the global batch.

    Raises:
        TypeError, ValueError: an argument is not as said above.
    """

    p: Schedule
    alpha: Schedule
    beta: Schedule

    def __init__(
        self,
        model: nn.Module,
        *,
        value: int | str,
        special: Sequence[int] = (),
        p: Schedule = 0.5,
        alpha: Schedule = 0.5,
        beta: Schedule = 0.15,
        mode: str = "calibrated",
        norm: str | None = None,
        rule: Attribution | None = None,
        position: str | int | None = None,
        embedding: str | nn.Module | None = None,
        **settings: Any,
    ) -> None:
        rule = lrp.Epsilon(1e-6) if rule is None else rule
        super().__init__(model, "input_ids", {"p": p, "alpha": alpha, "beta": beta}, rule=rule, **settings)
        if isinstance(value, str):
            check_choice("value", value, (ZERO,), quoted=True, more=" or the id of a token")
        elif not is_int(value) or value < 0:
            raise ValueError(f"value must be the id of a token or {ZERO!r}, got {value!r}")
        self.value = value if isinstance(value, str) else int(value)
        self.special = tuple(special)
        if not all(map(is_int, self.special)):
            raise TypeError(f"special must hold ids of tokens (tokenizer.all_special_ids), got {special!r}")
        self._lrp |= {"position": position, "embedding": embedding}
        self._drop: dict[str, Any] = {"mode": mode, "norm": norm}
        occlude_points(torch.zeros(0, 1, 1), seed=0, **self._drop)

    def statistics(self) -> TokenStatistics:
        """What was replaced on this process since the last reset. Synchronises with the device."""
        tokens, dropped = (0, 0) if self._sums is None else map(int, self._sums.tolist())
        return TokenStatistics(self._seen, tokens, dropped, self._attributed, self._steps)

    @outside_graphs
    def __call__(
        self, batch: Mapping[str, Any], relevance: Tensor | None = None, samples: Tensor | None = None
    ) -> dict[str, Any]:
        """The batch with tokens replaced, without special_tokens_mask, which no model takes.

        Args:
            batch: keywords of the model: input_ids (N, T), usually attention_mask (N, T), and labels int64 (N,) for
                target="label". All tensors have one row per text.
            relevance: (N, T), used instead of the model's own.
            samples: int64 (N,), the texts' indices in the data set, for cache_epochs; best on the CPU.

        Raises:
            TypeError, ValueError: as the class and functions named above.
        """
        if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
            got = f"one of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(f"batch must be a mapping with input_ids (N, T), such as a tokenizer gives, got {got}")
        ids = batch["input_ids"]
        labels = None if self._target == "pred" else batch.get("labels")
        self._check_batch(ids, labels, "(N, T)", of_floats=False)
        if ids.is_floating_point():
            raise TypeError(f"input_ids must be int64 or int32 tokens, got {ids.dtype}")
        given = {name: x for name, x in batch.items() if name != "special_tokens_mask"}
        if not unwrap(self.model).training:
            return given
        valid = self._replaceable(batch)
        arguments = {name: x for name, x in given.items() if name not in ("input_ids", "labels")}
        with self._among_all(ids, labels, arguments):
            dropped = self._dropped(ids, labels, relevance, valid, samples, arguments)
        if not isinstance(self.value, str):
            return given | {"input_ids": ids.masked_fill(dropped, self.value)}
        del given["input_ids"]
        return given | {"inputs_embeds": self._embedding()(ids).masked_fill(dropped[..., None], 0)}

    def _replaceable(self, batch: Mapping[str, Any]) -> Tensor:
        """Which tokens may be replaced, bool (N, T)."""
        ids = batch["input_ids"]
        valid = torch.ones_like(ids, dtype=torch.bool)
        for name, is_wanted in (("attention_mask", True), ("special_tokens_mask", False)):
            mask = batch.get(name)
            if mask is None:
                continue
            if not isinstance(mask, Tensor) or mask.shape != ids.shape:
                got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(f"{name} must have the shape of input_ids, {tuple(ids.shape)}, got {got}")
            valid &= mask.to(ids.device).bool() == is_wanted
        for token in self.special:
            valid &= ids != token
        return valid

    def _dropped(
        self,
        ids: Tensor,
        labels: Tensor | None,
        relevance: Tensor | None,
        valid: Tensor,
        samples: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:
        """Which tokens are replaced, bool (N, T)."""
        count, device = ids.shape[0], ids.device
        visited = self._visited(samples, count)
        p = 0.0 if self._step < self.warmup else self._scheduled("p")
        alpha, beta = self._scheduled("alpha"), self._scheduled("beta")
        if not self._is_guided(relevance):
            alpha, relevance = 1.0, None
        seed, places = self._step_seed(), self._ids(count, "cpu")
        index = draw_images(count, p, seed=seed, sample_ids=places).nonzero().squeeze(1)
        place = index.to(device, non_blocking=True)
        attributed, drawn = 0, ids[place]
        if relevance is not None:
            relevance = relevance[place]
        elif alpha < 1 and beta > 0 and drawn.numel():
            part = {name: x[place] if isinstance(x, Tensor) else x for name, x in arguments.items()}
            known = None if visited is None else [visited[one] for one in index.tolist()]
            relevance, attributed = self._relevance(drawn, None if labels is None else labels[place], known, part)
        _, found = occlude_points(
            torch.zeros(*drawn.shape, 1, device=device), relevance, alpha=alpha, beta=beta, valid=valid[place],
            seed=seed, sample_ids=places[index], inplace=True, **self._drop,
        )  # fmt: skip
        dropped = torch.zeros_like(valid).index_copy_(0, place, found)
        self.occluded = dropped.any(1)
        self._count([valid.sum(), dropped.sum()], count, attributed)
        return dropped

    def _embedding(self) -> nn.Module:
        model: Any = unwrap(self.model)
        wanted = self._lrp["embedding"]
        if isinstance(wanted, str):
            return model.get_submodule(wanted)
        return model.get_input_embeddings() if wanted is None else wanted

    def _summed(self, relevance: Tensor) -> Tensor:
        return relevance.float()
