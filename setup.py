"""Builds ``attrdrop._C`` (torch stable ABI) and ``attrdrop._host`` (pybind11) with CMake and Ninja.

A machine without a C++ compiler still gets a working package: the reference backend serves every op, and
``attrdrop doctor`` says why the rest is absent. ``ATTRDROP_REQUIRE_C=1`` turns that into an error.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
from attrdrop_build import find_torch  # noqa: E402


class CMakeBuild(build_ext):
    def run(self) -> None:
        try:
            self._build()
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("ATTRDROP_REQUIRE_C") == "1":
                raise
            print(f"attrdrop: no compiled kernels, the reference backend will be used: {error}", file=sys.stderr)
            self.extensions = []

    def _build(self) -> None:
        torch_dir = find_torch()
        if torch_dir is None:
            raise FileNotFoundError("no torch>=2.10 with headers found; install torch first or set ATTRDROP_TORCH_DIR")
        editable = self.inplace or getattr(self, "editable_mode", False)
        build_dir = ROOT / "build" / sys.implementation.cache_tag if editable else Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        package_dir = Path(self.get_ext_fullpath("attrdrop._C")).resolve().parent
        options = {
            "CMAKE_MAKE_PROGRAM": _tool(
                "ninja"
            ),  # every time: a cached path may lie in a build environment since deleted
            "CMAKE_BUILD_TYPE": os.environ.get("ATTRDROP_BUILD_TYPE", "Release"),
            "ATTRDROP_TORCH_DIR": torch_dir,
            "ATTRDROP_STRICT": os.environ.get("ATTRDROP_STRICT", "0"),
            "ATTRDROP_VERSION": self.distribution.get_version(),
            "ATTRDROP_PORTABLE": os.environ.get("ATTRDROP_PORTABLE", "0"),
            "ATTRDROP_CUDA": os.environ.get("ATTRDROP_CUDA", "AUTO"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": _pybind11_dir(),
        }
        if archs := os.environ.get("ATTRDROP_CUDA_ARCHS"):
            options["ATTRDROP_CUDA_ARCHS"] = archs
        defines = [f"-D{name}={value}" for name, value in options.items() if value is not None]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        cmake = _tool("cmake")
        subprocess.check_call([cmake, "-S", str(ROOT), "-B", str(build_dir), "-GNinja", *defines])
        subprocess.check_call([cmake, "--build", str(build_dir), "-j", jobs])
        subprocess.check_call([cmake, "--install", str(build_dir), "--prefix", str(package_dir)])
        built = {path.name.split(".")[0] for path in package_dir.glob("_*.so")}
        self.extensions = [ext for ext in self.extensions if ext.name.rpartition(".")[2] in built]

    def get_outputs(self) -> list[str]:
        return [self.get_ext_fullpath(ext.name) for ext in self.extensions]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def _tool(name: str) -> str:
    """A build tool: the one beside this Python, whose environment need not be activated, else the one on the PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not on the PATH; pip install {name}")
    return path


def _pybind11_dir() -> str | None:
    try:
        import pybind11
    except ImportError:
        return None
    return pybind11.get_cmake_dir()


PORTABLE = os.environ.get("ATTRDROP_PORTABLE") == "1"  # a wheel for others: one for all Pythons, without attrdrop._host
EXTENSIONS = [Extension("attrdrop._C", [], py_limited_api=True)]
if not PORTABLE:
    EXTENSIONS.append(Extension("attrdrop._host", []))

setup(
    packages=["attrdrop.triton_kernels", *find_packages(include=["attrdrop", "attrdrop.*"])],
    py_modules=["attrdrop_command"],
    package_dir={"attrdrop": "attrdrop", "attrdrop.triton_kernels": "triton_kernels"},
    ext_modules=EXTENSIONS,
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if PORTABLE else {},
    cmdclass={"build_ext": CMakeBuild},
)
