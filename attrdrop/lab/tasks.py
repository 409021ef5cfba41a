"""Classification tasks: the shipped Rotten Tomatoes sentences, the user's files, GLUE where `datasets` is installed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attrdrop.lab.errors import InputError
from attrdrop.lab.readers import Columns, Table, detect_columns, read_table

RT_PATH = Path(__file__).with_name("data") / "rt_sentences.tsv.gz"
RT_MIN_RATING = 0.5
SPLIT_SEED = 0  # one split for all seeds of an experiment: the spread then shows training alone
GLUE = {
    "cola": ("sentence", None),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence", None),
    "wnli": ("sentence1", "sentence2"),
}
TASKS = ["rotten-tomatoes", *GLUE]


@dataclass(frozen=True)
class Examples:
    """Texts, second texts where the task is about pairs, and class indices."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Sequence[int]) -> "Examples":
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return Examples([self.texts[i] for i in indices], pairs, [self.labels[i] for i in indices])


@dataclass(frozen=True)
class Task:
    """A data set split in two or three; without a test split, accuracy is reported on the development split."""

    name: str
    label_names: list[str]
    train: Examples
    dev: Examples
    test: Examples | None

    def limited(self, train_size: int | None, dev_size: int | None, test_size: int | None) -> "Task":
        """The task with splits cut down to so many examples, classes in proportion, the same ones every time."""
        train = _sample(self.train, train_size)
        seen = set(train.labels)
        if missing := [name for index, name in enumerate(self.label_names) if index not in seen]:
            raise InputError(f"--train-size: {len(train)} leaves no example of {_listed(missing)}; take more.")
        test = self.test and _sample(self.test, test_size)
        return replace(self, train=train, dev=_sample(self.dev, dev_size), test=test)


def load_task(name: str) -> Task:
    """A task by name: see TASKS."""
    if name == "rotten-tomatoes":
        return rotten_tomatoes()
    if name not in GLUE:
        raise InputError(f"--task: {name!r} is none of {', '.join(TASKS)}.")
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"--task: {name} comes from GLUE, which needs the package datasets: pip install datasets."
        ) from None
    try:
        raw = datasets.load_dataset("nyu-mll/glue", name)
    except (OSError, ValueError) as error:
        raise InputError(f"--task: GLUE's {name} could not be loaded: {str(error).splitlines()[0]}") from None
    return glue(name, raw)


def rotten_tomatoes() -> Task:
    """Polarity of 10,070 review sentences: the sign of the mean human rating, undecided ones left out."""
    table = read_table(RT_PATH, "--task")
    polarity = {row["text"]: float(row["rating"]) for row in table.rows if abs(float(row["rating"])) >= RT_MIN_RATING}
    everything = Examples(list(polarity), None, [int(rating > 0) for rating in polarity.values()])
    rest, test = _split(everything, 2000)
    train, dev = _split(rest, 1000)
    return Task("rotten-tomatoes", ["negative", "positive"], train, dev, test)


def glue(name: str, raw: Mapping) -> Task:
    """A GLUE task from its raw splits; the public test labels are hidden, so the validation split is the test."""
    text, pair = GLUE[name]
    names = raw["train"].features["label"].names

    def examples(split: str) -> Examples:
        rows = raw[split]
        return Examples(list(rows[text]), list(rows[pair]) if pair else None, list(rows["label"]))

    train, dev = _split(examples("train"), 0.1)
    return Task(name, names, train, dev, examples("validation_matched" if name == "mnli" else "validation"))


def from_files(
    train: Path,
    dev: Path | None = None,
    test: Path | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
) -> Task:
    """A task from labelled files; without a development file a tenth of the training file serves."""
    tables = {"--train": read_table(train, "--train")}
    tables |= {option: read_table(path, option) for option, path in (("--dev", dev), ("--test", test)) if path}
    columns = detect_columns(tables["--train"], text_column, text_pair_column, label_column)
    label_names = _label_names(tables["--train"], columns)
    splits = {option: _examples(table, columns, label_names, option) for option, table in tables.items()}
    if "--dev" not in splits:
        splits["--train"], splits["--dev"] = _split(splits["--train"], 0.1)
        seen = set(splits["--train"].labels)
        if missing := [name for index, name in enumerate(label_names) if index not in seen]:
            raise InputError(
                f"--train: with a tenth of {train.name} set aside for development, no example of {_listed(missing)} is "
                "left to train on; give more rows, or a development file with --dev."
            )
    return Task(train.name, label_names, splits["--train"], splits["--dev"], splits.get("--test"))


def _label_names(table: Table, columns: Columns) -> list[str]:
    names = set(table.column(columns.label, "--label-column"))
    if len(names) < 2:
        raise InputError(
            f"--train: {table.path} holds only one class, {next(iter(names))!r} in column {columns.label!r}; "
            "a classifier needs two or more."
        )
    if len(names) > max(20, len(table.rows) // 2):
        raise InputError(
            f"--label-column: column {columns.label!r} of {table.path} has {len(names)} different values in "
            f"{len(table.rows)} rows, which looks like no class label."
        )
    return sorted(names, key=int) if all(name.lstrip("-").isdecimal() for name in names) else sorted(names)


def _examples(table: Table, columns: Columns, label_names: list[str], option: str) -> Examples:
    index = {name: number for number, name in enumerate(label_names)}
    labels = table.column(columns.label, "--label-column")
    for line, label in zip(table.lines, labels, strict=True):
        if label not in index:
            raise InputError(
                f"{option}: {table.path}, line {line}: label {label!r} does not occur in the training file, "
                f"whose labels are {_listed(label_names)}."
            )
    pairs = table.column(columns.pair, "--text-pair-column") if columns.pair else None
    return Examples(table.column(columns.text, "--text-column"), pairs, [index[label] for label in labels])


def _split(examples: Examples, held_out: int | float) -> tuple[Examples, Examples]:
    """A fixed random split, classes in proportion where every class has an example for each side."""
    from sklearn.model_selection import train_test_split

    if len(examples) < 2:
        raise InputError("--train: one row cannot be split into training and development examples; give --dev too.")
    held_out = held_out if isinstance(held_out, int) else max(1, round(held_out * len(examples)))
    counts = Counter(examples.labels)
    stratified = min(counts.values()) >= 2 and min(held_out, len(examples) - held_out) >= len(counts)
    left, right = train_test_split(
        range(len(examples)),
        test_size=held_out,
        random_state=SPLIT_SEED,
        stratify=examples.labels if stratified else None,
    )
    return examples.select(left), examples.select(right)


def _sample(examples: Examples, size: int | None) -> Examples:
    return examples if size is None or size >= len(examples) else _split(examples, size)[1]


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
