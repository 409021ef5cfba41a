"""Texts coloured by relevance: a PNG that depends on what is drawn, and HTML."""

import pytest
import torch
from drawings import drawn, pixels

from attrdrop.plots import text_heatmap

TOKENS = [["[CLS]", "un", "##believ", "##able", "<b>"], ["Ġa", "Ġlong", "er"]]
RELEVANCE = torch.tensor([[0.0, 1.0, -2.0, 0.5, 0.0], [3.0, 0.0, -1.0, 9.0, 9.0]])


def test_html_has_each_token_in_its_colour(tmp_path):
    page = text_heatmap(TOKENS, RELEVANCE, tmp_path / "page.html", ["one", "two"])
    assert page._repr_html_() == page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<span") == 8
    assert (" un</span>" in page, ">believ</span>" in page, "> a</span>" in page) == (True, True, True)
    assert 'title="-1.000">believ' in page  # of the largest in its own text
    assert 'title="+1.000"> a' in page
    assert page in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_line_ends_of_byte_level_tokenizers_are_seen():
    page = text_heatmap([["Ċ", "ĠĠand", "ĊĊ"]], torch.ones(1, 3))
    assert (" ↵</span>" in page, ">  and</span>" in page, " ↵↵</span>" in page) == (True, True, True)


def test_the_picture_depends_on_relevance_and_wraps():
    first, other = (pixels(drawn(text_heatmap, TOKENS, r)) for r in (RELEVANCE, -RELEVANCE))
    assert first.shape == other.shape
    assert (first != other).any()
    long = pixels(drawn(text_heatmap, [["word"] * 60, ["猫"]], torch.rand(2, 60), titles=["$a", "b"]))
    assert long.shape[1] == first.shape[1]
    assert long.shape[0] > first.shape[0]


@pytest.mark.parametrize(
    ("tokens", "relevance", "options", "error", "message"),
    [
        (TOKENS, RELEVANCE[:, :4], {}, ValueError, r"relevance must have shape \(2, 5 or more\), got \(2, 4\)"),
        (TOKENS, RELEVANCE / 0, {}, ValueError, "relevance must be finite"),
        (TOKENS, RELEVANCE.long(), {}, TypeError, "relevance must be float32"),
        (TOKENS[0], RELEVANCE, {}, TypeError, "tokens must be a list of lists of tokens, one per text"),
        (TOKENS, RELEVANCE, {"titles": ["a"]}, ValueError, "titles must be a list of 2, one per text"),
    ],
)
def test_errors_name_the_argument(tokens, relevance, options, error, message):
    with pytest.raises(error, match=message):
        text_heatmap(tokens, relevance, **options)
