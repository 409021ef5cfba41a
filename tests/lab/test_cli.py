"""The command line itself: help, exit codes, commands that need a source checkout."""

import ast
import dataclasses
import errno
import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import pytest
from lab_runs import heed_interrupts, names
from typer.main import get_command
from typer.testing import CliRunner

import attrdrop
from attrdrop.lab.cli import options
from attrdrop.lab.cli.main import app
from attrdrop.lab.cli.sweep import Search
from attrdrop.lab.cli.terminal import LETTERS
from attrdrop.lab.errors import InputError
from attrdrop.lab.figures import sweeps as sweep_plots
from attrdrop.lab.images.settings import EvaluationOptions, ImageData, ImageSettings
from attrdrop.lab.names import RULES, USUAL
from attrdrop.lab.points.settings import PointData, PointSettings
from attrdrop.lab.runs.rules import rule_of
from attrdrop.lab.runs.settings import (
    Machines,
    MapOptions,
    Option,
    Options,
    Panel,
    RunOptions,
    SavingRunOptions,
    Variation,
    alternatives,
    arms_of,
    options_of,
    share,
)
from attrdrop.lab.runs.store import TrialStore
from attrdrop.lab.studies.plan import Plan
from attrdrop.lab.text.settings import Data, Settings

COMMANDS = [
    "finetune",
    "evaluate",
    "sweep",
    "train-images",
    "train-points",
    "explain",
    "maps",
    "evaluate-images",
    "report",
    "doctor",
    "bench",
    "verify",
]
MADE_OF = {
    "finetune": (Data, Settings, SavingRunOptions),
    "sweep": (Plan, Search, Data, Settings, RunOptions, Machines),
    "train-images": (ImageData, Variation, ImageSettings, SavingRunOptions),
    "train-points": (PointData, Variation, PointSettings, SavingRunOptions),
}
VARIED_BY_STUDIES = {"task", "arms", "attribution", "target", "region", "cross_tuning"}  # no options of a sweep
FIELDS = [
    pytest.param(command, kind, field, id=f"{command}-{kind.__name__}-{field.name}")
    for command, kinds in MADE_OF.items()
    for kind in kinds
    for field in dataclasses.fields(kind)
    if not (command == "sweep" and kind in (Data, Settings) and field.name in VARIED_BY_STUDIES)
]
LIMITS = [
    pytest.param(command, kind, name, option.min, id=f"{command}-{name}")
    for command, kinds in MADE_OF.items()
    for kind in kinds
    for name, (_, option) in options_of(kind).items()
    if option.min is not None
]
REFUSED = [
    ("finetune", Settings, "lr", float("nan")),
    ("finetune", Settings, "region", "middle"),
    ("finetune", Settings, "rate", 1.5),
    ("finetune", Settings, "consistency", -1.0),
    ("train-images", ImageSettings, "model", "vgg"),
    ("train-images", ImageSettings, "p", -0.1),
    ("train-images", ImageSettings, "rule", "lrp"),
    ("train-images", ImageSettings, "epsilon", 0.0),
    ("train-images", ImageSettings, "mode", "row"),
    ("train-images", ImageSettings, "border", "wrap"),
    ("train-images", ImageSettings, "value", "black"),
    ("train-images", ImageSettings, "value", "nan"),
    ("train-images", ImageSettings, "mix", 0.0),
    ("train-points", PointSettings, "epsilon", float("nan")),
    ("train-points", PointSettings, "mode", "random"),
    ("train-points", PointSettings, "beta", 2.0),
    ("train-points", PointSettings, "width", 0.0),
    ("train-points", PointSettings, "jitter", float("inf")),
]


def sentence(outcome):
    """The output of a command without the box and the line breaks of an error."""
    return " ".join(outcome.output.replace("│", " ").split())


def flag(name):
    return f"--{name.replace('_', '-')}"


def made(kind, **values):
    return kind(**({"output": Path("out")} if issubclass(kind, RunOptions) else {}) | values)


def test_version():
    outcome = CliRunner().invoke(app, ["--version"])
    assert outcome.exit_code == 0
    assert outcome.output == f"attrdrop {attrdrop.__version__}\n"


