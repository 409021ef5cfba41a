"""IGA: pass 1 of AD-DROP ranks by integrated gradients (Eq. 3).

Scaling A of one layer by k / m scales its head outputs O = A V, so B = A * (mean over k of dO_k) Vᵀ with dO_k the
gradient at (k / m) O. Step k = m is GA's pass 1, and its one walk back serves all layers. Each other step of a layer is
a forward and a walk back over what lies above that layer: what lies below does not change. Several steps may run as one
larger batch. Other nodes than k / m weigh the dO at them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.modules import RandomState
from attrdrop.addrop.gradient import GradientAttribution, GradientPass1
from attrdrop.addrop.passes import AttentionCall, Draws, Pass1, Site, SiteOrder
from attrdrop.addrop.quadrature import Node
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
                f"iga_batch must be 1 if the first dimension of pixel_values differs from that of the batch, "
                f"{images.shape[0]} for {size} samples, got {self.config.iga_batch}"
            )
        sites = self.known_sites(model, batch)
        with torch.enable_grad(), self.pass1_mode(model, draws.sample_ids.device):
            pass1 = IntegratedPass1(draws, self.scope, sites, self.config.iga_nodes, self.config.iga_scope == "joint")
            predicted = predictions(self._walk_back(pass1, model, batch))  # the outputs go, and the graph with them
            score = functools.partial(self._score, model, batch, predicted)
            pass1.integrate(score, self.config.iga_batch)
        return pass1.sites

    def _score(
        self, model: nn.Module, batch: Mapping[str, Any], predicted: Tensor | None, scaled: ScaledPass1 | JointPass1
    ) -> Tensor:
        """The sum of F over the steps that run at once."""
        inputs, labels, target = scaled.repeat(batch), scaled.repeat(predicted), self.config.target
        outputs = model(**inputs, attrdrop=scaled)
        return attribution_target(outputs, inputs, target, model, labels, scaled.steps)


@dataclass(eq=False)
class Integrand:
    """What a layer's integral needs: its call and head outputs (B, n, H, d) of step m, without graph.

    random is the generators' state behind the call: every step goes on from it, so that all have the same dropout.
    sums: weighed dO, x (B, H, n, d) in float32 or wider, of each value that they go with; one but in joint steps.
    """

    site: Site
    call: AttentionCall
    out: Tensor
    random: RandomState
    sums: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, grad_out: Tensor, weight: float, value: Tensor | None = None) -> None:
        """Adds dO at a node. value: that of this node, None where it is that of the whole attention."""
        x = grad_out.to(torch.promote_types(grad_out.dtype, torch.float32)).transpose(1, 2) * weight
        if value is not None:
            self.sums.append((x, value))
        elif self.sums:
            self.sums[0][0].add_(x)
        else:
            self.sums.append((x, self.call.value))


class IntegratedPass1(GradientPass1):
    """The whole attention, and after :meth:`walk_back` the shares of it, by :meth:`integrate`."""

    def __init__(
        self,
        draws: Draws,
        scope: Container[nn.Module],
        sites: Sequence[Site],
        nodes: Sequence[Node],
        is_joint: bool = False,
    ):
        super().__init__(draws, scope, sites)
        self._device = draws.sample_ids.device
        self._replay = Replay(self._device)
        self._integrands: list[Integrand] = []
        self._before = RandomState.now(self._device)
        self._nodes, self._is_joint = nodes, is_joint
        self._total = sum(node.weight for node in nodes)

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

    def integrate(self, score: Callable[..., Tensor], at_once: int = 1) -> None:
        """The nodes that step m was none of, so many at once; then the bits of each masked layer.

        ``score`` runs the model under a pass, on a batch that the pass has repeated, and gives the sum of the steps' F.
        """
        after = RandomState.now(self._device)
        if self._is_joint:
            self._integrate_jointly(score)
        else:
            for integrand in self._integrands:
                self._integrate(integrand, score, at_once)
        after.restore()

    def _integrate(self, integrand: Integrand, score: Callable[..., Tensor], at_once: int) -> None:
        rest = [node for node in self._nodes if node.share != 1]
        for first in range(0, len(rest), at_once):
            chosen = rest[first : first + at_once]
            with self._replay.replayed(integrand.site.index, Repeat(len(self.draws.sample_ids), len(chosen))):
                scaled = ScaledPass1(self.draws, self.sites, integrand, [node.share for node in chosen])
                self._before.restore()
                (grad_out,) = torch.autograd.grad(score(scaled), scaled.out)
            for part, node in zip(grad_out.chunk(len(chosen)), chosen, strict=True):
                integrand.add(part, node.weight)
        self._rank(integrand)

    def _integrate_jointly(self, score: Callable[..., Tensor]) -> None:
        lowest = min((integrand.site.index for integrand in self._integrands), default=0)
        for node in self._nodes if self._integrands else ():
            with self._replay.replayed(lowest, Repeat(len(self.draws.sample_ids), 1)):
                joint = JointPass1(self.draws, self.sites, self._integrands, node.share)
                self._before.restore()
                gradients = torch.autograd.grad(score(joint), joint.outs)
            for integrand, grad_out, value in zip(self._integrands, gradients, joint.values, strict=True):
                integrand.add(grad_out, node.weight, value)
        for integrand in self._integrands:
            self._rank(integrand)

    def _ranks_within(self, call: AttentionCall) -> bool:
        return False  # not before the integral is there

    def _use(self, site: Site, grad_out: Tensor, value: Tensor) -> None:
        """Step m, where it is a node."""
        last = self._nodes[-1]
        if last.share == 1 and not self._is_joint:
            next(found for found in self._integrands if found.site is site).add(grad_out, last.weight)

    @torch.no_grad()
    def _rank(self, integrand: Integrand) -> None:
        site, call = integrand.site, integrand.call
        bias, scale = call.bias(), call.score_scale()
        _, lse = masked_attention(
            call.query, call.key, call.value, self._valid_bits(call), bias=bias, sinks=call.sinks, scale=scale,
            return_lse=True,
        )  # fmt: skip
        xs, values = zip(*integrand.sums, strict=True)
        x = (torch.cat(xs, -1) / self._total).to(call.value.dtype)
        weight = AttentionWeight(call.query, call.key, lse, scale, bias)
        site.keep = self.draws.keep_mask(site, x, torch.cat(values, -1), weight=weight)
        site.live = live_queries(x) if self.draws.count_dead else None
        integrand.sums.clear()


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


class JointPass1(Pass1):
    """One step of all masked layers at once: each attends by a share of the probabilities A that it has in step m.

    So A of the layers are the variables of one integral, along the line from none of them to all. What goes through
    them, and the values with it, depends on the share. outs, values: of the masked layers, in their order.
    """

    steps = 1

    def __init__(self, draws: Draws, sites: list[Site], integrands: Sequence[Integrand], share: float):
        super().__init__(draws)
        self.repeat = Repeat(len(draws.sample_ids), 1)
        self._share = share
        self._integrands = {integrand.site.index: integrand for integrand in integrands}
        self._order = SiteOrder(sites)
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def outs(self) -> list[Tensor]:
        return [out for _, (out, _) in sorted(self._found.items())]

    @property
    def values(self) -> list[Tensor]:
        return [value for _, (_, value) in sorted(self._found.items())]

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        site = self._order.find(call.module)
        if site is None:
            return plain()
        integrand = self._integrands.get(site.index)
        if integrand is None:
            return self._attend_plainly(call, site, plain)
        out = self._attend_ourselves(integrand.call._replace(value=call.value), site) * self._share
        integrand.random.restore()
        if not out.requires_grad:
            out.requires_grad_()
        self._found.setdefault(site.index, (out, call.value.detach()))  # not what a checkpointed layer makes again
        return out
