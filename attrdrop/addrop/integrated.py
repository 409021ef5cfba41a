"""IGA: pass 1 of AD-DROP ranks by integrated gradients (Eq. 3).

Scaling A of one layer by k / m scales its head outputs O = A V, so B = A * (mean over k of dO_k) Vᵀ with dO_k the
gradient at (k / m) O. Step k = m is GA's pass 1, and its one walk back serves all layers. Each other step of a layer is
a forward and a walk back over what lies above that layer: what lies below does not change. Several steps may run as one
larger batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.modules import RandomState
from attrdrop.addrop.gradient import GradientAttribution, GradientPass1
from attrdrop.addrop.passes import AttentionCall, Draws, Pass1, Site, SiteOrder
from attrdrop.addrop.replay import Repeat, Replay
from attrdrop.addrop.statistics import live_queries
from attrdrop.addrop.targets import attribution_target, predictions
from attrdrop.ops import AttentionWeight, masked_attention


class IntegratedGradientAttribution(GradientAttribution):
    """Pass 1 is GA's, and then a forward and a walk back for each other step of each masked layer."""

    def attribute(self, model: nn.Module, batch: Mapping[str, Any], draws: Draws) -> list[Site]:
        images, size = batch.get("pixel_values"), len(draws.sample_ids)
        if self.config.iga_batch > 1 and isinstance(images, Tensor) and images.shape[0] != size:
            raise ValueError(
                f"iga_batch must be 1 where pixel_values have another first dimension than the batch, "
                f"{images.shape[0]} for {size} samples, got {self.config.iga_batch}"
            )
        sites = self.known_sites(model, batch)
        with torch.enable_grad(), self.pass1_mode(model, draws.sample_ids.device):
            pass1 = IntegratedPass1(draws, self.scope, sites)
            predicted = predictions(self._walk_back(pass1, model, batch))  # the outputs go, and the graph with them
            score = functools.partial(self._score, model, batch, predicted)
            pass1.integrate(score, self.config.iga_steps, self.config.iga_batch)
        return pass1.sites

    def _score(
        self, model: nn.Module, batch: Mapping[str, Any], predicted: Tensor | None, scaled: ScaledPass1
    ) -> Tensor:
        """The sum of F over the steps that run at once."""
        inputs, labels, target = scaled.repeat(batch), scaled.repeat(predicted), self.config.target
        outputs = model(**inputs, attrdrop=scaled)
        return attribution_target(outputs, inputs, target, model, labels, scaled.steps)


@dataclass(eq=False)
class Integrand:
    """What a layer's integral needs: its call and head outputs (B, n, H, d) of step m, without graph.

    random is the generators' state behind the call: every step goes on from it, so that all have the same dropout.
    """

    site: Site
    call: AttentionCall
    out: Tensor
    random: RandomState
    total: Tensor | None = None

    def add(self, grad_out: Tensor) -> None:
        """Adds dO_k, in float32 or wider."""
        grad_out = grad_out.to(torch.promote_types(grad_out.dtype, torch.float32))
        self.total = grad_out if self.total is None else self.total + grad_out


class IntegratedPass1(GradientPass1):
    """Step m, and after :meth:`walk_back` the others, by :meth:`integrate`."""

    def __init__(self, draws: Draws, scope: Container[nn.Module], sites: Sequence[Site] = ()):
        super().__init__(draws, scope, sites)
        self._device = draws.sample_ids.device
        self._replay = Replay(self._device)
        self._integrands: list[Integrand] = []
        self._before = RandomState.now(self._device)

    def run(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        with self._replay.recorded(model, lambda: max(self._markers, default=-1) + 1):
            return super().run(model, batch)

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        known = len(self._markers)
        out = super().attend(call, plain)
        if len(self._markers) > known:
            site, random = self.sites[max(self._markers)], RandomState.now(self._device)
            self._integrands.append(Integrand(site, call.detached(), out.detach(), random))
        return out

    def walk_back(self, target: Tensor, may_miss: bool = False) -> None:
        self._integrands = [integrand for integrand in self._integrands if integrand.site.is_masked]
        self._replay.forget_above(max((integrand.site.index for integrand in self._integrands), default=0))
        super().walk_back(target, may_miss)
        self._integrands = [integrand for integrand in self._integrands if integrand.site.is_masked]

    def integrate(self, score: Callable[[ScaledPass1], Tensor], steps: int, at_once: int = 1) -> None:
        """Steps 1 to m - 1 of each masked layer, so many at once; then its bits.

        ``score`` runs the model under a pass, on a batch that the pass has repeated, and gives the sum of the steps' F.
        """
        after = RandomState.now(self._device)
        size = len(self.draws.sample_ids)
        for integrand in self._integrands:
            for first in range(1, steps, at_once):
                shares = [k / steps for k in range(first, min(first + at_once, steps))]
                with self._replay.replayed(integrand.site.index, Repeat(size, len(shares))):
                    scaled = ScaledPass1(self.draws, self.sites, integrand, shares)
                    self._before.restore()
                    (grad_out,) = torch.autograd.grad(score(scaled), scaled.out)
                for part in grad_out.chunk(len(shares)):
                    integrand.add(part)
            self._rank(integrand, steps)
        after.restore()

    def _use(self, site: Site, grad_out: Tensor, value: Tensor) -> None:
        next(integrand for integrand in self._integrands if integrand.site is site).add(grad_out)

    @torch.no_grad()
    def _rank(self, integrand: Integrand, steps: int) -> None:
        site, call, total = integrand.site, integrand.call, integrand.total
        assert total is not None  # step m is in it
        bias, scale = call.bias(), call.score_scale()
        _, lse = masked_attention(
            call.query, call.key, call.value, self._valid_bits(call), bias=bias, sinks=call.sinks, scale=scale,
            return_lse=True,
        )  # fmt: skip
        x = (total / steps).transpose(1, 2).to(call.value.dtype)
        weight = AttentionWeight(call.query, call.key, lse, scale, bias)
        site.keep = self.draws.keep_mask(site, x, call.value, weight=weight)
        site.live = live_queries(x) if self.draws.count_dead else None


class ScaledPass1(Pass1):
    """Some steps in one batch: plain attention, but (k / m) O as the head outputs of one layer, one k after another."""

    def __init__(self, draws: Draws, sites: list[Site], integrand: Integrand, shares: Sequence[float]):
        super().__init__(draws)
        self.steps = len(shares)
        self.repeat = Repeat(len(draws.sample_ids), self.steps)
        self.out = torch.cat([integrand.out * share for share in shares]).requires_grad_()
        self._integrand = integrand
        self._order = SiteOrder(sites)

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        site = self._order.find(call.module)
        if site is None:
            return plain()
        if site is self._integrand.site:
            self._integrand.random.restore()
            return self.out
        return self._attend_plainly(call, site, plain)