def test_help_names_every_command():
    outcome = CliRunner().invoke(app, ["--help"])
    assert outcome.exit_code == 0
    assert all(command in outcome.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command):
    outcome = CliRunner().invoke(app, [command, "--help"])
    assert outcome.exit_code == 0
    assert "Usage" in outcome.output


def test_help_imports_nothing_of_the_lab():
    """attrdrop itself may load torch; transformers, pandas and matplotlib must wait for a command."""
    code = (
        "import sys, attrdrop.lab.cli.main\n"
        "print([name for name in ('transformers', 'pandas', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [["finetune", "--epochs", "many"], ["finetune", "--preset", "huge"], ["finetune", "--seeds", "0"]]
)
def test_options_that_are_none(arguments):
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 2
    assert arguments[1] in outcome.output


def test_report_of_a_folder_without_results(tmp_path):
    outcome = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "holds no results" in outcome.output


TASKS = '"settings": {"model": "m"}, "tasks": {}'
UNREADABLE = [
    ("sweep.json", "{}", "'plans'"),
    ("sweep.json", "[]", "sweep.json is not a JSON object"),
    ("sweep.json", '{"plans": []}', "'tasks'"),
    ("sweep.json", '{"plans": [], "tasks": {}}', "'settings'"),
    ("sweep.json", f'{{"plans": [3], {TASKS}}}', "a plan in it cannot be read"),
    ("sweep.json", f'{{"plans": [{{"depth": 2}}], {TASKS}}}', "a plan in it cannot be read"),
    ("sweep.json", f'{{"plans": [{{"studies": ["depth"]}}], {TASKS}}}', "'depth' is not one of seeds"),
    ("sweep.json", '{"plans": [', "line 1"),
    ("results.json", "{}", "'runs'"),
    ("results.json", "null", "results.json is not a JSON object"),
    ("results.json", '{"runs": 3, "summary": {}}', "'task'"),
    ("results.json", '{"kind": "zoo"}', "to another command"),
]


@pytest.mark.parametrize(("name", "content", "fragment"), UNREADABLE)
def test_files_that_hold_no_results_are_one_sentence(name, content, fragment, tmp_path):
    (tmp_path / name).write_text(content)
    outcome = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert outcome.exit_code == 2
    assert outcome.output.startswith(f"Error: {tmp_path} holds no results")
    assert fragment in outcome.output
    assert len(outcome.output.splitlines()) == 1


def sweep_of(folder, *scores, study="seeds"):
    """A sweep of a study, written by hand."""
    plan = Plan((study,), ("rte",), seeds=len(scores), p_values=(0.3, 0.6), q_values=(0.5,))
    metric = {"name": "accuracy", "better": 1, "percent": True}
    task = {"kind": "classification", "sizes": {"train": 8, "dev": 4}, "metric": metric}
    header = {"kind": "sweep", "settings": {"model": "m"}, "task": {}, "tasks": {"rte": task}}
    store = TrialStore(folder, header | {"plans": [dataclasses.asdict(plan)]})
    epoch = {"number": 1, "active": False, "train_loss": 1.0, "dev_loss": 1.0, "dev_score": 0.5, "step_seconds": [1.0],
             "statistics": None}  # fmt: skip
    run = {"metric": metric, "train_size": 8, "test_score": None, "other_scores": {}, "best_epoch": 1, "seconds": 1.0}
    with store.locked():
        for trial in plan.trials():
            store.save(trial, run | {"dev_score": scores[trial["seed"]], "epochs": [epoch]}, 1.0)
    return folder


