"""PEP 517 backend: setuptools, plus torch as a build requirement only where no torch can be found.

Build isolation hides an installed torch from ``import``, and asking for it again may fetch gigabytes of CUDA
packages. The build needs torch as files only (headers and libtorch_cpu), so it looks for them on disk.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403

BUILD_TORCH = "torch==2.13.0"


def find_torch() -> Path | None:
    """Folder of an installed torch with stable-ABI headers, or None."""
    explicit = os.environ.get("ATTRDROP_TORCH_DIR")
    roots = [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *site.getsitepackages()]
    roots.append(site.getusersitepackages())
    candidates = [Path(explicit)] if explicit else [Path(root) / "torch" for root in roots if root]
    for torch_dir in candidates:
        has_headers = (torch_dir / "include/torch/csrc/stable/library.h").exists()
        if has_headers and list((torch_dir / "lib").glob("libtorch_cpu.*")):
            return torch_dir.resolve()
    return None


def _with_torch(requirements: list[str]) -> list[str]:
    return requirements if find_torch() else [*requirements, BUILD_TORCH]


def get_requires_for_build_wheel(config_settings=None):
    return _with_torch(_setuptools.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None):
    return _with_torch(_setuptools.get_requires_for_build_editable(config_settings))
