"""docs/evidence: its plan can be read, and its report is what the tables beside it give."""

import re
import shutil
from pathlib import Path

import pytest

from attrdrop import ADDropConfig
from attrdrop.lab.protocol.plan import load
from attrdrop.lab.protocol.report import COMPARISONS, REPORT, RUNS, SEARCHED, StudyReport, chosen
from attrdrop.lab.text.settings import PRESETS

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = DOCS / "evidence"


def test_the_plan_of_the_guide_can_be_read(tmp_path):
    text = re.search(r"```toml\n(.*?)```", (DOCS / "howto" / "fair_comparison.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "plan.toml").write_text(text)
    (setting,) = load(tmp_path / "plan.toml")
    assert setting.twins["random"].point({"p": 0.6}, {}) == {"p": 0.6, "attribution": "RD"}


@pytest.mark.parametrize("plan", sorted(FOLDER.glob("*.toml")), ids=lambda plan: plan.stem)
def test_the_plans_are_fair(plan):
    """Every arm has points for as many trials as the others, or the one the first plan chose; the seeds suffice."""
    first = load(FOLDER / "plan.toml")
    search = StudyReport.from_tables(first, FOLDER).search
    earlier = [(arm, point) for setting in first for arm, point in chosen(setting, search).items()]
    for setting in load(plan):
        for arm in setting.arms:
            points = setting.grid(arm)
            is_chosen = len(points) == 1 and (arm, points[0]) in earlier
            assert len(points) >= setting.trials or is_chosen, (setting.name, arm)
        assert len(setting.seeds) >= 10


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "folder"), [("plan", FOLDER), ("plan_tasks", FOLDER / "tasks")])
def test_the_report_is_that_of_the_tables(plan, folder, tmp_path):
    for name in (RUNS, SEARCHED):
        shutil.copy(folder / name, tmp_path)
    StudyReport.from_tables(load(FOLDER / f"{plan}.toml"), tmp_path).save(tmp_path)
    for name in (REPORT, COMPARISONS):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


def test_the_preset_for_small_data_is_what_the_study_chose():
    settings = load(FOLDER / "plan.toml")
    search = StudyReport.from_tables(settings, FOLDER).search
    points = [chosen(setting, search)["ad-drop"] for setting in settings if "ad-drop" in setting.arms]
    config = ADDropConfig.small_data(seed=3)
    assert points
    assert {(point["p"], point["q"]) for point in points} == {(config.p, config.q)}
    assert config.seed == 3
    assert ADDropConfig.small_data(p=0.1).p == 0.1


def test_the_page_says_how_the_demo_is_run():
    page = (DOCS / "evidence.md").read_text()
    command = re.search(r"```bash\nattrdrop finetune (.*?)```", page, re.DOTALL).group(1)
    said = dict(re.findall(r"--([a-z-]+) (\S+)", command))
    demo = {name.replace("_", "-"): value for name, value in PRESETS["demo"].items()}
    assert said.keys() == demo.keys()
    assert {name: type(demo[name])(value) for name, value in said.items()} == demo