@pytest.mark.parametrize(
    ("study", "figure", "function", "head"),
    [
        ("regions", "regions", "region_curves", "2 seeds\n{sizes}\n30 % of the first layer's positions dropped"),
        ("grid", "pq_heatmap", "pq_heatmap", "1 seed\n{sizes}"),  # of AD-DROP; plain training is run at two
    ],
)
def test_figures_of_a_sweep_say_of_how_many_seeds_and_examples_they_are(
    tmp_path, monkeypatch, study, figure, function, head
):
    titles = []
    draw = getattr(sweep_plots, function)
    monkeypatch.setattr(
        sweep_plots, function, lambda *arguments, title: [titles.append(title), draw(*arguments, title=title)]
    )
    outcome = CliRunner().invoke(app, ["report", str(sweep_of(tmp_path / "sweep", 0.5, 0.25, study=study))])
    assert outcome.exit_code == 0, outcome.output
    assert titles == [f"m on rte, {head.format(sizes='8 train, 4 dev examples')}"]
    assert f"{figure}_rte.png" in names(tmp_path / "sweep")


def test_a_sweep_on_a_full_disk_is_shown_all_the_same(tmp_path, monkeypatch):
    folder = sweep_of(tmp_path / "sweep", 0.5, 0.25)

    def full(draft, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    outcome = CliRunner().invoke(app, ["report", str(folder)])
    assert outcome.exit_code == 0, outcome.output
    assert "37.5 ± 17.7" in outcome.output
    written = f"Not drawn anew: --output: {folder} cannot be written: No space left on device."
    assert written in outcome.output.splitlines()
    assert names(folder) == [".lock", "sweep.json", "trials"]


def command(*arguments, entry="attrdrop.lab.cli.main", **environment):
    """The command in a process of its own."""
    code = f"import sys; from {entry} import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=os.environ | environment
    )


def test_a_terminal_without_all_letters_gets_others(tmp_path):
    folder = sweep_of(tmp_path / "sweep", 0.5, 0.25)
    outcome = command("report", folder, PYTHONIOENCODING="ascii")
    assert outcome.returncode == 0, outcome.stderr
    assert "37.5 ~ 17.7" in outcome.stdout
    assert all(len(letter) == 1 for letter in LETTERS.values())  # columns stay columns


def test_a_backend_that_is_none_is_one_sentence():
    shown = command("doctor", ATTRDROP_BACKEND="foo")
    assert shown.returncode == 0
    assert "environment ATTRDROP_BACKEND foo" in shown.stdout
    assert "must be one of auto, reference, cpp, triton, cuda, got 'foo'" in shown.stdout
    refused = command("finetune", "--model", "scratch", ATTRDROP_BACKEND="foo")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(
        "Error: environment variable ATTRDROP_BACKEND must be one of auto"
    )
    assert "Traceback" not in shown.stderr + refused.stderr


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_ctrl_c_while_everything_is_imported(seconds):
    code = "import sys, attrdrop_command; print('here', flush=True); sys.exit(attrdrop_command.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "report", "/nowhere"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(attrdrop.__file__).parents[1], preexec_fn=heed_interrupts,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode != 2:  # it was done already
        assert process.returncode == 130
        assert said == "Interrupted.\n"


@pytest.mark.parametrize(("name", "reason"), [("none", "there is no such folder"), ("file", "it is a file")])
def test_a_report_of_no_folder_says_so(name, reason, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = CliRunner().invoke(app, ["report", str(tmp_path / name)])
    assert outcome.exit_code == 2
    assert outcome.output == f"Error: {tmp_path / name} holds no results: {reason}.\n"


@pytest.mark.parametrize("arguments", [["bench"], ["verify", "keep_mask"]])
def test_bench_outside_a_checkout_says_so(arguments, tmp_path):
    """The package copied elsewhere has no bench folder beside it."""
    package = Path(attrdrop.__file__).parent
    shutil.copytree(package, tmp_path / "attrdrop", ignore=shutil.ignore_patterns("*.so", "data", "__pycache__"))
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from attrdrop.lab.cli.main import main; main()"
    outcome = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert outcome.returncode == 2, outcome.stderr
    assert "source checkout" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(("command", "kind", "field"), FIELDS)
def test_each_field_is_an_option_with_the_same_default(command, kind, field):
    found = {param.name: param for param in get_command(app).commands[command].params}
    assert flag(field.name) in found[field.name].opts
    default = field.default
    if isinstance(default, tuple):
        default = ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in default) or None
    if field.name == "output":
        default = Path("runs") / command.removeprefix("train-")
    if command == "sweep" and kind is Settings and field.name == "seeds":
        default = Plan.seeds
    assert found[field.name].default == default


