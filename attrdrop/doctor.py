"""Facts about this installation: what is active, and why the rest is not.

`python -m attrdrop.doctor` prints them as JSON and needs nothing but the package itself.
"""

import importlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from attrdrop._version import __version__

ENVIRONMENT = ("ATTRDROP_ISA", "ATTRDROP_BACKEND")


@dataclass(frozen=True)
class Fact:
    """`active` is None if a fact cannot be active or inactive; `why` explains an absence, or adds a detail."""

    value: str
    active: bool | None = None
    why: str = ""


def facts() -> dict[str, dict[str, Any]]:
    """Every fact by name, in display order."""
    found = {
        "attrdrop": Fact(__version__),
        "python": Fact(f"{platform.python_version()} on {platform.platform()}"),
        "torch": _package("torch", "everything"),
        "compiled kernels (_C)": _extension("attrdrop._C", "the PyTorch reference serves CPU tensors"),
        "instruction set": _instruction_set(),
        "host module (_host)": _extension("attrdrop._host", "only the kernels' tests use it"),
        "CUDA kernels": _cuda_kernels(),
        "CUDA device": _cuda_device(),
        "triton": _package("triton", "GPU kernels if the CUDA kernels are not built"),
        "transformers": _package("transformers", "ADDrop and 'attrdrop finetune'"),
    }
    found |= {f"environment {name}": Fact(os.environ.get(name) or "not set") for name in ENVIRONMENT}
    found |= _choices(found)
    return {name: asdict(fact) for name, fact in found.items()}


def next_step(found: dict[str, dict[str, Any]]) -> str:
    """The first thing to do about these facts."""
    if not found["torch"]["active"]:
        return "install torch 2.10 or later: pip install torch"
    if not found["compiled kernels (_C)"]["active"]:
        return "build the kernels: ATTRDROP_REQUIRE_C=1 pip install -v . shows what is missing"
    if found["CUDA device"]["active"] and not (found["CUDA kernels"]["active"] or found["triton"]["active"]):
        return "pip install triton, or rebuild with nvcc; until then plain PyTorch serves CUDA tensors"
    if not found["transformers"]["active"]:
        return "pip install transformers to train with AD-DROP; the ops, RelDrop and LRP are ready"
    return "attrdrop finetune --preset demo"


def _package(name: str, purpose: str) -> Fact:
    try:
        return Fact(importlib.import_module(name).__version__, True)
    except ImportError as error:
        return Fact("not importable", False, f"{error}; for {purpose}: pip install {name}")


def _extension(name: str, instead: str) -> Fact:
    try:
        return Fact(str(importlib.import_module(name).__file__), True)
    except ImportError as error:
        return Fact("not importable", False, f"{error}; {instead}")


def _build_info() -> dict[str, str]:
    """What the compiled library says about itself; raises where there is none or it refuses to run."""
    import torch

    importlib.import_module("attrdrop._C")
    return json.loads(torch.ops.attrdrop.build_info())


def _instruction_set() -> Fact:
    try:
        build = _build_info()
        return Fact(
            build["isa"], True, f"this processor supports {build['isa_available']}; compiler {build['compiler']}"
        )
    except ImportError:
        return Fact("none", False, "no compiled kernels were found")
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        return Fact("none", False, str(error).splitlines()[0])


def _cuda_kernels() -> Fact:
    try:
        archs = _build_info()["cuda_archs"]
    except (AttributeError, ImportError, KeyError, RuntimeError, ValueError):
        archs = ""
    if archs:
        return Fact(archs.replace(",", ", "), True)
    return Fact("not built", False, _reason("CUDA_MISSING") or "the build found no nvcc, or CUDA was turned off")


def _cuda_device() -> Fact:
    try:
        import torch
    except ImportError:
        return Fact("none", False, "torch is not importable")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return Fact(f"{torch.cuda.get_device_name()}, sm_{major}{minor}", True)
    if torch.version.cuda is None:
        return Fact("none", False, f"torch {torch.__version__} is built without CUDA")
    return Fact("none", False, f"torch is built for CUDA {torch.version.cuda} but finds no driver or GPU")


def _choices(found: dict[str, Fact]) -> dict[str, Fact]:
    """Where the automatic choice of a backend leads, or that it is overridden."""
    if override := os.environ.get("ATTRDROP_BACKEND"):
        if wrong := _refused():
            return {"backend of every op": Fact("none", False, wrong)}
        return {"backend of every op": Fact(override, None, "ATTRDROP_BACKEND overrides the automatic choice")}
    choices = {"CPU tensors are served by": Fact("C++" if _reason("COMPILED_MISSING") is None else "PyTorch reference")}
    if found["CUDA device"].active:
        gpu = {"CUDA C++": "CUDA_MISSING", "Triton": "TRITON_MISSING"}
        served = next((name for name, check in gpu.items() if _reason(check) is None), "PyTorch reference")
        triton = "Triton" if _reason("TRITON_MISSING") is None else "PyTorch reference"
        choices["masks on CUDA by"] = Fact(served)
        choices["masked_attention, attention_attribution, relevance_gate on CUDA by"] = Fact(triton)
    return choices


def _refused() -> str:
    """Why ATTRDROP_BACKEND is no backend, where it is none."""
    try:
        importlib.import_module("attrdrop._core.backends").get_backend()
    except (ImportError, ValueError) as error:
        return str(error)
    return ""


def _reason(check: str) -> str | None:
    """Why a backend cannot serve, in the words of the dispatcher that would refuse it."""
    try:
        return getattr(importlib.import_module("attrdrop._core.backends"), check)
    except (ImportError, ValueError) as error:
        return str(error)


if __name__ == "__main__":
    print(json.dumps(facts(), indent=1))
