"""Texts coloured by the relevance of their tokens, as a picture or as HTML."""

import html
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from attrdrop._core.checks import check_floats
from attrdrop.plots.letters import spelled
from attrdrop.plots.sheets import COLOURS, SCALE, add_relevance_scale, check_titles, save

LETTER, LINE = 0.085, 0.24  # inches, of a fixed-width font of this size
SIZE, WIDTH, MARGIN = 9, 84, 0.2  # points; letters a line; inches


class Html(str):
    """HTML that notebooks show."""

    def _repr_html_(self) -> str:
        return str(self)


def text_heatmap(
    tokens: Sequence[Sequence[str]],
    relevance: Tensor,
    target: Path | IO[bytes] | None = None,
    titles: Sequence[str] | None = None,
    label: str = "",
) -> Html:
    """Each text with its tokens coloured by relevance: red is positive, blue negative, white zero.

    Each text is scaled by its own largest magnitude, so colours of different texts are not comparable. Tokenizers'
    marks for spaces and word pieces are recognised.

    Args:
        tokens: N lists of tokens. For texts shorter than the longest, the remaining relevance is ignored.
        relevance: floating point (N, T), T at least the longest.
        target: receives HTML if it is a path ending in .html, else a PNG; None: nothing is written.
        titles: one per text. label: beside the colours, such as what the relevance is of.

    Returns:
        The HTML, which a notebook displays.

    Raises:
        TypeError: relevance is not a floating-point tensor, or tokens are not lists. ValueError: shapes do not fit,
            relevance is not finite, or titles are not one per text.
    """
    texts = _coloured(tokens, relevance)
    check_titles(titles, len(texts), "text")
    page = Html(
        "\n".join(_as_html(text, title) for text, title in zip(texts, titles or [""] * len(texts), strict=True))
    )
    if isinstance(target, (str, Path)) and str(target).endswith(".html"):
        Path(target).write_text(f"<!doctype html>\n<meta charset='utf-8'>\n{page}\n", encoding="utf-8")
    elif target is not None:
        save(_drawn(texts, titles, label), target)
    return page


def _coloured(tokens: Sequence[Sequence[str]], relevance: Tensor) -> list[list[tuple[str, float]]]:
    """By text, pieces with their relevance in [-1, 1]."""
    relevance = check_floats("relevance", relevance)
    if isinstance(tokens, str) or any(isinstance(text, str) for text in tokens):
        raise TypeError("tokens must be a list of lists of tokens, one per text, got a string instead of a list")
    longest = max((len(text) for text in tokens), default=0)
    if relevance.dim() != 2 or len(relevance) != len(tokens) or relevance.shape[1] < longest:
        raise ValueError(f"relevance must have shape ({len(tokens)}, {longest} or more), got {tuple(relevance.shape)}")
    if not torch.isfinite(relevance).all():
        raise ValueError("relevance must be finite")
    found = []
    for text, row in zip(tokens, relevance.detach().double().cpu(), strict=True):
        row = row[: len(text)]
        largest = row.abs().max().item() if len(row) else 0.0
        values = (row / (largest or 1.0)).tolist()
        found.append([(_piece(token), value) for token, value in zip(text, values, strict=True)])
    return found


def _piece(token: str) -> str:
    """What a token adds to the text, with a space before it where it begins a word."""
    if token.startswith("##"):
        return token[2:]
    token = token.replace("Ċ", "↵")  # a line's end, as byte-level tokenizers spell it
    if token[:1] in ("Ġ", "▁"):
        return " " + token[1:].replace("Ġ", " ")
    return token if token.startswith(" ") else f" {token}"


def _as_html(text: list[tuple[str, float]], title: str) -> str:
    spans = (
        f'<span style="background-color:{to_hex(COLOURS((value + 1) / 2))};color:{_ink(value)}" '
        f'title="{value:+.3f}">{html.escape(piece)}</span>'
        for piece, value in text
    )
    head = f"<strong>{html.escape(title)}</strong><br>" if title else ""
    return f'<p style="font-family:monospace;line-height:1.8">{head}{"".join(spans)}</p>'


def _ink(value: float) -> str:
    return "white" if abs(value) > 0.7 else "black"


def _drawn(texts: list[list[tuple[str, float]]], titles: Sequence[str] | None, label: str) -> Figure:
    """Lines of fixed width, each token a coloured box."""
    placed: list[tuple[str, float | None, int, int]] = []
    line = 0
    for place, text in enumerate(texts):
        if titles is not None:
            placed.append((str(titles[place]), None, 0, line))
            line += 1
        column = 0
        for piece, value in ((spelled(piece), value) for piece, value in text):
            if column and column + _width(piece) > WIDTH:
                line, column = line + 1, 0
            piece = piece if column else piece.lstrip()
            placed.append((piece, value, column, line))
            column += _width(piece)
        line += 2
    width, height = WIDTH * LETTER + 2 * MARGIN, line * LINE + MARGIN + SCALE
    figure = Figure(figsize=(width, height))
    for words, relevance, column, row in placed:
        left, bottom = MARGIN + column * LETTER, height - MARGIN - (row + 1) * LINE
        if relevance is not None:
            box = (left / width, bottom / height), _width(words) * LETTER / width, 0.9 * LINE / height
            figure.add_artist(Rectangle(*box, facecolor=COLOURS((relevance + 1) / 2), linewidth=0))
        figure.text(
            left / width, (bottom + 0.45 * LINE) / height, words, family="monospace", size=SIZE, va="center",
            weight="bold" if relevance is None else "normal", color="black" if relevance is None else _ink(relevance),
            parse_math=False,
        )  # fmt: skip
    add_relevance_scale(figure, label)
    return figure


def _width(words: str) -> int:
    """In letters; those of East Asia are two wide."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in words)
