"""Plain training, which every method of training changes, and AD-DROP."""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

import attrdrop
from attrdrop.lab.text.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

ATTRIBUTION_WORK = {"GA": 2.0, "AA": 1.0, "RD": 0.0}  # a forward and a walk back


class Method:
    """The training loss of a batch: here the model's own.

    A model is loaded with ATTENTION as ``attn_implementation`` (None: torch's fused attention is taken).
    """

    ATTENTION: ClassVar[str | None] = None
    step_work: ClassVar[float] = 3.0  # forward and backward, in forward passes
    is_active = False  # whether the steps of this epoch differ from plain ones

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def make(cls, model: nn.Module, settings: Settings, seed: int) -> "Self":
        """The method for a model."""
        return cls(model)

    @classmethod
    def model_options(cls, settings: Settings, config: Any) -> dict[str, Any]:
        """What `from_pretrained` is told."""
        return {"attn_implementation": cls.ATTENTION}

    @classmethod
    def work(cls, settings: Settings, epoch: int) -> float:
        """Rough cost of a step in forward passes, for the time left."""
        return cls.step_work

    def start_epoch(self, number: int) -> None:
        """Tells which epoch runs, counted from 1."""

    def __call__(self, **batch: Tensor) -> Tensor:
        """The loss of a batch with labels, with its graph."""
        return self.model(**batch).loss

    def statistics(self) -> dict[str, Any] | None:
        """What was dropped since the last start of an epoch, None where there is nothing to say."""
        return None


class ADDropMethod(Method):
    """:class:`attrdrop.ADDrop`."""

    ATTENTION = "attrdrop"

    def __init__(self, model: nn.Module, config: attrdrop.ADDropConfig) -> None:
        super().__init__(model)
        self.addrop = attrdrop.ADDrop(model, config, count_dead=True)

    @classmethod
    def make(cls, model: nn.Module, settings: Settings, seed: int) -> "Self":
        return cls(model, attrdrop.ADDropConfig(seed=seed, **settings.addrop_arguments))

    @classmethod
    def work(cls, settings: Settings, epoch: int) -> float:
        if settings.cross_tuning and epoch % 2:
            return cls.step_work
        config = attrdrop.ADDropConfig(**settings.addrop_arguments)
        attribution = ATTRIBUTION_WORK.get(config.attribution, 2.0 * len(config.iga_nodes))
        return cls.step_work + attribution * config.sample_share / config.mask_every

    @property
    def is_active(self) -> bool:  # type: ignore[override]
        return self.addrop.config.is_active(self.addrop.epoch, step=0)  # which counts epochs here

    def start_epoch(self, number: int) -> None:
        self.addrop.start_epoch(number)
        self.addrop.reset_statistics()

    def __call__(self, **batch: Tensor) -> Tensor:
        return self.addrop(**batch).loss

    def statistics(self) -> dict[str, Any] | None:
        found = self.addrop.statistics()
        return found.as_dict() if found.steps else None
