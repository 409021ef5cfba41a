"""Every Python block of the documents runs; the blocks of a file continue one another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"hub.md"}  # test_hub.py runs it, beside what `make hub` writes
PRINTED = {"README.md": "\n51% of the positions were candidates\n"}  # what a page says that it prints
PAGES = [page for page in DOCUMENTS if BLOCK.search(page.read_text()) and page.name not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_run(page, tmp_path):
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(BLOCK.findall(page.read_text())))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert PRINTED.get(page.name, "") in f"\n{done.stdout}"


def test_links_between_documents_lead_somewhere():
    for page in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
