"""Planted truth for text: a keyword decides the label. How often is the most relevant token that keyword?

A transformer of two layers learns to tell which of four keywords stands somewhere among other words, and is explained
at sentences that it has not seen. Prints a row a method: the share whose most relevant token is the keyword.
``python bench/planted_text.py``; a minute on one core.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor, nn

from attrdrop import lrp

LABELS, WORDS, LENGTH, WIDTH = 4, 60, 16, 32
SEEDS, STEPS, SENTENCES = 5, 400, 500
METHODS: dict[str, dict | None] = {
    "attnlrp, epsilon 1e-6": {"rule": lrp.Epsilon(1e-6)},
    "attnlrp, epsilon 1e-2": {"rule": lrp.Epsilon(1e-2)},
    "attnlrp, LRP-0": {"rule": lrp.Zero()},
    "attnlrp, gamma 0.25": {"rule": lrp.Gamma(0.25)},
    "attnlrp, z+": {"rule": lrp.ZPlus()},
    "attnlrp, alpha 2, beta 1": {"rule": lrp.AlphaBeta()},
    "attention detached, epsilon 1e-6": {"rule": lrp.Epsilon(1e-6), "attention": "detach"},
    "gradient x input": {"rule": lrp.GradientTimesInput()},
    "attention rollout": None,
}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(WIDTH, 4, batch_first=True), nn.LayerNorm(WIDTH)
        self.feed, self.after = (
            nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)),
            nn.LayerNorm(WIDTH),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attention(x, x, x)
        x = self.norm(x + y)
        return self.after(x + self.feed(x)), weights


class Reader(nn.Module):
    """Reads at the first place, whose token is always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(2)), nn.Linear(WIDTH, LABELS)

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, weights = self.words(tokens) + self.places, []
        for layer in self.layers:
            x, paid = layer(x)
            weights.append(paid)
        return self.head(x[:, 0]), weights


def sentences(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (count, LENGTH), labels, and the places of the keywords: words 1 to LABELS, which stand once."""
    tokens = torch.randint(1 + LABELS, WORDS, (count, LENGTH), generator=generator)
    tokens[:, 0] = 0
    labels = torch.randint(LABELS, (count,), generator=generator)
    places = torch.randint(1, LENGTH, (count,), generator=generator)
    tokens[torch.arange(count), places] = 1 + labels
    return tokens, labels, places


def rollout(weights: list[Tensor]) -> Tensor:
    """What the first place gets of each token (N, LENGTH): (A + I) / 2 over the layers (Abnar and Zuidema, 2020)."""
    eye = torch.eye(LENGTH)
    found = eye
    for paid in weights:
        found = (paid + eye) / 2 @ found
    return found[:, 0]


def shares(seed: int) -> dict[str, float]:
    """By method, the share of the sentences that are told rightly."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(STEPS):
        tokens, labels, _ = sentences(64, generator)
        nn.functional.cross_entropy(model(tokens)[0], labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    tokens, labels, places = sentences(SENTENCES, generator)
    with torch.no_grad():
        logits, weights = model.eval()(tokens)
    told = logits.argmax(1) == labels
    found = {"told rightly": told.float().mean().item()}
    for name, options in METHODS.items():
        relevance = rollout(weights) if options is None else lrp.relevance(model, tokens, labels, **options)
        relevance = relevance.clone()
        relevance[:, 0] = -torch.inf  # the place that is read at is no word
        found[name] = (relevance.argmax(1) == places)[told].float().mean().item()
    return found


def main() -> None:
    rows = [shares(seed) for seed in range(SEEDS)]
    print("| method | share of sentences (%) |\n| --- | ---: |")
    for name in rows[0]:
        values = 100 * np.array([row[name] for row in rows])
        print(f"| {name} | {values.mean():.1f} ± {values.std(ddof=1):.1f} |")


if __name__ == "__main__":
    main()
