"""What text tasks consist of: examples, splits, and smaller samples."""

import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attrdrop.lab.errors import InputError, listed
from attrdrop.lab.runs.splits import SPLIT_SEED, stratified, unseen

CLASSIFICATION = "classification"
REGRESSION = "regression"
TOKEN_CLASSIFICATION = "token-classification"
SEQ2SEQ = "seq2seq"
MASKED_LM = "masked-lm"
CAUSAL_LM = "causal-lm"
KINDS = (CLASSIFICATION, REGRESSION, TOKEN_CLASSIFICATION, SEQ2SEQ, MASKED_LM, CAUSAL_LM)


@dataclass(frozen=True)
class Merged:
    """Classes of a set's own: their names, and for each class of the task which of them it counts as."""

    names: tuple[str, ...]
    of: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """Texts (lists of words in token classification), second texts where the task is about pairs, and labels.

    A label is a class index, a float, a list of tag indices (one a word) or a target text; language models have none.
    Where the classes are `merged`, it is the index of one of those.
    """

    texts: list[str] | list[list[str]]
    pairs: list[str] | None
    labels: list[Any] | None
    merged: Merged | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def checksum(self) -> int:
        """CRC-32 of all texts and labels."""
        own = [] if self.merged is None else [self.merged.names, self.merged.of]
        return zlib.crc32(json.dumps([self.texts, self.pairs, self.labels, *own]).encode())

    def select(self, indices: Sequence[int]) -> "Examples":
        """The examples at these indices, in this order."""
        texts, pairs, labels = (
            None if column is None else [column[i] for i in indices] for column in (self.texts, self.pairs, self.labels)
        )
        return Examples(texts, pairs, labels, self.merged)  # type: ignore[arg-type]  # only texts that were None stay so


@dataclass(frozen=True)
class Task:
    """A data set split in two or three; without a test split, the development split is reported.

    `label_names` are classes or tags, `metric` is set where it is not the first of its kind, and `other` holds
    out-of-distribution sets by name, with the same labels or merged ones: evaluated, never trained on.
    """

    name: str
    kind: str
    label_names: list[str]
    train: Examples
    dev: Examples
    test: Examples | None
    metric: str | None = None
    other: dict[str, Examples] = field(default_factory=dict)

    @property
    def sets(self) -> dict[str, Examples]:
        """All examples by name, those of the splits first."""
        splits = {"train": self.train, "dev": self.dev} | ({} if self.test is None else {"test": self.test})
        return splits | self.other

    def names_of(self, examples: Examples) -> list[str]:
        """The classes or tags that some of the task's examples are labelled with."""
        return self.label_names if examples.merged is None else list(examples.merged.names)

    def limited(self, train_size: int | None, dev_size: int | None, test_size: int | None) -> "Task":
        """The task with splits cut down to so many examples, classes in proportion, the same ones every time.

        `other` sets are cut to `test_size`. Raises InputError where a class is left without a training example.
        """
        train = self.sample(self.train, train_size)
        return replace(
            self._trained_on(train, f"--train-size: {len(train)}"),
            dev=self.sample(self.dev, dev_size),
            test=self.test and self.sample(self.test, test_size),
            other={name: self.sample(examples, test_size) for name, examples in self.other.items()},
        )

    def shots(self, count: int, seed: int) -> "Task":
        """The task with `count` training examples of each class, or in all where it has no classes, drawn by `seed`.

        Raises InputError where there are fewer.
        """
        if count < 1:
            raise InputError(f"--shots: {count} leaves nothing to train on; take 1 or more.")
        everyone = range(len(self.train))
        groups: dict[str, Sequence[int]] = {"": everyone}
        if self.kind == CLASSIFICATION and self.train.labels is not None:
            labels = self.train.labels
            groups = {
                f" of class {name!r}": [i for i in everyone if labels[i] == index]
                for index, name in enumerate(self.label_names)
            }
        generator = random.Random(seed)
        drawn: list[int] = []
        for whose, indices in groups.items():
            if len(indices) < count:
                raise InputError(f"--shots: {count} are more than the {len(indices)} training examples{whose}.")
            drawn += generator.sample(indices, count)
        return replace(self, train=self.train.select(drawn))

    def share(self, fraction: float, seed: int) -> "Task":
        """The task with that share of the training examples, drawn by `seed`, classes in proportion.

        Raises InputError where the share is not above 0 and at most 1, or leaves a class without an example.
        """
        if not 0 < fraction <= 1:
            raise InputError(
                f"--share: {fraction} is not a share of the training examples; give a number above 0, at most 1."
            )
        size = max(1, round(fraction * len(self.train)))
        return self._trained_on(self.sample(self.train, size, seed), f"--share: {fraction}")

    def _trained_on(self, train: Examples, choice: str) -> "Task":
        if missing := missing_classes(train, self.kind, self.label_names):
            raise InputError(f"{choice} leaves no example of {listed(missing)}; take more.")
        return replace(self, train=train)

    def sample(self, examples: Examples, size: int | None, seed: int = SPLIT_SEED) -> Examples:
        """A sample of this many examples, classes in proportion; all of them if there are no more."""
        if size is None or size >= len(examples):
            return examples
        return split(examples, size, self.kind, seed)[1]


def split(examples: Examples, held_out: int | float, kind: str, seed: int = SPLIT_SEED) -> tuple[Examples, Examples]:
    """A random split, classes in proportion where every class has an example for each side.

    `held_out` is the number or the share of the second side's examples. Raises InputError for a single example.
    """
    if len(examples) < 2:
        raise InputError("--train: one row cannot be split into training and development examples; give --dev too.")
    held_out = held_out if isinstance(held_out, int) else max(1, round(held_out * len(examples)))
    classes = examples.labels if kind == CLASSIFICATION else None
    left, right = stratified(len(examples), held_out, classes, seed)
    return examples.select(left), examples.select(right)


def missing_classes(examples: Examples, kind: str, label_names: Sequence[str]) -> list[str]:
    """The classes without an example; none in tasks without classes."""
    if kind != CLASSIFICATION or examples.labels is None:
        return []
    return unseen(examples.labels, label_names)
