"""Plain training, which every method of training changes, and AD-DROP."""

from typing import Any, ClassVar

from torch import Tensor, nn

import attrdrop

PLAIN_STEP = 3.0  # forward and backward, in forward passes


class Method:
    """The training loss of a batch: here the model's own.

    A model is loaded with ATTENTION as ``attn_implementation`` (None: any).
    """

    ATTENTION: ClassVar[str | None] = None
    step_work: ClassVar[float] = PLAIN_STEP
    is_active = False  # whether the steps of this epoch differ from plain ones

    def __init__(self, model: Any) -> None:
        self.model = model

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
        self.addrop = attrdrop.ADDrop(model, config)

    @property
    def is_active(self) -> bool:  # type: ignore[override]
        return self.addrop.is_active

    def start_epoch(self, number: int) -> None:
        self.addrop.start_epoch(number)
        self.addrop.reset_statistics()

    def __call__(self, **batch: Tensor) -> Tensor:
        return self.addrop(**batch).loss

    def statistics(self) -> dict[str, Any] | None:
        found = self.addrop.statistics()
        return found.as_dict() if found.steps else None
