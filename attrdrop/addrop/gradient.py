"""GA: pass 1 of AD-DROP ranks by the gradient of the target, dF/dA = dO Vᵀ (Eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop.addrop.passes import SHARED_AND_CHECKPOINTED, AttentionCall, Draws, Pass1, Site, SiteOrder
from attrdrop.addrop.statistics import live_queries
from attrdrop.addrop.survey import SurveyingStrategy
from attrdrop.addrop.targets import attribution_target
from attrdrop.addrop.units import HEADS, NextInputs, by_sample, contributions, head_scores
from attrdrop.addrop.untold import noting_untold
from attrdrop.ops import KeepMask
from attrdrop.ops.ranked_attention import KeepRule, can_rank, ranked_attention


class GradientAttribution(SurveyingStrategy):
    """Pass 1 is a forward and a walk back to the lowest masked layer."""

    def attribute(self, model: nn.Module, batch: Mapping[str, Any], draws: Draws) -> list[Site]:
        sites = self.known_sites(model, batch)
        with torch.enable_grad(), self.pass1_mode(model, draws.sample_ids.device):
            pass1 = GradientPass1(draws, self.scope, sites)
            try:
                self._walk_back(pass1, model, batch)
            finally:
                pass1.inputs.forget()
        return pass1.sites

    def _walk_back(self, pass1: GradientPass1, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """The model's outputs."""
        with noting_untold() as untold:
            outputs = pass1.run(model, batch)
        if not pass1.is_surveyed:
            self.select(model, batch, pass1.sites, untold)
        target = attribution_target(outputs, batch, self.config.target, model)
        pass1.walk_back(target, may_miss=self.config.layers == "all")
        return outputs


