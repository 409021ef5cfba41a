"""The documentation site: it builds strictly, its reference is complete, and its messages are those of the code."""

import ast
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PUBLIC = ("attrdrop", "attrdrop/lrp", "attrdrop/metrics", "attrdrop/models", "attrdrop/plots")
NOT_OBJECTS = {"BACKENDS", "__version__", "lrp", "metrics", "schedules"}  # of attrdrop: pages of their own, or a line
EXAMPLE = re.compile(r"^```py(?:thon)?\n.+?^```", re.MULTILINE | re.DOTALL)


class Page(HTMLParser):
    """The anchors of a page, and what it links to and loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img") and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") == "stylesheet":
            self.loaded.append(given["href"])


@pytest.mark.slow
def test_the_site_builds_strictly_and_no_link_is_dead(tmp_path):
    pytest.importorskip("mkdocstrings", reason="make test-all installs what the site needs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr, done.stderr[-3000:]
    pages = {path: Page(path.read_text()) for path in tmp_path.rglob("*.html")}
    assert len(pages) > 30
    dead = [
        f"{path.relative_to(tmp_path)}: {link}"
        for path, page in pages.items()
        for link in (*page.links, *page.loaded)
        if path.name != "404.html" and not leads_somewhere(link, path, pages)
    ]
    assert dead == []
    foreign = {source for page in pages.values() for source in page.loaded if urlsplit(source).netloc}
    assert foreign == set()  # it reads the same without a network
    assert "<math" in (tmp_path / "mathematics" / "index.html").read_text()


def leads_somewhere(link: str, path: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    target = target / "index.html" if target.is_dir() else target
    if target not in pages:
        return target.exists()
    return not parts.fragment or unquote(parts.fragment) in pages[target].anchors


def test_every_public_name_is_in_the_reference_with_an_example():
    wanted = {
        f"{package.replace('/', '.')}.{name}"
        for package in PUBLIC
        for name in public_names(ROOT / package / "__init__.py")
        if not (package == "attrdrop" and name in NOT_OBJECTS)
    } | {f"attrdrop.schedules.{name}" for name in ("constant", "linear", "cosine")}
    texts = [page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))]
    entries = [entry for text in texts for entry in re.split("^::: ", text, flags=re.MULTILINE)[1:]]
    names = [entry.split("\n", 1)[0] for entry in entries]
    assert wanted - set(names) == set()
    assert len(set(names)) == len(names)
    assert [name for name, entry in zip(names, entries, strict=True) if not EXAMPLE.search(entry)] == []


def public_names(path: Path) -> list[str]:
    """The names of ``__all__``, without an import."""
    statements = ast.parse(path.read_text()).body
    found = [node for node in statements if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return ast.literal_eval(found[0].value)


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code():
    said = "\n".join(
        literal for path in sources() for literal in literals(ast.parse(path.read_text())) if len(literal) > 3
    )
    rows = re.findall(r"^\| `(.+?)` \| ", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    unknown = [
        part for row in rows for part in map(str.strip, row.split("…")) if len(part) > 3 and part not in said
    ]  # fmt: skip
    assert unknown == []


def sources() -> list[Path]:
    return [ROOT / "setup.py", *(ROOT / "attrdrop").rglob("*.py")]


def literals(tree: ast.AST) -> list[str]:
    """Texts of a module, each f-string and each row of adjacent ones with … where something is put in."""
    return [
        "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else re.sub(r"\{[^}]*\}", "…", node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]
