"""The floor plan, over the syntax tree: packages import downwards, in no circle, and nothing private of another."""

import ast
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {
    "attrdrop": (
        "_C _core _host _version", "reference schedules", "ops triton_kernels", "lrp addrop models",
        "reldrop metrics", "plots integrations doctor", "__init__", "lab",
    ),
    "attrdrop.lab": (
        "__init__ arrays errors device names", "runs", "figures", "text images points", "studies", "protocol", "cli",
    ),
}  # fmt: skip
"""Rooms by floor, the lowest first: what stands on a floor imports what stands there and below."""

BACKENDS_SEEN = {f"{name} -> attrdrop._core.backends" for name in ("bench.run", "bench.ops.attention", "bench.warm")}
"""Private to the library, yet imported by benchmarks: only there can be seen which backend serves an op."""


class Arrow(NamedTuple):
    """An import of ours, wherever it stands in a file."""

    source: str
    target: str
    place: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


def module_files() -> dict[str, Path]:
    """Files by the name that they are imported by."""
    folders = {"attrdrop.triton_kernels": "triton_kernels", "attrdrop": "attrdrop", "bench": "bench"}
    files = {}
    for package, folder in folders.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = (package, *path.relative_to(ROOT / folder).with_suffix("").parts)
            files[".".join(parts).removesuffix(".__init__")] = path
    return files


FILES = module_files()


def arrows_of(source: str, code: str, place: str = "") -> list[Arrow]:
    """What the code of a module imports of attrdrop and bench, each name by itself."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place}:{node.lineno}: imports by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        ours = [name for name in names if name.split(".")[0] in ("attrdrop", "bench")]
        found += [Arrow(source, name, f"{place}:{node.lineno}") for name in ours]
    return found


ARROWS = [
    arrow
    for name, path in FILES.items()
    for arrow in arrows_of(name, path.read_text(), path.relative_to(ROOT).as_posix())
]


def module_of(name: str) -> str:
    """The module that a dotted name is, or lies in."""
    return name if name in FILES or "." not in name else module_of(name.rpartition(".")[0])


def room(name: str, house: str) -> str | None:
    """The part of a package that a dotted name lies in, if any; what the package itself shows is its __init__."""
    if not f"{name}.".startswith(f"{house}."):
        return None
    part = name.removeprefix(house).split(".")[1:2]
    return part[0] if part and part[0] in " ".join(FLOORS[house]).split() else "__init__"


def is_upward(arrow: Arrow) -> bool:
    for house, floors in FLOORS.items():
        level = {name: place for place, floor in enumerate(floors) for name in floor.split()}
        source, target = room(arrow.source, house), room(arrow.target, house)
        if source and target and level[target] > level[source]:
            return True
    return False


def is_private(arrow: Arrow) -> bool:
    """Whether it enters by an underscore a package that it does not come from; to lab, the core is private too."""
    before = ""
    for part in arrow.target.split("."):
        if part.startswith("_") and not part.endswith("__"):
            is_module = before in FILES and FILES[before].stem != "__init__"
            package = before.rpartition(".")[0] if is_module else before
            is_inside = f"{arrow.source}.".startswith(f"{package}.")
            return not is_inside or (package == "attrdrop" and room(arrow.source, "attrdrop") == "lab")
        before = f"{before}.{part}".lstrip(".")
    return False


def is_unfounded(arrow: Arrow) -> bool:
    """Whether a definition in plain PyTorch stands on more than the core."""
    source, target = room(arrow.source, "attrdrop"), room(arrow.target, "attrdrop")
    return source == "reference" and target not in ("_core", "reference")


def is_of_experiments(arrow: Arrow) -> bool:
    """Whether the library imports experiments or benchmarks."""
    is_library = room(arrow.source, "attrdrop") not in (None, "lab")
    return is_library and (arrow.target.split(".")[0] == "bench" or room(arrow.target, "attrdrop") == "lab")


def assert_none(broken: Iterable[Arrow]) -> None:
    said = [f"{arrow.place}: {arrow}" for arrow in broken]
    assert not said, "\n".join(said)


RULES = (is_upward, is_private, is_unfounded, is_of_experiments)


@pytest.mark.parametrize("breaks", RULES)
def test_no_arrow_breaks_a_rule(breaks):
    assert_none(arrow for arrow in ARROWS if breaks(arrow) and str(arrow) not in BACKENDS_SEEN)


def test_every_room_has_its_floor():
    for house in FLOORS:
        depth = house.count(".") + 1
        there = {name.split(".")[depth] for name in FILES if name.startswith(f"{house}.")}
        assert there <= set(" ".join(FLOORS[house]).split())


def circle(arrows: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows of a circle, if there is one."""
    arrows = {(source, target) for source, target in arrows if source != target}
    while ends := {target for _, target in arrows} - {source for source, _ in arrows}:
        arrows = {(source, target) for source, target in arrows if target not in ends}
    path = [source for source, _ in sorted(arrows)[:1]]
    while path and path[-1] not in path[:-1]:
        path.append(min(target for source, target in arrows if source == path[-1]))
    return set(itertools.pairwise(path[path.index(path[-1]) :] if path else []))


