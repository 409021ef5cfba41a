"""Writes attrdrop in the layout of the hub of kernels: python release/hub.py FOLDER, or `make hub` into build/hub.

What stands in release/hub is copied, and beside it the rooms of the library that need torch and Triton alone, with
relative imports and under the operator namespace that kernel-builder gives. build/torch-* are what kernel-builder makes
of that, so that the package `kernels` loads the folder as it is.
"""

import base64
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {name: ROOT / "attrdrop" / name for name in ("_core", "addrop", "ops", "reference")}
ROOMS["triton_kernels"] = ROOT / "triton_kernels"
FILES = ("_version.py", "schedules.py")

ABOUT = {"name": "attrdrop", "version": 1, "license": "Apache-2.0"}
"""The version is raised when the names or arguments of the kernel change so that code that uses it breaks."""

BACKENDS = ("cpu", "cuda")
BUILD = f"""\
[general]
name = "{ABOUT["name"]}"
version = {ABOUT["version"]}
edition = 5
license = "{ABOUT["license"]}"
backends = {json.dumps(BACKENDS)}

[general.hub]
repo-id = "attrdrop/attrdrop"

[torch-noarch]
"""
NAMESPACE = 'NAMESPACE = "attrdrop"'
OPS = """\
import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{id}::{{op_name}}"
"""


def write(folder: Path) -> None:
    """The layout, in place of the one that the folder holds, if any."""
    if folder.exists() and not (folder / "build.toml").exists():
        raise FileExistsError(f"{folder} holds something else than a kernel of the hub")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "release" / "hub", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    sources = folder / "torch-ext" / "attrdrop"
    for name, room in ROOMS.items():
        for path in room.glob("*.py"):
            _write(sources / name / path.name, relative(path.read_text(), depth=1))
    for name in FILES:
        _write(sources / name, relative((ROOT / "attrdrop" / name).read_text(), depth=0))
    library = sources / "_core" / "library.py"
    library.write_text(in_namespace_of_builder(library.read_text()))
    (folder / "build.toml").write_text(BUILD)
    for backend in BACKENDS:
        build(sources, folder / "build" / f"torch-{backend}", backend)


def relative(code: str, depth: int) -> str:
    """Imports of attrdrop from where the module lies, so many folders below the package."""
    return re.sub(r"^( *)from attrdrop\b\.?", rf"\1from {'.' * (depth + 1)}", code, flags=re.MULTILINE)


def in_namespace_of_builder(code: str) -> str:
    for line in (NAMESPACE, "\nimport torch\n"):
        assert code.count(line) == 1, line
    code = code.replace("\nimport torch\n", "\nimport torch\n\nfrom .._ops import add_op_namespace_prefix\n")
    return code.replace(NAMESPACE, 'NAMESPACE = add_op_namespace_prefix("").removesuffix("::")')


def build(sources: Path, variant: Path, backend: str) -> None:
    """A build variant: the sources, the module _ops, and metadata with a name that follows from their contents."""
    shutil.copytree(sources, variant)
    contents = "".join(f"{path}: {digest}\n" for path, digest in digests(variant).items())
    name = f"_{ABOUT['name']}_{backend}_{hashlib.sha256(contents.encode()).hexdigest()[:7]}"
    (variant / "_ops.py").write_text(OPS.format(id=name))
    metadata = {
        "id": name,
        **ABOUT,
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests(variant)},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = (hashlib.sha256(path.read_bytes()).digest() for path in files)
    return {
        path.relative_to(folder).as_posix(): base64.b64encode(digest).decode()
        for path, digest in zip(files, hashes, strict=True)
    }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
