"""IGA: pass 1 of AD-DROP that ranks by integrated gradients (Eq. 3).

Scaling A of one layer by k / m scales its head outputs O = A V, so B = A * (mean over k of dO_k) Vᵀ with dO_k the
gradient at (k / m) O. Step k = m is the plain gradient, and one walk back gives it for all layers. Each other step of a
layer is a forward and a walk back over what lies above that layer: what lies below does not change. Several steps may
run as one larger batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from attrdrop._core.modules import RandomState, unwrap
from attrdrop.addrop.passes import AttentionCall, AttributionPass, Draws, Pass1, Site, SiteOrder
from attrdrop.ops import AttentionWeight, masked_attention


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


class IntegratedPass(AttributionPass):
    """Pass 1 of IGA: step m, and after :meth:`attribute` the others, by :meth:`integrate`."""

    def __init__(self, draws: Draws, is_eligible: Callable[[nn.Module], bool]):
        super().__init__(draws, is_eligible)
        self._device = draws.sample_ids.device
        self._blocks = Blocks(self._device)
        self._integrands: list[Integrand] = []
        self._before = RandomState.now(self._device)

    def run(self, forward: Callable[[Any], Any], model: nn.Module) -> Any:
        """The outputs of step m."""
        with self._blocks.recorded(model, lambda: len(self.sites)):
            return super().run(forward, model)

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        is_new = self._is_recording and self.is_eligible(call.module)
        out = super().attend(call, plain)
        if is_new:
            random = RandomState.now(self._device)
            self._integrands.append(Integrand(self.sites[-1], call.detached(), out.detach(), random))
        return out

    def attribute(self, target: Tensor, layers: list[int]) -> list[Site]:
        self._integrands = [integrand for integrand in self._integrands if integrand.site.index in layers]
        self._blocks.forget_above(max(layers))
        return super().attribute(target, layers)

    def integrate(self, score: Callable[[ScaledPass], Tensor], steps: int, at_once: int = 1) -> list[Site]:
        """Steps 1 to m - 1 of each layer, so many at once; the sites with bits.

        ``score`` runs the model under a pass, on a batch that the pass has repeated, and gives the sum of the steps' F.
        """
        after = RandomState.now(self._device)
        size = len(self.draws.sample_ids)
        for integrand in self._integrands:
            for first in range(1, steps, at_once):
                shares = [k / steps for k in range(first, min(first + at_once, steps))]
                with self._blocks.replayed(integrand.site.index, Repeat(size, len(shares))):
                    scaled = ScaledPass(self.draws, self.sites, integrand, shares)
                    self._before.restore()
                    (grad_out,) = torch.autograd.grad(score(scaled), scaled.out)
                for part in grad_out.chunk(len(shares)):
                    integrand.add(part)
            self._rank(integrand, steps)
        after.restore()
        return self.sites

    def _use(self, site: Site, grad_out: Tensor, v: Tensor) -> None:
        next(integrand for integrand in self._integrands if integrand.site is site).add(grad_out)

    @torch.no_grad()
    def _rank(self, integrand: Integrand, steps: int) -> None:
        site, call, total = integrand.site, integrand.call, integrand.total
        assert total is not None  # step m is in it
        bits = self._valid_bits(call)
        _, lse = masked_attention(call.q, call.k, call.v, bits, bias=call.bias(), scale=call.scale, return_lse=True)
        q, k, scale = call.score_factors()
        x = (total / steps).transpose(1, 2).to(call.v.dtype)
        site.keep = self.draws.keep_mask(site, x, call.v, AttentionWeight(q, k, lse, scale))


class Repeat(NamedTuple):
    """Repeats what has the batch as its first dimension, wherever it is in a tree; once, it changes nothing."""

    size: int
    times: int

    def __call__(self, tree: Any) -> Any:
        if self.times == 1:
            return tree
        return tree_map(lambda x: x.repeat(self.times, *[1] * (x.dim() - 1)) if self._is_batch(x) else x, tree)

    def _is_batch(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == self.size


class ScaledPass(Pass1):
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


class _Ran(NamedTuple):
    """A block that ran: how many layers had attended by its end, the generators' state then, and what it returned."""

    end: int
    random: RandomState
    output: Any

    def again(self, repeat: Repeat, *_args: Any, **_kwargs: Any) -> Any:
        self.random.restore()
        return repeat(self.output)


class Blocks:
    """Outputs of a model's blocks, the members of its lists of modules, that stand for them in later forwards.

    A block that runs more than once in a forward is left out. Where a model has no such blocks, forwards run whole.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._ran: dict[nn.Module, _Ran | None] = {}

    @contextlib.contextmanager
    def recorded(self, model: nn.Module, attended: Callable[[], int]) -> Iterator[None]:
        """Keeps what the blocks of a model return; ``attended`` says how many layers have attended."""

        def hook(block: nn.Module, _inputs: Any, output: Any) -> None:
            fixed = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, output)
            ran = _Ran(attended(), RandomState.now(self._device), fixed)
            self._ran[block] = None if block in self._ran else ran

        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        blocks = {unwrap(block) for members in lists for block in members}
        handles = [block.register_forward_hook(hook) for block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def below(self, layer: int) -> dict[nn.Module, _Ran]:
        """The blocks that were through before this layer attended."""
        return {block: ran for block, ran in self._ran.items() if ran is not None and ran.end <= layer}

    def forget_above(self, layer: int) -> None:
        """Lets go of what no layer up to this one can use."""
        self._ran = {**self.below(layer)}

    @contextlib.contextmanager
    def replayed(self, layer: int, repeat: Repeat) -> Iterator[None]:
        """Blocks below the layer give what they gave, repeated, and compute nothing."""
        blocks = self.below(layer)
        own = {block: vars(block).get("forward") for block in blocks}
        try:
            for block, ran in blocks.items():
                vars(block)["forward"] = functools.partial(ran.again, repeat)
            yield
        finally:
            for block, forward in own.items():
                vars(block).pop("forward", None)
                if forward is not None:
                    vars(block)["forward"] = forward
