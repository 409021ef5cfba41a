"""Splits and samples of a data set that are the same in every run, so that seeds differ only in training."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attrdrop.lab.errors import InputError, listed

SPLIT_SEED = 0


def stratified(
    count: int, held_out: int, classes: Sequence[int] | None, seed: int = SPLIT_SEED
) -> tuple[list[int], list[int]]:
    """Indices of a random split, classes in proportion where every class has an example for each side."""
    from sklearn.model_selection import train_test_split

    if classes is not None:
        sizes = Counter(classes)
        if min(sizes.values()) < 2 or min(held_out, count - held_out) < len(sizes):
            classes = None
    left, right = train_test_split(range(count), test_size=held_out, random_state=seed, stratify=classes)
    return left, right


def split(examples: Any, held_out: int) -> tuple[Any, Any]:
    """Examples with `labels` and `select`, divided for training and testing."""
    left, right = _divided(examples.labels, held_out)
    return examples.select(left), examples.select(right)


def sample(examples: Any, size: int | None) -> Any:
    """A sample of this size; all examples if size is None or at least as large."""
    if size is None or size >= len(examples.labels):
        return examples
    return examples.select(_divided(examples.labels, size)[1])


def with_dev(task: Any, size: int | None) -> Any:
    """The task with a development split of so many of its training examples, the same ones every time."""
    if size is None:
        return task
    count = len(task.train.labels)
    if size >= count:
        raise InputError(f"--dev-size: {size} leaves none of the {count} training examples to train on.")
    train, dev = split(task.train, size)
    return dataclasses.replace(task, train=train, dev=dev)


def unseen(labels: Iterable[int], names: Sequence[str]) -> list[str]:
    """The classes without examples."""
    seen = set(labels)
    return [name for index, name in enumerate(names) if index not in seen]


def warn_unseen(labels: Iterable[int], names: Sequence[str], examples: str) -> None:
    """Warn of classes of which there are none of the examples, "test images" for instance."""
    if missing := unseen(labels, names):
        warnings.warn(
            f"{len(missing)} of {len(names)} classes have no {examples}: {listed(missing)}; measures "
            "cover only the other classes",
            stacklevel=2,
        )


def _divided(labels: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    left, right = stratified(len(labels), held_out, labels.tolist())
    return torch.from_numpy(np.sort(left)), torch.from_numpy(np.sort(right))
