"""Sets from elsewhere that a task is evaluated on, and classes of a set's own that those of the task count as."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attrdrop.lab.errors import InputError, listed
from attrdrop.lab.text.examples import Examples, Merged

UNNAMED = "LABEL_"  # begins the names of classes where a model's configuration has none
Classes = Mapping[str, Sequence[str]]  # of a set: which of the task's each stands for


@dataclass(frozen=True)
class Wanted:
    """A set by name or file, and classes of its own."""

    name: str
    classes: Classes


def parse(text: str, option: str = "--other") -> Wanted:
    """The set that "hans:non-entailment=neutral+contradiction" means: a name or file, and after each colon a class of
    the set with those of the task that count as it. Classes that are not spoken of stay as they are.

    Raises InputError for anything else.
    """
    name, *merges = [part.strip() for part in text.split(":")]
    while merges and "=" not in merges[0]:  # a file's name may hold colons
        name = f"{name}:{merges.pop(0)}"
    classes: dict[str, Sequence[str]] = {}
    for merge in merges:
        new, between, old = merge.partition("=")
        parts = [part.strip() for part in old.split("+")]
        if not (new and between and all(parts)) or new in classes:
            raise InputError(
                f"{option}: {text!r}: {merge!r} must name a class of the set and the task's classes that count as it, "
                "as in hans:non-entailment=neutral+contradiction."
            )
        classes[new.strip()] = parts
    return Wanted(name, classes)


def merged(classes: Classes, label_names: Sequence[str], what: str) -> Merged:
    """The classes of a set, those of the task that stay among them, in the task's order.

    Raises InputError, which begins with `what`, where they name one that the task lacks, or one twice.
    """
    used = [old for group in classes.values() for old in group]
    if unknown := [old for old in used if old not in label_names]:
        raise InputError(f"{what}: {unknown[0]!r} is not a class of the task, whose classes are {listed(label_names)}.")
    if len(set(used)) < len(used):
        raise InputError(f"{what}: a class of the task counts as two classes of the set.")
    new = {old: name for name, group in classes.items() for old in group}
    owns = [new.get(name, name) for name in label_names]
    names = list(dict.fromkeys(owns))
    return Merged(tuple(names), tuple(names.index(own) for own in owns))


def aligned(
    examples: Examples, names: Sequence[str], label_names: Sequence[str], classes: Classes, what: str
) -> Examples:
    """Examples with classes or tags of these names, as a model of other ones is to predict them.

    Names count where all are the model's or those that `classes` merge, else places, where the model's are numbered.
    Raises InputError, which begins with `what`, where they do not fit.
    """
    own = merged(classes, label_names, what) if classes else None
    known = label_names if own is None else own.names
    if not names or list(names) == list(known):
        return replace(examples, merged=own)
    if set(names) <= set(known):
        place = [known.index(name) for name in names]
        labels: list[Any] = examples.labels or []
        moved = [[place[tag] for tag in label] if isinstance(label, list) else place[label] for label in labels]
        return replace(examples, labels=moved, merged=own)
    if own is None and len(names) <= len(label_names) and all(name.startswith(UNNAMED) for name in label_names):
        return examples
    raise InputError(
        f"{what} has the classes {listed(names)}, the model {listed(label_names)}; say which classes count as which, "
        "as in rte:not_entailment=neutral+contradiction."
    )


def regrouped(examples: Examples, wanted: Wanted, label_names: Sequence[str], option: str = "--other") -> Examples:
    """Examples labelled by the task's classes, as those of a set with classes of its own."""
    if not wanted.classes or examples.labels is None:
        return examples
    if examples.merged is not None:
        raise InputError(f"{option}: {wanted.name} has its own classes, {listed(examples.merged.names)}, already.")
    found = merged(wanted.classes, label_names, f"{option}: {wanted.name}")
    return replace(examples, labels=[found.of[label] for label in examples.labels], merged=found)
