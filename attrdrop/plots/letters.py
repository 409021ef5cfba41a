"""Letters that the usual font lacks: from another installed font, or spelt as their code points, never empty boxes."""

from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

PLACEHOLDERS = "Last Resort"  # begins the names of fonts that have a box for everything


def make_legible(figure: Figure) -> None:
    """Give every text of a figure fonts that have its letters, and spell what none has."""
    for text in figure.findobj(Text):
        content = text.get_text()
        if not content.isascii():
            text.set_fontfamily(families([content]))
            text.set_text(spelled(content))


def families(texts: Iterable[str]) -> list[str]:
    """The usual font, and those that have what it lacks."""
    return [*font_manager.FontProperties().get_family(), *_others(_lacking("".join(texts)))]


def spelled(text: str) -> str:
    """The text with the code points of letters that no font has."""
    lacking = _lacking(text)
    hopeless = lacking - _letters_of(_others(lacking)) if lacking else lacking
    return "".join(f"U+{ord(letter):04X}" if letter in hopeless else letter for letter in text)


def _lacking(text: str) -> frozenset[str]:
    usual = _letters(font_manager.findfont(font_manager.FontProperties()))
    return frozenset(letter for letter in text if not letter.isspace() and ord(letter) not in usual)


@cache
def _others(lacking: frozenset[str]) -> tuple[str, ...]:
    """Fonts that have some of the letters, whichever has most of the rest first."""
    found: list[str] = []
    rest = {ord(letter) for letter in lacking}
    fonts = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist} if rest else {}
    while rest and fonts:
        best = max(fonts, key=lambda name: 0 if name.startswith(PLACEHOLDERS) else len(rest & _letters(fonts[name])))
        if best.startswith(PLACEHOLDERS) or not rest & _letters(fonts[best]):
            break
        rest -= _letters(fonts.pop(best))
        found.append(best)
    return tuple(found)


def _letters_of(names: tuple[str, ...]) -> frozenset[str]:
    paths = [entry.fname for entry in font_manager.fontManager.ttflist if entry.name in names]
    return frozenset(chr(code) for path in paths for code in _letters(path))


@cache
def _letters(path: str) -> frozenset[int]:
    """Code points that a font file has."""
    return frozenset(FT2Font(path).get_charmap())
