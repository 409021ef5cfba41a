"""Which runs each study of the AD-DROP paper needs. Runs that studies share are done once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import ABLATIONS, ADDROP, PLAIN, TUNED, USUAL, Trial
from attrdrop.lab.runs.settings import Option, Options, Panel, SeededOptions, check_choice
from attrdrop.lab.text import published
from attrdrop.lab.text.settings import ARMS, Data, Layers, P, Q, Settings
from attrdrop.ops.keep_mask import REGIONS

TENTHS = tuple(round(0.1 * i, 1) for i in range(1, 10))
PAPER = "paper"  # layers that go by the task
ONCE = COSTS, MAPS, PROBE = "costs", "maps", "probe"  # in the place of an arm: a timing, a picture, a probe
METHOD = ("p", "q", "attribution", "layers", "target", "region", "cross_tuning")  # what studies vary of AD-DROP
VARIED = (*METHOD, *TUNED, "rate", "consistency")  # settings that a trial brings along


@dataclass(frozen=True)
class Plan(SeededOptions):
    """What to sweep. Every study takes the tasks, seeds, p, q and layers; the other fields belong to one study each.

    Attributes:
        tasks: names of data sets, as attrdrop.lab.text.tasks knows them, with the task type after a colon where it is
            not the set's own.
        grid_seeds: seeds of each point of the p x q grid.
        shares: of the training examples (Fig. 5). shots: training examples of each class (Table 5).
    """

    studies: Annotated[
        tuple[str, ...],
        Option(
            Panel.SWEEP,
            "seeds, ablation, grid, size, shots, regions, rivals, costs, maps, probe; separated by commas.",
        ),
    ] = ("seeds",)
    tasks: Annotated[
        tuple[str, ...],
        Option(
            Panel.DATA,
            "Data sets as in finetune, separated by commas; name:type, as in rotten-tomatoes:regression, "
            "if the type is not the set's default.",
        ),
    ] = (Data.task,)
    seeds: int = 5
    first_seed: int = Settings.first_seed
    p: P = Settings.p
    q: Q = Settings.q
    layers: Layers = Settings.layers
    rate: float = Settings.rate
    consistency: float = Settings.consistency
    p_values: Annotated[tuple[float, ...], Option(Panel.SWEEP, "Values of p in the grid, separated by commas.")] = (
        TENTHS
    )
    q_values: Annotated[tuple[float, ...], Option(Panel.SWEEP, "Values of q in the grid, separated by commas.")] = (
        TENTHS
    )
    grid_seeds: Annotated[int, Option(Panel.SWEEP, "Seeds of each point of the grid.", min=1)] = 1
    shares: Annotated[
        tuple[float, ...], Option(Panel.SWEEP, "Shares of the training examples to train on, for the study size.")
    ] = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    shots: Annotated[
        tuple[int, ...], Option(Panel.SWEEP, "Training examples per class to train on, for the study shots.")
    ] = (16, 64, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        for study in self.studies:
            check_choice("studies", study, STUDIES)
        if not self.tasks:
            raise InputError("--tasks: name at least one task.")
        for option in ("p_values", "q_values", "shares"):
            for value in getattr(self, option):
                if not 0 < value <= 1:
                    raise InputError(
                        f"--{option.replace('_', '-')}: {value} is not a share; give numbers above 0, at most 1."
                    )
        for count in self.shots:
            if count < 1:
                raise InputError(f"--shots: {count} is not a number of examples; give numbers of at least 1.")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Plan":
        """A plan that was kept as JSON."""
        tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**tuples)

    def trials(self, study: str | None = None) -> list[Trial]:
        """The runs of a study, or of all; each once."""
        names = self.studies if study is None else (study,)
        found = [at_layers(trial) for name in names for trial in STUDIES[name](self)]
        return [trial for place, trial in enumerate(found) if trial not in found[:place]]


@dataclass(frozen=True)
class Search(Options):
    """In the place of studies: points that optuna chooses.

    Attributes:
        search: how many for each task, None for no search.
        search_lr, search_batch_size: choices beside those of p and q, for plain training too.
        storage: where the points are kept.
    """

    search: Annotated[
        int | None,
        Option(Panel.SWEEP, "Instead of studies: let optuna choose p and q this many times.", min=1),
    ] = None
    search_lr: Annotated[
        tuple[float, ...],
        Option(
            Panel.SWEEP,
            "Learning rates to choose from as well, separated by commas; plain training tries each. The paper's: "
            "1e-5,2e-5,3e-5.",
        ),
    ] = ()
    search_batch_size: Annotated[
        tuple[int, ...], Option(Panel.SWEEP, "Batch sizes to choose from as well. The paper's: 16,32,64.")
    ] = ()
    storage: Annotated[
        str | None,
        Option(
            Panel.SWEEP,
            "Database URL of the search, or journal:FILE, for several machines; by default a file in the folder.",
        ),
    ] = None


def addrop(plan: Plan, **changes: Any) -> Trial:
    """The AD-DROP arm with its defaults, as far as studies change them."""
    return {"arm": ADDROP, "p": plan.p, "q": plan.q, **USUAL, "layers": plan.layers, **changes}


def at_layers(trial: Trial) -> Trial:
    """A trial whose layers are the paper's, with those that it has for the trial's task."""
    return {**trial, "layers": layers_of(trial["task"], trial["layers"])} if "layers" in trial else trial


def layers_of(task: str, layers: str) -> str:
    """The layers of a task, where they are the paper's, else as they are."""
    return str(published.of_task(task)["layers"]) if layers == PAPER else layers


