"""Settings of AD-DROP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attrdrop._core.checks import check_choice, check_positive_int, check_probability, check_seed, is_int
from attrdrop.addrop.quadrature import RULES, Node, nodes
from attrdrop.addrop.targets import TARGETS, Target
from attrdrop.addrop.units import UNITS
from attrdrop.ops.keep_mask import KEYS, REGIONS
from attrdrop.schedules import Schedule, check_schedule

ATTRIBUTIONS = ("GA", "IGA", "AA", "RD")
ATTENTIONS = ("encoder", "decoder", "cross", "vision")
LAYERS = ("all", "first")
PASS1_MODES = ("train", "eval")
PASS1_DTYPES = ("bfloat16",)
IGA_SCOPES = ("layer", "joint")
ALTERNATIONS = ("epochs", "steps")


@dataclass(frozen=True)
class ADDropConfig:
    """Settings of AD-DROP.

    Attributes:
        p: share of each row in the candidate discard region, or a callable from the optimizer step to it.
        q: probability that a candidate is dropped, or such a callable.
        attribution: what positions are ranked by. "GA": the gradient of the target with respect to the attention
            probabilities (Eq. 5). "IGA": its integral times the probabilities (Eq. 3), which takes ``iga_steps``
            forward and backward passes for each masked layer, or fewer with ``iga_rule`` and ``iga_scope``. "AA": the
            scores, and thus the probabilities before dropout; pass 1 needs no gradients. "RD": nothing, each position
            is dropped with probability p q; there is no pass 1. docs/papers.md says where the released code differs.
        iga_steps: m of Eq. 3; default 20, or 5 with Gauss nodes.
        iga_rule: "riemann": at k / m, k = 1 to m, as in Eq. 3. "gauss": approximate, at Gauss-Legendre nodes, of which
            4 to 6 come closer to the integral than 20 steps. See docs/howto/cheaper_steps.md.
        iga_scope: "layer": the attention of each layer is scaled while the others keep theirs. "joint": a different
            reading of Eq. 3, in which the attention of all masked layers is scaled at once, at the cost of one layer.
        iga_batch: how many of these steps run as one correspondingly larger batch: the same work in fewer, larger
            kernels. More than 1 needs pass1="eval", since all steps have the same dropout, and no callable target.
        layers: "all", "first", or indices of attention layers, counted from the input, negative ones from the end.
            "all" means all that the target depends on.
        attention: which attention is masked. "encoder": the encoder's self-attention in an encoder-decoder model, the
            language model's in a model with a vision or audio tower, else all. "decoder": the decoder's self-attention;
            "cross": the cross-attention; "vision": a vision tower's; or a list of them. Layers are counted over all of
            these.
        units: what is dropped in the masked layers, one or several of "attention" (its positions), "feed-forward" (the
            inputs of the second layer of their feed-forward blocks, ranked by token) and "heads" (their outputs, ranked
            by sample). The latter two work with "GA", which ranks them by |a dF/da| from the same backward pass, and
            "RD". They are set to zero and the rest is not rescaled.
        target: what is attributed. "pseudo": the logit of the predicted class (Eq. 4; for token-level logits, minus the
            cross-entropy with the model's own prediction, over the tokens that the model's loss reads; for regression,
            minus the loss). "gold": the same with the labels. Or a callable from (outputs, batch) to a scalar.
        pass1: "train" keeps dropout on in pass 1, as published; "eval" turns it off, which is cheaper and
            deterministic.
        pass1_dtype: None, or "bfloat16": approximate, only pass 1 runs under autocast, and ranks with bfloat16 keys
            unless ``keys`` is set. See docs/howto/cheaper_steps.md.
        cross_tuning: AD-DROP in even epochs only, plain training in odd ones (Alg. 1); epochs count from 1.
        alternate, every: what cross-tuning counts, "epochs" or optimizer "steps", and how many are plain before as many
            have AD-DROP. Use "steps" for training with a single epoch or no epochs.
        mask_every: approximate: of AD-DROP's steps, only those whose number, counted from 0 over the whole training, is
            a multiple of this take two passes; the others are plain.
        sample_share: approximate: probability that a sample has a mask; pass 1 runs only on these samples, and the
            others train plainly in the same pass 2. Drawn by sample id, like masks.
        keys: precision of the ranking, see :func:`attrdrop.keep_mask`.
        region: "high", or "low" for the paper's preliminary experiment (Section 2.2).
        seed: seed of all draws.

    RD ignores target, pass1 and pass1_dtype; AA ignores target.

    Raises:
        ValueError, TypeError: a field is not as said above; the message names it.
    """

    p: Schedule = 0.3
    q: Schedule = 0.3
    attribution: str = "GA"
    iga_steps: int | None = None
    iga_rule: str = "riemann"
    iga_scope: str = "layer"
    iga_batch: int = 1
    layers: str | Sequence[int] = "all"
    attention: str | Sequence[str] = "encoder"
    units: str | Sequence[str] = ("attention",)
    target: Target = "pseudo"
    pass1: str = "train"
    pass1_dtype: str | None = None
    cross_tuning: bool = True
    alternate: str = "epochs"
    every: int = 1
    mask_every: int = 1
    sample_share: float = 1.0
    keys: str = "auto"
    region: str = "high"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("p", "q"):
            check_schedule(name, getattr(self, name))
        check_choice("attribution", self.attribution, ATTRIBUTIONS, quoted=True)
        check_choice("pass1", self.pass1, PASS1_MODES, quoted=True)
        if self.pass1_dtype is not None:
            check_choice("pass1_dtype", self.pass1_dtype, PASS1_DTYPES, quoted=True, more=" or None")
        check_choice("alternate", self.alternate, ALTERNATIONS, quoted=True)
        check_positive_int("every", self.every)
        check_positive_int("mask_every", self.mask_every)
        if self.cross_tuning and self.alternate == "steps" and self.mask_every > self.every:
            raise ValueError(
                f"mask_every must not be above every, {self.every}, if cross-tuning alternates by steps, so that "
                f"some steps have masks, got {self.mask_every}"
            )
        if check_probability("sample_share", self.sample_share) == 0:
            raise ValueError(f"sample_share must be above 0, got {self.sample_share}")
        if self.sample_share < 1 and self.attribution == "RD":
            raise ValueError(f"sample_share must be 1 if attribution is 'RD', got {self.sample_share}")
        check_choice("keys", self.keys, KEYS, quoted=True)
        check_choice("region", self.region, REGIONS, quoted=True)
        if not callable(self.target):
            check_choice("target", self.target, TARGETS, quoted=True, more=" or a callable")
        if isinstance(self.layers, str):
            check_choice("layers", self.layers, LAYERS, quoted=True, more=" or a list of indices")
        else:
            layers = tuple(self.layers)
            if not layers or not all(map(is_int, layers)):
                raise ValueError(f"layers must be 'all', 'first' or a non-empty list of indices, got {self.layers!r}")
            object.__setattr__(self, "layers", tuple(map(int, layers)))
        object.__setattr__(self, "seed", check_seed(self.seed))
        check_choice("iga_rule", self.iga_rule, tuple(RULES), quoted=True)
        check_choice("iga_scope", self.iga_scope, IGA_SCOPES, quoted=True)
        if self.iga_steps is not None:
            check_positive_int("iga_steps", self.iga_steps)
        check_positive_int("iga_batch", self.iga_batch)
        if self.iga_batch > 1 and (self.pass1 != "eval" or callable(self.target)):
            raise ValueError(
                f"iga_batch must be 1 unless pass1 is 'eval' and target is not a callable, got {self.iga_batch}"
            )
        if self.iga_batch > 1 and self.iga_scope == "joint":
            raise ValueError(f"iga_batch must be 1 if iga_scope is 'joint', got {self.iga_batch}")
        for field, choices in (("attention", ATTENTIONS), ("units", UNITS)):
            given = getattr(self, field)
            names = (given,) if isinstance(given, str) else tuple(given)
            if not names:
                raise ValueError(f"{field} must name at least one of {', '.join(map(repr, choices))}, got none")
            for name in names:
                check_choice(field, name, choices, quoted=True, more=" or a list of them")
            object.__setattr__(self, field, names)
        if self.attribution in ("IGA", "AA") and set(self.units) != {"attention"}:
            raise ValueError(
                f"units must be 'attention' only if attribution is {self.attribution!r}, which ranks positions of "
                f"attention only, got {self.units!r}"
            )

    @classmethod
    def small_data(cls, **fields: Any) -> ADDropConfig:
        """Settings for a few hundred labelled texts and several epochs: p = 0.3, q = 0.6, and other fields as given.

        The development split chose these among ten settings, by accuracy and by loss, for 512 sentences.
        docs/evidence.md says what they gain (test loss, if the epoch is chosen by accuracy) and what they do not
        (accuracy).
        """
        return cls(**({"p": 0.3, "q": 0.6} | fields))

    @property
    def iga_nodes(self) -> list[Node]:
        """Where IGA takes the gradient, and by how much each counts."""
        return nodes(self.iga_rule, RULES[self.iga_rule] if self.iga_steps is None else self.iga_steps)

    def is_active(self, epoch: int, step: int) -> bool:
        """Whether a step, counted from 0, of an epoch, counted from 1, is one of AD-DROP's."""
        done = epoch - 1 if self.alternate == "epochs" else step
        return not self.cross_tuning or done // self.every % 2 == 1

    def has_masks(self, epoch: int, step: int) -> bool:
        """Whether such a step takes two passes: not every one of AD-DROP's need do so."""
        return self.is_active(epoch, step) and step % self.mask_every == 0
