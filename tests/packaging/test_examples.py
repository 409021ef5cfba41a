"""Every example runs, at its smallest sizes."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALLEST = {
    "many_processes": {"epochs": 2, "steps": 2, "batch_size": 4},
    "plain_loop": {"epochs": 2, "steps": 2, "batch_size": 4},
    "reldrop_images": {"epochs": 2, "size": 100, "test_size": 50},
    "reldrop_pictures": {"epochs": 2, "size": 100, "test_size": 50},
    "reldrop_points": {"epochs": 1, "points": 32, "test_size": 26},
    "reldrop_text": {"epochs": 1, "size": 32, "test_size": 16, "seeds": 1},
    "trainer": {"epochs": 2, "train_size": 16, "test_size": 8},
}


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_all_examples_are_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SMALLEST.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the figures
    assert 0 <= runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**SMALLEST[name]) <= 1


@pytest.mark.slow
def test_notebook_runs_and_holds_the_outputs_of_an_earlier_run():
    nbclient = pytest.importorskip("nbclient", reason="make test-all installs what a notebook needs")
    import nbformat

    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # as it was saved
    stored = {cell.id: [output.output_type for output in cell.outputs] for cell in code}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert {cell.id: [output.output_type for output in cell.outputs] for cell in code} == stored
