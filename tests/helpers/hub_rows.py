"""Rows as the package datasets gives them."""

from types import SimpleNamespace


class Rows(dict):
    """Columns with `features`, as the package datasets gives them."""

    def __init__(self, names=(), **columns):
        super().__init__(columns)
        names = SimpleNamespace(names=list(names))
        self.features = {"label": names, "ner_tags": SimpleNamespace(feature=names)}


def glue_rows(prefix, n, first="sentence1", second="sentence2", names=("entailment", "not_entailment")):
    columns = {first: [f"{prefix} {i}" for i in range(n)], "label": [i % len(names) for i in range(n)]}
    return Rows(names, **columns, **({second: ["s"] * n} if second else {}))
