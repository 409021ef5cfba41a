"""What is installed: imports, what they need, and the sdist and wheel a user would get."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.licenses import canonicalize_license_expression

import attrdrop

ROOT = Path(__file__).resolve().parents[2]
DATA = {
    f"attrdrop/lab/data/{name}"
    for name in (
        "amazon_reviews.tsv.gz", "bible_en_es.tsv.gz", "brown_names.jsonl.gz", "furniture_points.npz",
        "rt_sentences.tsv.gz", "squad_questions.tsv.gz", "tweets.tsv.gz", "bert_tiny/config.json",
        "bert_tiny/model.safetensors", "bert_tiny/tokenizer.json", "bert_tiny/tokenizer_config.json",
    )
}  # fmt: skip


def python(code: str, **env: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_version_is_written_once():
    assert python("import attrdrop, importlib.metadata as m; print(m.version('attrdrop'))") == attrdrop.__version__


def test_every_shipped_file_is_listed_with_its_licence():
    folder = ROOT / "attrdrop" / "lab" / "data"
    there = {path.relative_to(ROOT).as_posix() for path in folder.rglob("*") if path.is_file()}
    licences = {name for name in there if "/LICENSE." in name}
    assert there - licences == DATA
    named = {f"attrdrop/lab/data/LICENSE.{name.split('/')[3].split('.')[0]}" for name in DATA}
    assert licences == named


def test_import_takes_under_half_a_second_of_cpu_beyond_torch():
    code = "import torch, time; t = time.process_time(); import attrdrop; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.5


def test_import_brings_no_heavy_module_along():
    code = "import sys, torch; before = set(sys.modules); import attrdrop; print(*sorted(set(sys.modules) - before))"
    roots = {name.split(".")[0] for name in python(code).split()}
    assert not roots & {"transformers", "triton", "matplotlib", "pandas", "typer", "rich", "accelerate", "sklearn"}


@pytest.mark.parametrize("blocked", ["transformers triton attrdrop._host", "attrdrop._C attrdrop._host triton"])
def test_works_without_what_is_optional(blocked):
    code = f"""
import sys
for name in {blocked.split()!r}:
    sys.modules[name] = None
import torch, attrdrop
x = torch.randn(1, 2, 8, 4)
keep = attrdrop.keep_mask(x, x, p=.5, q=.5, seed=0)
q = x.clone().requires_grad_()
attrdrop.masked_attention(q, x, x, keep, dropout_p=.1, seed=1).sum().backward()
attrdrop.attention_attribution(x, x, topk=2)
print(int(keep.counts[1]), q.grad.isfinite().all().item())
"""
    assert python(code) == "64 True"


def test_a_missing_compiled_module_is_explained():
    code = """
import sys
sys.modules["attrdrop._C"] = None
import torch, attrdrop
try:
    attrdrop.pack_mask(torch.ones(3).bool(), backend="cpp")
except RuntimeError as error:
    print(error)
"""
    assert "backend 'cpp' cannot serve this call: attrdrop._C is not there" in python(code)


def test_environment_chooses_the_backend():
    assert python("import attrdrop; print(attrdrop.get_backend())", ATTRDROP_BACKEND="reference") == "reference"
    done = subprocess.run(
        [sys.executable, "-c", "import attrdrop"], env={**os.environ, "ATTRDROP_BACKEND": "fast"}, capture_output=True
    )
    assert b"environment variable ATTRDROP_BACKEND must be one of" in done.stderr


def test_compiled_module_uses_only_the_stable_interface_of_torch():
    library = Path(attrdrop.__file__).parent / "_C.abi3.so"
    command = ["nm", "-DC", "--undefined-only", str(library)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True)
    offending = [line for line in symbols.stdout.splitlines() if "at::" in line or "c10::" in line or "torch::" in line]
    assert offending == []


def test_functions_of_libm_that_wheels_may_not_ask_for_are_pinned():
    """manylinux_2_28 lacks those that glibc 2.29 renewed; what is newer than that, a build with CUDA brings along."""
    library = Path(attrdrop.__file__).parent / "_C.abi3.so"
    symbols = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    used = set(re.findall(r" (\w+)@GLIBC_2\.29$", symbols.stdout, re.MULTILINE))
    pinned = re.findall(r"\.symver (\w+),", (ROOT / "csrc" / "portable.h").read_text())
    assert used <= set(pinned)


def build_sdist(source: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    code = f"import build_backend.attrdrop_build as b; print(b.build_sdist({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=source, env={**os.environ, "PYTHONPATH": str(source)}, check=True)
    (archive,) = folder.glob("attrdrop-*.tar.gz")
    return archive


@pytest.mark.slow
def test_sdist_builds_a_wheel_that_works_without_a_cuda_toolkit(tmp_path):
    archive = build_sdist(ROOT, tmp_path)
    with tarfile.open(archive) as contents:
        names = contents.getnames()
        contents.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    shutil.rmtree(source / "attrdrop.egg-info")  # whose list the next would take over
    with tarfile.open(build_sdist(source, tmp_path / "again")) as contents:  # outside of git
        assert set(contents.getnames()) == {name for name in names if "/." not in name}
    for needed in ("csrc/cpu/isa/keep_mask.cpp", "csrc/philox.h", "triton_kernels/pack_mask.py", "CMakeLists.txt",
                   "build_backend/attrdrop_build.py", *DATA):  # fmt: skip
        assert any(name.endswith(needed) for name in names), needed
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-build-isolation", "--no-deps"]
    env = {**os.environ, "ATTRDROP_CUDA": "OFF", "ATTRDROP_REQUIRE_C": "1"}
    subprocess.run([*pip, "-q", "-w", str(tmp_path), str(archive)], env=env, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("attrdrop-*.whl")
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as contents:
        contents.extractall(installed)
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*")}
    assert "attrdrop/_C.abi3.so" in found
    assert "attrdrop/triton_kernels/pack_mask.py" in found
    assert found >= DATA
    assert found >= {path.relative_to(ROOT).as_posix() for path in (ROOT / "attrdrop").rglob("*.py")}
    assert not any(name.startswith(("triton_kernels", "build_backend", "tests", "bench")) for name in found)
    code = "import attrdrop, json, torch; print(attrdrop.__file__); print(torch.ops.attrdrop.build_info())"
    printed = python(code, PYTHONPATH=str(installed))
    assert str(installed) in printed
    assert '"cuda_archs": ""' in printed
    assert f'"version": "{attrdrop.__version__}"' in printed


def test_licence_and_version_of_the_metadata_are_those_of_the_tree():
    project = (ROOT / "pyproject.toml").read_text()
    (expression,) = re.findall('^license = "(.+)"$', project, re.MULTILINE)
    assert canonicalize_license_expression(expression) == expression
    assert f"version: {attrdrop.__version__}\n" in (ROOT / "CITATION.cff").read_text()
