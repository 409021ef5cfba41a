"""The tasks bundled with the package; `data/LICENSE.*` says where each file is from."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.splits import SPLIT_SEED
from attrdrop.lab.text.examples import (
    CAUSAL_LM,
    CLASSIFICATION,
    MASKED_LM,
    REGRESSION,
    SEQ2SEQ,
    TOKEN_CLASSIFICATION,
    Examples,
    Task,
    split,
)
from attrdrop.lab.text.others import aligned
from attrdrop.lab.text.readers import SENTENCES, TABLES, Table, read_table

DATA = Path(__file__).parents[1] / "data"
BERT_TINY = DATA / "bert_tiny"  # a pre-trained encoder of two layers, for from_pretrained
MIN_RATING = 0.5
POLARITY = ["negative", "positive"]


@dataclass(frozen=True)
class Shipped:
    """How a task is read as each of `kinds`, the usual one first, and the files of its out-of-distribution sets."""

    read: Callable[[str], Task]
    kinds: tuple[str, ...]
    other: dict[str, str] = field(default_factory=dict)


def load(name: str, kind: str, other: list[str]) -> Task:
    """One of TASKS as one of its kinds, with these of its `other` sets."""
    files = {set_name: TASKS[name].other[set_name] for set_name in other}
    return replace(
        TASKS[name].read(kind), other={set_name: rated_texts(file, kind) for set_name, file in files.items()}
    )


def load_other(name: str, kind: str, label_names: Sequence[str]) -> Examples:
    """The `other` set of that name for a model of a kind and, in classification, of these two classes, by name or
    place."""
    owner = next(task for task in TASKS.values() if name in task.other)
    if kind not in owner.kinds:
        raise InputError(f"--on: {name} is a set of {' or '.join(owner.kinds)}, and the model is one of {kind}.")
    examples = rated_texts(owner.other[name], kind)
    if kind != CLASSIFICATION:
        return examples
    return aligned(examples, POLARITY, label_names, {}, f"--on: {name}")


def rotten_tomatoes(kind: str = CLASSIFICATION) -> Task:
    """10,603 sentences of film reviews: their polarity (of 10,070), their mean human rating, or the texts alone."""
    names = POLARITY if kind == CLASSIFICATION else []
    task = _split("rotten-tomatoes", kind, names, rated_texts("rt_sentences.tsv.gz", kind), test=2000, dev=1000)
    return replace(task, metric="pearson") if kind == REGRESSION else task


def rated_texts(file: str, kind: str) -> Examples:
    """Texts with the sign of their mean rating from -4 to 4, undecided ones left out, with the rating, or alone."""
    table = _table(file)
    texts, ratings = table.column("text", "--task"), map(float, table.column("rating", "--task"))
    rated = dict(zip(texts, ratings, strict=True))
    if kind == REGRESSION:
        return Examples(list(rated), None, list(rated.values()))
    if kind in (MASKED_LM, CAUSAL_LM):
        return Examples(list(rated), None, None)
    decided = {text: rating > 0 for text, rating in rated.items() if abs(rating) >= MIN_RATING}
    return Examples(list(decided), None, list(map(int, decided.values())))


def squad_questions(kind: str = CLASSIFICATION) -> Task:
    """20,349 pairs of a question and a sentence that holds its answer or does not; no article is in two splits."""
    table = _table("squad_questions.tsv.gz")
    questions, sentences, labels, articles = (
        table.column(name, "--task") for name in ("question", "sentence", "label", "article")
    )
    everything = Examples(questions, sentences, list(map(int, labels)))
    shuffled = sorted(set(articles))
    random.Random(SPLIT_SEED).shuffle(shuffled)
    test, dev, train = (
        everything.select([i for i, article in enumerate(articles) if article in side])
        for side in (shuffled[:8], shuffled[8:12], shuffled[12:])
    )
    return Task("squad-questions", kind, ["no answer", "answer"], train, dev, test)


def brown_names(kind: str = TOKEN_CLASSIFICATION) -> Task:
    """The proper names in 7,989 sentences of the Brown corpus, each of which holds one or more."""
    tags = ["O", "B-NAME", "I-NAME"]
    index = {tag: number for number, tag in enumerate(tags)}
    table = read_table(DATA / "brown_names.jsonl.gz", "--task", SENTENCES)
    labels = [[index[tag] for tag in sentence] for sentence in table.words("tags", "--task")]
    everything = Examples(table.words("tokens", "--task"), None, labels)
    return _split("brown-names", kind, tags, everything, test=1000, dev=500)


def bible_en_es(kind: str = SEQ2SEQ) -> Task:
    """14,826 verses of the Bible, from English to Spanish."""
    table = _table("bible_en_es.tsv.gz")
    everything = Examples(table.column("en", "--task"), None, table.column("es", "--task"))
    return _split("bible-en-es", kind, [], everything, test=1000, dev=500)


TASKS = {
    "rotten-tomatoes": Shipped(
        rotten_tomatoes,
        (CLASSIFICATION, REGRESSION, MASKED_LM, CAUSAL_LM),
        {"amazon-reviews": "amazon_reviews.tsv.gz", "tweets": "tweets.tsv.gz"},
    ),
    "squad-questions": Shipped(squad_questions, (CLASSIFICATION,)),
    "brown-names": Shipped(brown_names, (TOKEN_CLASSIFICATION,)),
    "bible-en-es": Shipped(bible_en_es, (SEQ2SEQ,)),
}


def _table(file: str) -> Table:
    return read_table(DATA / file, "--task", TABLES)


def _split(name: str, kind: str, label_names: list[str], everything: Examples, test: int, dev: int) -> Task:
    rest, tested = split(everything, test, kind)
    trained, developed = split(rest, dev, kind)
    return Task(name, kind, label_names, trained, developed, tested)