def ablation_variants(plan: Plan) -> list[Trial]:
    """The rows of Table 2."""
    return [{"arm": PLAIN} if changes is None else addrop(plan, **changes) for changes in ABLATIONS.values()]


def region_variants(plan: Plan) -> list[Trial]:
    """The curves of Fig. 2, as DROPS: the share p of the first layer, always, by the gold label's attribution."""
    prior = {"q": 1.0, "layers": "first", "target": "gold", "cross_tuning": False}
    regions = [addrop(plan, region=region, **prior) for region in REGIONS]
    return [*regions, addrop(plan, attribution="RD", **prior), {"arm": PLAIN}]


def _repeated(plan: Plan, variants: Sequence[Trial], **common: Any) -> Iterator[Trial]:
    for task, seed, variant in product(plan.tasks, plan.seed_list, variants):
        yield {"task": task, "seed": seed, **variant, **common}


def _seeds(plan: Plan) -> Iterator[Trial]:
    yield from _repeated(plan, [{"arm": PLAIN}, addrop(plan)])


def _grid(plan: Plan) -> Iterator[Trial]:
    points = [
        addrop(plan, p=p, q=q, cross_tuning=cross)
        for p, q, cross in product(plan.p_values, plan.q_values, (True, False))
    ]
    for task, seed in product(plan.tasks, plan.seed_list):
        yield {"task": task, "seed": seed, "arm": PLAIN}
    for task, seed, point in product(plan.tasks, plan.seed_list[: plan.grid_seeds], points):
        yield {"task": task, "seed": seed, **point}


def _ablation(plan: Plan) -> Iterator[Trial]:
    yield from _repeated(plan, ablation_variants(plan))


def _size(plan: Plan) -> Iterator[Trial]:
    for share in plan.shares:
        part = {"share": share} if share < 1 else {}  # all examples are what other studies train on
        yield from _repeated(plan, [{"arm": PLAIN}, addrop(plan)], **part)


def _shots(plan: Plan) -> Iterator[Trial]:
    for shots in plan.shots:
        yield from _repeated(plan, [{"arm": PLAIN}, addrop(plan)], shots=shots)


def _regions(plan: Plan) -> Iterator[Trial]:
    yield from _repeated(plan, region_variants(plan))


def _rivals(plan: Plan) -> Iterator[Trial]:
    rates = {"rate": plan.rate, "consistency": plan.consistency}
    rivals = [{"arm": arm, **rates} for arm in ARMS if arm not in (PLAIN, ADDROP)]
    yield from _repeated(plan, [{"arm": PLAIN}, addrop(plan), *rivals])


def _once(kind: str) -> Callable[[Plan], Iterator[Trial]]:
    def trials(plan: Plan) -> Iterator[Trial]:
        for task in plan.tasks:
            yield {"task": task, "seed": plan.first_seed, "arm": kind, "p": plan.p, "q": plan.q, "layers": plan.layers}

    return trials


STUDIES: dict[str, Callable[[Plan], Iterator[Trial]]] = {
    "seeds": _seeds,
    "ablation": _ablation,
    "grid": _grid,
    "size": _size,
    "shots": _shots,
    "regions": _regions,
    "rivals": _rivals,
    **{kind: _once(kind) for kind in ONCE},
}
