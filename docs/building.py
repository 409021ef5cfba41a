"""What the site needs beside its pages: formulas as MathML, and docstrings as the parser of mkdocstrings reads them."""

import html
import re
from pathlib import Path

import griffe
from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
ENTRIES = {
    entry.rpartition(".")[2]: entry
    for page in sorted((Path(__file__).parent / "reference").glob("*.md"))
    for entry in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
}
RETURNS = re.compile(r"^Returns:\n {4}(.*(?:\n {4}.*)*)", re.MULTILINE)
RAISES = re.compile(r"^Raises:\n((?:(?: {4}.*)?(?:\n|$))+)", re.MULTILINE)
ANOTHER_ERROR = re.compile(r"(?<=\.) (?=[A-Z]\w*Error(?: also)?:)")
ROLE = re.compile(r":(?:func|class|meth|data|mod):`([^`]+)`")


def on_page_content(content: str, **_: object) -> str:
    """Formulas are MathML, which browsers draw themselves: no script and no request to another host."""
    return FORMULA.sub(_mathml, content)


def _mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[1] == "div" else "inline"
    latex = html.unescape(formula[2]).replace(r"\arg\max", r"\operatorname{arg\,max}")
    drawn = convert(latex, display=display)
    return f'<div style="overflow-x: auto">{drawn}</div>' if display == "block" else drawn  # wider than a phone


class Docstrings(griffe.Extension):
    """Several arguments or errors may share a line of a docstring; here each gets its own, and names become links."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """A public function is itself, not the module of the same name that it comes from."""
        faces = [pkg, pkg["lrp"]]
        found = [(face, name, _imported(pkg, path)) for face in faces for name, path in face.imports.items()]
        for face, name, target in found:
            if isinstance(target, (griffe.Class, griffe.Function)):
                self.on_object(obj=target)  # its module is no longer there to be visited
                face.set_member(name, griffe.Alias(name, target, parent=face))

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            names = {parameter.name for parameter in getattr(obj, "parameters", ())}
            text = ROLE.sub(lambda role: _link(role[1]), obj.docstring.value)
            text = RETURNS.sub(r"**Returns:** \1", _one_a_line(text, names))
            obj.docstring.value = RAISES.sub(_errors, text)


def _imported(package: griffe.Module, path: str) -> griffe.Object | None:
    """What an import of ours brings, followed to where it is defined."""
    module, _, name = path.rpartition(".")
    if not module.startswith(package.path):
        return None
    source = package.modules_collection[module]
    further = source.imports.get(name, path)
    return source.members.get(name) if further == path else _imported(package, further)


def _link(name: str) -> str:
    entry = ENTRIES.get(name.rpartition(".")[2])
    return f"[`{name}`][{entry}]" if entry else f"`{name}`"


def _one_a_line(text: str, names: set[str]) -> str:
    """The arguments ``a: ... b: ...`` of one line on two."""
    another = "|".join(map(re.escape, sorted(names)))
    return re.sub(rf"(?<=\.)\s+(?=(?:{another}): )", "\n    ", text) if names else text


def _errors(section: re.Match[str]) -> str:
    errors = " ".join(section[1].split())
    if errors.startswith("As "):  # another function says which
        return f"Raises {errors[0].lower()}{errors[1:]}\n"
    return "Raises:\n    " + ANOTHER_ERROR.sub("\n    ", errors) + "\n"