class GradientPass1(Pass1):
    """Plain attention, with a tap on the head outputs of each module in scope: the backward turns (dO, V) into bits.

    sites: the layers in scope in the model's order, where they are known before; else those that attend are.
    """

    def __init__(self, draws: Draws, scope: Container[nn.Module], sites: Sequence[Site] = ()):
        super().__init__(draws)
        self.scope = scope
        self.sites = list(sites)
        self.is_surveyed = bool(sites)
        self._order = SiteOrder(self.sites)
        self._markers: dict[int, Tensor] = {}  # of the layers that attended: leaves, never read; the walk ends there
        self._unit_markers: dict[tuple[int, int], Tensor] = {}  # likewise, of blocks behind them, by site and unit
        self.inputs = NextInputs()
        self._reached: set[int] = set()
        self._lowest = 0  # of the masked layers: the walk ends there
        self._is_recording = True  # a checkpointed layer runs again in the backward

    def run(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """The outputs of the model's forward under this pass."""
        return model(**batch, attrdrop=self)

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        if call.module not in self.scope:
            return plain()
        if not torch.is_grad_enabled():
            raise ValueError(
                "AD-DROP needs gradients through every layer in its first pass, but this one runs without: gradient "
                "checkpointing with use_reentrant=True hides them; pass "
                'gradient_checkpointing_kwargs={"use_reentrant": False}'
            )
        site = self._record(call) if self._is_recording else self._recall(call)
        if site is None:
            return plain()
        for unit, projection in enumerate(self.draws.units.projections(site.module), HEADS + 1):
            self.inputs.change(projection, self._tap_units, site, unit)
        if self._ranks_within(call):
            return ranked_attention(
                call.query, call.key, call.value, self._valid_bits(call), _SiteRanking(self, site),
                self._markers[site.index], bias=call.bias(), scale=call.scale, dropout_p=call.dropout_p,
                seed=self._dropout_seed(site), sample_ids=self.draws.samples(call.query.shape[0]),
            )  # fmt: skip
        out = self._attend_plainly(call, site, plain)
        ranked = out if "heads" in self.draws.units else None
        return _Tap.apply(out, call.value, ranked, self._markers[site.index], site, self._receive)

    def _ranks_within(self, call: AttentionCall) -> bool:
        """Whether attention's own backward can rank, which has the product of Eq. 5 at hand."""
        units = self.draws.units
        is_usual = "attention" in units and "heads" not in units and call.sinks is None
        return is_usual and can_rank(call.query, call.key, call.value)

    def _tap_units(self, site: Site, unit: int, a: Tensor) -> Tensor:
        by_sample(a)  # or an error, before the walk back
        if self._is_recording:
            self._unit_markers[site.index, unit] = torch.empty((), device=a.device, requires_grad=True)
        return _UnitTap.apply(a, self._unit_markers[site.index, unit], site, unit, self._receive_units)

    def walk_back(self, target: Tensor, may_miss: bool = False) -> None:
        """From the target to the lowest masked layer; the taps on the way give the masked layers their bits.

        may_miss: some layers, on which the target does not depend, may stay plain.
        """
        self._is_recording = False
        masked = [site.index for site in self.sites if site.is_masked and site.index in self._markers]
        if not masked:  # LayerDrop skipped them all
            return
        self._lowest = masked[0]
        markers = [self._markers[index] for index in masked]
        markers += [marker for (index, _), marker in self._unit_markers.items() if self.sites[index].is_masked]
        torch.autograd.grad(target, markers, allow_unused=True)
        missing = sorted(set(masked) - self._reached)
        if missing and not (may_miss and self._reached):
            kinds = ", ".join(sorted({type(self.sites[index].module).__name__ for index in missing}))
            raise RuntimeError(
                f"the attribution target does not depend on attention layers {missing} ({kinds}); leave them out"
            )
        for index in missing:
            self.sites[index].is_masked = False

    def _record(self, call: AttentionCall) -> Site | None:
        site = self._order.find(call.module) if self.is_surveyed else Site(len(self.sites), call.module)
        if site is None:
            return None
        if not self.is_surveyed:
            self.sites.append(site)
        self._note_mask(site, call)
        self._markers[site.index] = torch.empty((), device=call.query.device, requires_grad=True)
        return site

    def _recall(self, call: AttentionCall) -> Site:
        sites = [site for site in self.sites if site.module is call.module]
        if len(sites) != 1:
            raise ValueError(SHARED_AND_CHECKPOINTED.format(type(call.module).__name__))
        return sites[0]

    def _receive(self, site: Site, grad_out: Tensor, value: Tensor, out: Tensor | None) -> None:
        if not site.is_masked:
            return
        self._reached.add(site.index)
        if "attention" in self.draws.units:
            self._use(site, grad_out, value)
        if out is not None:
            site.units[HEADS] = self.draws.keep_scores(site, HEADS, head_scores(out, grad_out))

    def _receive_units(self, site: Site, unit: int, a: Tensor, grad: Tensor) -> None:
        if site.is_masked:
            site.units[unit] = self.draws.keep_scores(site, unit, by_sample(contributions(a, grad).abs_()))

    def _use(self, site: Site, grad_out: Tensor, value: Tensor) -> None:
        x = grad_out.transpose(1, 2).to(value.dtype)
        self._keep(site, x, self.draws.keep_mask(site, x, value))

    def _keep(self, site: Site, x: Tensor, keep: KeepMask) -> None:
        site.keep = keep
        site.live = live_queries(x) if self.draws.count_dead else None


@dataclass(frozen=True)
class _SiteRanking:
    """Of one layer, for a backward that ranks by itself."""

    pass1: GradientPass1
    site: Site

    def rule(self) -> KeepRule | None:
        return self.pass1.draws.rule(self.site) if self.site.is_masked else None

    def is_last(self) -> bool:
        return self.site.index <= self.pass1._lowest

    def receive(self, grad_out: Tensor, keep: KeepMask) -> None:
        self.pass1._reached.add(self.site.index)
        self.pass1._keep(self.site, grad_out, keep)


class _Tap(torch.autograd.Function):
    """Identity on a head output (B, n, H, d) whose backward hands (dO, V) on, and O where it is ranked too."""

    @staticmethod
    def forward(ctx, out, value, ranked, marker, site, receive):
        ctx.save_for_backward(value, ranked)
        ctx.site, ctx.receive = site, receive
        return out.view_as(out)

    @staticmethod
    def backward(ctx, grad_out):
        value, ranked = ctx.saved_tensors
        ctx.receive(ctx.site, grad_out, value, ranked)
        return grad_out, None, None, None, None, None


class _UnitTap(torch.autograd.Function):
    """Identity on units a (B, ..., m) whose backward hands (a, dF/da) on."""

    @staticmethod
    def forward(ctx, a, marker, site, unit, receive):
        ctx.save_for_backward(a)
        ctx.site, ctx.unit, ctx.receive = site, unit, receive
        return a.view_as(a)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        ctx.receive(ctx.site, ctx.unit, a, grad)
        return grad, None, None, None, None
