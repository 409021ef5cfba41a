"""RelDrop on text: BERT-tiny on film reviews, with relevant tokens replaced, random ones, and none, at several seeds.

The word embeddings stay as they are, so that a run takes seconds.

python examples/reldrop_text.py [epochs size test_size seeds]: a table of test loss and accuracy, and the differences to
random token dropping by seed. All arms see the same sentences in the same order.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import attrdrop
from attrdrop.lab.text.examples import Examples
from attrdrop.lab.text.shipped import BERT_TINY, rotten_tomatoes
from attrdrop.schedules import Balance

BETA, BATCH, LENGTH, LR = 0.25, 32, 40, 3e-4
ARMS = {
    "plain": None,
    "random tokens": lambda: 1.0,
    "relevant tokens": lambda: 0.0,
    "half chance": lambda: 0.5,
    "balance": lambda: Balance(0.5, gap=0.15, every=8, rate=0.1),
}
"""By name, alpha."""

Encoded = dict[str, Tensor]


def encode(tokenizer, examples: Examples, count: int, seed: int) -> Encoded:
    chosen = torch.randperm(len(examples.texts), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    found = tokenizer(
        [examples.texts[i] for i in chosen], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    return {**found, "labels": torch.tensor([examples.labels[i] for i in chosen])}


def rows(batch: Encoded, index: Tensor) -> Encoded:
    return {name: x[index] for name, x in batch.items()}


def train(arm: str, tokenizer, data: Encoded, test: Encoded, epochs: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(BERT_TINY, dtype=torch.float32).train()
    model.get_input_embeddings().requires_grad_(False)  # nine tenths of the weights, and of the time
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    alpha = None if ARMS[arm] is None else ARMS[arm]()
    reldrop = None if alpha is None else attrdrop.RelDropTokens(
        model, value=tokenizer.mask_token_id, special=tokenizer.all_special_ids, alpha=alpha, beta=BETA, seed=seed
    )  # fmt: skip
    begin = time.process_time()
    for epoch in range(epochs):
        order = torch.randperm(len(data["labels"]), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for index in order.split(BATCH):
            batch = rows(data, index)
            labels = batch["labels"]
            if reldrop is not None:
                batch = reldrop(batch)
            losses = cross_entropy(model(**batch).logits, labels, reduction="none")
            if isinstance(alpha, Balance):
                alpha.observe(losses, reldrop.occluded)
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    seconds = time.process_time() - begin
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(**rows(test, i)).logits for i in torch.arange(len(test["labels"])).split(250)])
    return {
        "loss": cross_entropy(logits, test["labels"]).item(),
        "accuracy": (logits.argmax(1) == test["labels"]).float().mean().item(),
        "seconds": seconds,
        "alpha": float("nan") if alpha is None else alpha(0) if callable(alpha) else alpha,
    }


def spread(values: Sequence[float]) -> str:
    x = torch.tensor(values)
    return f"{x.mean():.3f} ± {x.std(unbiased=len(values) > 1):.3f}"


def main(epochs: int = 6, size: int = 256, test_size: int = 500, seeds: int = 5) -> float:
    """The best mean accuracy of an arm."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(BERT_TINY)
    task = rotten_tomatoes()
    test = encode(tokenizer, task.test, test_size, 0)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(1, seeds + 1):
        data = encode(tokenizer, task.train, size, seed)
        for arm in ARMS:
            found[arm].append(train(arm, tokenizer, data, test, epochs, seed))
            print(f"seed {seed}, {arm}: {found[arm][-1]}", flush=True)
    plain = [one["seconds"] for one in found["plain"]]
    for arm, runs in found.items():
        by = {name: [one[name] for one in runs] for name in runs[0]}
        beside = [a - b["loss"] for a, b in zip(by["loss"], found["random tokens"], strict=True)]
        ratio = torch.tensor([a / b for a, b in zip(by["seconds"], plain, strict=True)]).median()
        print(
            f"{arm:16} loss {spread(by['loss'])}, minus random {spread(beside)}, accuracy {spread(by['accuracy'])}, "
            f"alpha {by['alpha'][-1]:.2f}, time / plain {ratio:.2f}"
        )
    return max(sum(one["accuracy"] for one in runs) / len(runs) for runs in found.values())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