def test_modules_import_each_other_in_no_circle():
    ends = {arrow: (arrow.source, module_of(arrow.target)) for arrow in ARROWS}
    ends = {arrow: pair for arrow, pair in ends.items() if "attrdrop" not in pair}  # the face shows what it imports
    found = circle(ends.values())
    assert_none(arrow for arrow, pair in ends.items() if pair in found)


@pytest.mark.parametrize("house", FLOORS)
def test_rooms_import_each_other_in_no_circle(house):
    ends = {arrow: (room(arrow.source, house), room(arrow.target, house)) for arrow in ARROWS}
    ends = {arrow: pair for arrow, pair in ends.items() if not {None, "__init__"} & {*pair}}
    found = circle(ends.values())
    assert_none(arrow for arrow, pair in ends.items() if pair in found)


@pytest.mark.parametrize(
    ("source", "code", "broken"),
    [
        ("attrdrop.reldrop.guided", "from attrdrop.addrop.passes import derive_seed", ()),
        ("attrdrop.addrop.passes", "def f():\n    from attrdrop import reldrop", (is_upward,)),
        ("attrdrop.lrp.engine", "import attrdrop", (is_upward,)),
        ("attrdrop.plots.curves", "from attrdrop.lab.runs import store", (is_upward, is_of_experiments)),
        ("attrdrop.doctor", "from bench import rows", (is_of_experiments,)),
        ("attrdrop.reference.philox", "from attrdrop.schedules import linear", (is_unfounded,)),
        ("attrdrop.metrics.flipping", "from attrdrop.lrp.engine import _each", (is_private,)),
        ("attrdrop.metrics.flipping", "from attrdrop.metrics._scores import score", ()),
        ("attrdrop.lrp.engine", "from attrdrop.ops._points import check", (is_private,)),
        ("attrdrop.lrp.engine", "from attrdrop._core import checks", ()),
        ("attrdrop.lab.device", "from attrdrop._core import checks", (is_private,)),
        ("attrdrop.lab.device", "from attrdrop import __version__", ()),
        ("attrdrop.lab.runs.store", "if TYPE_CHECKING:\n    from attrdrop.lab.cli import main", (is_upward,)),
    ],
)  # fmt: skip
def test_arrows_that_break_a_rule_are_found(source, code, broken):
    (arrow,) = arrows_of(source, code)
    assert tuple(breaks for breaks in RULES if breaks(arrow)) == broken


def test_circles_are_found():
    assert circle([("a", "b"), ("b", "c"), ("c", "d"), ("c", "e"), ("d", "b")]) == {("b", "c"), ("c", "d"), ("d", "b")}
    assert circle([("a", "b"), ("b", "c"), ("a", "c"), ("c", "c")]) == set()