def test_what_is_usual_in_studies_are_the_defaults_of_settings():
    assert {name: getattr(Settings, name) for name in USUAL} == USUAL


@pytest.mark.parametrize("settings", [ImageSettings, PointSettings])
def test_rules_have_the_names_of_the_settings(settings):
    made = {name: rule_of(settings(rule=name).rule, 0.25) for name in RULES}
    assert len(set(made.values())) == len(RULES)
    assert [name for name, rule in made.items() if "0.25" in repr(rule)] == list(RULES[:4])
    assert settings.rule in RULES
    assert options_of(settings)["rule"][1].help == f"{alternatives(list(RULES))}."


@pytest.mark.parametrize("command", MADE_OF)
def test_a_command_has_no_option_but_those_of_its_fields(command):
    found = {param.name for param in get_command(app).commands[command].params}
    assert found - {"preset", "help"} <= {field.name for kind in MADE_OF[command] for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", [Settings, ImageSettings, PointSettings])
def test_options_take_their_defaults_from_the_fields_alone(kind):
    """Fields of the same annotations with other defaults change every option."""
    hints = get_type_hints(kind, include_extras=True)
    others = [(name, hints[name], dataclasses.field(default=("other",))) for name in options_of(kind)]
    changed = dataclasses.make_dataclass("Changed", others, bases=(Options,))

    @options.command({}, "")
    def run(settings: changed):
        """Nothing."""

    parameters = inspect.signature(run).parameters
    for name, (annotation, _) in options_of(kind).items():
        assert parameters[name].default == ("other" if "tuple" in str(annotation) else ("other",))


@pytest.mark.parametrize(("command", "kinds"), [("maps", (MapOptions,)), ("evaluate-images", (EvaluationOptions,))])
def test_looking_at_models_takes_options_of_data_and_models(command, kinds):
    found = {param.name for param in get_command(app).commands[command].params}
    known = {field.name for kind in (*kinds, ImageData, ImageSettings) for field in dataclasses.fields(kind)}
    assert {"dataset", "data", "model", "weights", "device"} <= found
    assert not {"p", "alpha", "seeds", "arms", "save"} & found
    assert found - {"preset", "help"} <= known


@pytest.mark.parametrize(
    "module", ["evaluate", "finetune", "sweep", "images", "points", "maps", "evaluate_images", "evaluate_points"]
)
def test_bodies_of_commands_have_no_defaults(module):
    tree = ast.parse((Path(options.__file__).parent / f"{module}.py").read_text())
    bodies = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    assert any(node.name.endswith(module) for node in bodies)
    assert not any(node.args.defaults or node.args.kw_defaults for node in bodies)


@pytest.mark.parametrize(("command", "kind", "name", "least"), LIMITS)
def test_limits_refuse_in_python_as_on_the_command_line(command, kind, name, least):
    value = (float if "float" in str(options_of(kind)[name][0]) else int)(least - 1)
    outcome = CliRunner().invoke(app, [command, flag(name), str(value)])
    assert outcome.exit_code == 2
    assert flag(name) in sentence(outcome)
    assert str(least) in sentence(outcome)
    with pytest.raises(InputError) as caught:
        made(kind, **{name: value})
    assert str(caught.value) == f"{flag(name)}: {value} should be greater than or equal to {least}."


@pytest.mark.parametrize(("command", "kind", "name", "value"), REFUSED)
def test_checks_refuse_in_python_as_on_the_command_line(command, kind, name, value, tmp_path):
    with pytest.raises(InputError) as caught:
        made(kind, **{name: value})
    assert str(caught.value).startswith(f"{flag(name)}: {value!r} is n")
    outcome = CliRunner().invoke(app, [command, flag(name), str(value), "--output", str(tmp_path / "out")])
    assert outcome.exit_code == 2
    assert str(caught.value) in sentence(outcome)
    assert not (tmp_path / "out").exists()


WITH_ARMS = [
    (command, kind)
    for command, kinds in MADE_OF.items()
    for kind in kinds
    if "arms" in (field.name for field in dataclasses.fields(kind))
]


@pytest.mark.parametrize(("command", "kind"), WITH_ARMS)
@pytest.mark.parametrize(("arms", "fragment"), [((), "got none"), (("plain", "plain"), "each once"), (("x",), "'x'")])
def test_arms_are_refused_everywhere(command, kind, arms, fragment):
    with pytest.raises(InputError, match=fragment) as caught:
        kind(arms=arms)
    if command != "sweep":
        outcome = CliRunner().invoke(app, [command, "--arms", ",".join(arms)])
        assert outcome.exit_code == 2
        assert str(caught.value) in sentence(outcome)


def test_settings_import_neither_the_terminal_nor_what_trains():
    code = (
        "import sys\n"
        "from attrdrop.lab.images import settings\n"
        "from attrdrop.lab.points import settings\n"
        "from attrdrop.lab.studies import plan\n"
        "print([name for name in ('typer', 'rich', 'attrdrop.lrp', 'attrdrop.addrop') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize(
    ("texts", "values", "given"),
    [
        ([], {"names": ("plain",), "ratio": 0.5, "sizes": (1, 2)}, set()),
        (["--names", "a, b"], {"names": ("a", "b"), "ratio": 0.5, "sizes": (1, 2)}, {"names"}),
        (["--preset", "tiny"], {"names": ("plain",), "ratio": 0.1, "sizes": (3,)}, set()),
        (
            ["--preset", "tiny", "--ratio", "0.7", "--sizes", "4,5"],
            {"names": ("plain",), "ratio": 0.7, "sizes": (4, 5)},
            {"ratio", "sizes"},
        ),
    ],
)
def test_what_a_command_gets(texts, values, given):
    """The command line holds before a preset, a preset before the default."""
    got = {}

    @dataclass(frozen=True)
    class Some(Options):
        names: Annotated[tuple[str, ...], Option(Panel.DATA, "Names.", check=arms_of(("plain", "a", "b")))] = ("plain",)
        ratio: Annotated[float, Option(Panel.MODEL, "A ratio.", check=share())] = 0.5
        sizes: Annotated[tuple[int, ...], Option(Panel.MODEL, "Sizes.")] = (1, 2)

    @options.command({"tiny": {"ratio": 0.1, "sizes": (3,)}}, "tiny: small.")
    def command(some: Some, given: set[str]):
        got.update(dataclasses.asdict(some), given=given)

    outcome = CliRunner().invoke(_alone(command), texts)
    assert outcome.exit_code == 0, outcome.output
    assert got == values | {"given": given}
    outcome = CliRunner().invoke(_alone(command), ["--sizes", "4;5"])
    assert outcome.exit_code == 2
    assert "--sizes: '4;5' is not a list of numbers separated by commas." in sentence(outcome)


def test_an_argument_stands_without_a_name_and_a_preset_may_depend_on_the_others():
    got = {}

    @dataclass(frozen=True)
    class Some(Options):
        place: Annotated[str, Option(Panel.DATA, "Where.", is_argument=True)]
        size: Annotated[int, Option(Panel.MODEL, "A size.", min=1)] = 1

    @options.command({"long": lambda values, given: {"size": len(values["place"])}}, "long: as long as the name.")
    def command(some: Some):
        got.update(dataclasses.asdict(some))

    for texts, size in (([], 1), (["--preset", "long"], 4), (["--preset", "long", "--size", "9"], 9)):
        outcome = CliRunner().invoke(_alone(command), ["here", *texts])
        assert outcome.exit_code == 0, outcome.output
        assert got == {"place": "here", "size": size}
    assert CliRunner().invoke(_alone(command), []).exit_code == 2

    @options.command()
    def bare(some: Some):
        """No preset."""

    assert "--preset" not in CliRunner().invoke(_alone(bare), ["--help"]).output


def _alone(command):
    import typer

    app = typer.Typer()
    app.command()(command)
    return app
