"""Installs the wheel in dist into fresh environments and runs it there: `make wheels-check`.

python release/wheels.py          all cases, each in an environment that is deleted afterwards
python release/wheels.py 3.10     those of one Python

Prints the rows of the table in docs/install.md. Most builds of torch bring CUDA along: gigabytes each.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Case(NamedTuple):
    python: str
    torch: str
    transformers: str = "transformers"


CASES = (
    Case("3.10", "torch==2.10.0", "transformers==5.0.0"),
    Case("3.11", "torch==2.13.0"),
    Case("3.12", "torch==2.11.0"),
    Case("3.13", "torch==2.15.0"),
)
"""Each Python and each torch once, and the oldest and the newest transformers."""


def check(case: Case, wheel: Path, folder: Path) -> dict[str, str]:
    """The versions that were installed and ran."""
    bin = folder / "venv" / "bin"
    run(folder, f"python{case.python}", "-m", "venv", "venv")
    attrdrop = f"attrdrop[lab] @ {wheel.as_uri()}"
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-cache-dir", "--no-compile")
    run(folder, bin / "python", *pip, case.torch, case.transformers, attrdrop)
    run(folder, bin / "attrdrop", "doctor")
    return json.loads(run(folder, bin / "python", ROOT / "release" / "smoke.py").splitlines()[-1])


def run(folder: Path, *command: str | Path) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def main(pythons: list[str]) -> int:
    (wheel,) = (ROOT / "dist").glob("attrdrop-*.whl")
    failed = 0
    for case in CASES:
        if pythons and case.python not in pythons:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = check(case, wheel, Path(folder)).values()
            except (OSError, RuntimeError) as error:
                failed += 1
                row = (*case, f"failed: {error}")
        print(f"| {' | '.join(row)} |", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
