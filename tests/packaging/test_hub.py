"""`make hub`: the layout that it writes is one that the package kernels loads, and models attend through it."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_kernels_available

import attrdrop
from attrdrop.integrations.transformers import register

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where Triton compiles, or interprets
NAME = "owner/attrdrop"


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "attrdrop"
    subprocess.run([sys.executable, str(ROOT / "release" / "hub.py"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def kernel(layout):
    kernels = pytest.importorskip("kernels", reason="the package kernels loads the layout, and is not installed")
    return kernels.get_local_kernel(layout)


@pytest.fixture
def attends(kernel):
    """The kernel is transformers' implementation "attrdrop" meanwhile."""
    AttentionInterface.register("attrdrop", kernel.flash_attn_forward)
    AttentionMaskInterface.register("attrdrop", sdpa_mask)
    yield
    register()


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level or node.module.split(".")[0]


def test_the_layout_has_what_kernel_builder_asks_for(layout):
    there = {path.relative_to(layout).as_posix() for path in layout.rglob("*") if path.is_file()}
    assert there >= {
        "build.toml", "flake.nix", "CARD.md", "LICENSE", "torch-ext/attrdrop/__init__.py", "tests/test_attrdrop.py",
        "benchmarks/benchmark_attention.py", "build/torch-cpu/metadata.json", "build/torch-cuda/metadata.json",
    }  # fmt: skip
    kernels = {f"torch-ext/attrdrop/triton_kernels/{path.name}" for path in (ROOT / "triton_kernels").glob("*.py")}
    assert there >= kernels


def test_sources_import_themselves_by_relative_names_and_torch_and_triton_alone(layout):
    found = set()
    for path in (layout / "torch-ext").rglob("*.py"):
        found |= set(imported(path))
        assert "attrdrop::" not in path.read_text()
        assert "torch.ops.attrdrop." not in path.read_text()
    assert found - sys.stdlib_module_names <= {".", "..", "torch", "triton"}


def test_it_writes_over_nothing_but_a_layout(tmp_path):
    (tmp_path / "mine").touch()
    command = [sys.executable, str(ROOT / "release" / "hub.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "holds something else than a kernel of the hub" in done.stderr
    assert (tmp_path / "mine").exists()


def test_operators_have_a_namespace_of_their_own(kernel):
    namespace = importlib.import_module(f"{kernel.__name__}._core.library").NAMESPACE
    assert namespace == kernel.__name__ != "attrdrop"
    assert namespace in str(getattr(torch.ops, namespace).keep_mask.default)
    assert kernel.ADDrop is not attrdrop.ADDrop
    assert kernel.__version__ == attrdrop.__version__


def test_its_triton_kernels_give_the_bits_of_the_reference(kernel):
    pytest.importorskip("triton")
    x, y = torch.randn(2, 1, 2, 40, 16, device=DEVICE).bfloat16()
    found, expected = (
        library.keep_mask(x, y, p=0.3, q=0.5, seed=3, is_causal=True, backend=backend)
        for library, backend in ((kernel, "triton"), (attrdrop, "reference"))
    )
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.counts, expected.counts)


@pytest.mark.usefixtures("attends")
def test_a_model_attends_through_its_triton_kernels(kernel):
    pytest.importorskip("triton")
    model = models.build("bert", attention="eager", num_hidden_layers=1).to(DEVICE).eval()
    inputs = {name: x.to(DEVICE) for name, x in models.batch("bert", size=2).items()}
    expected = model(**inputs).logits
    model.set_attn_implementation("attrdrop")
    with kernel.use_backend("triton"):
        found = model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("attends")
def test_a_step_of_ad_drop_drops_what_the_package_drops(kernel):
    found = []
    for library in (kernel, attrdrop):
        model, inputs = models.build("bert").train(), models.batch("bert")
        addrop = library.ADDrop(model, p=0.3, q=0.5, cross_tuning=False)
        loss = addrop(**inputs).loss
        loss.backward()
        found.append((loss.detach(), addrop.statistics().dropped, next(model.parameters()).grad))
        register()  # for the second, the package
    assert found[0][1] == found[1][1] > 0
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not is_kernels_available(), reason="transformers takes another version of the package kernels")
def test_transformers_finds_it_by_its_name_on_the_hub(layout, monkeypatch):
    monkeypatch.setenv("LOCAL_KERNELS", f"{NAME}={layout}")
    model, inputs = models.build("bert"), models.batch("bert")
    expected = model.eval()(**inputs).logits
    model.set_attn_implementation(NAME)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


def test_its_benchmarks_verify_what_they_time(kernel, layout, monkeypatch):
    monkeypatch.syspath_prepend(layout / "benchmarks")
    benchmark = importlib.import_module("benchmark_attention").Attention()
    benchmark.kernel, benchmark.shape, benchmark.dtype = kernel, (1, 2, 40, 16), torch.float32
    benchmark.setup()
    for name in ("masked_attention", "keep_mask"):
        getattr(benchmark, f"benchmark_{name}")()
        torch.testing.assert_close(benchmark.out, getattr(benchmark, f"verify_{name}")(), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
def test_its_own_tests_pass(layout):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=layout, capture_output=True, text=True)
    assert "3 passed" in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
def test_the_lines_of_the_documentation_run(layout, tmp_path):
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "hub").symlink_to(layout)
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "howto" / "hub.md").read_text(), re.DOTALL | re.MULTILINE
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
