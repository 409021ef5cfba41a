"""AD-DROP in a plain PyTorch loop with gradient accumulation: a small BERT from scratch on made-up sentences.

Needs no download and no data file; some seconds on a CPU:

python examples/plain_loop.py
"""

import random

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import attrdrop
import attrdrop.integrations.transformers  # registers attn_implementation="attrdrop"

GOOD, BAD = ("good", "great", "fine", "warm"), ("bad", "dull", "poor", "cold")
FILLER = ("the", "a", "film", "story", "actor", "scene", "was", "is", "very", "rather", "and", "then")
WORDS = ["[pad]", "[cls]", *GOOD, *BAD, *FILLER]
IDS = {word: index for index, word in enumerate(WORDS)}


def make_batch(size: int, source: random.Random) -> dict[str, Tensor]:
    """Sentences of 6 to 16 words; the label says whether the good words outnumber the bad ones."""
    sentences, labels = [], []
    for _ in range(size):
        label = source.randrange(2)
        more, fewer = (GOOD, BAD) if label else (BAD, GOOD)
        words = source.choices(more, k=3) + source.choices(fewer, k=1) + source.choices(FILLER, k=source.randint(2, 12))
        source.shuffle(words)
        sentences.append([IDS["[cls]"], *(IDS[word] for word in words)])
        labels.append(label)
    longest = max(map(len, sentences))
    ids = torch.tensor([sentence + [0] * (longest - len(sentence)) for sentence in sentences])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor(labels)}


def main(epochs: int = 4, steps: int = 30, accumulation_steps: int = 2, batch_size: int = 16) -> float:
    """Train with AD-DROP in every second epoch; returns the accuracy on fresh sentences."""
    torch.set_num_threads(1)  # so small a model gains nothing from more
    torch.manual_seed(0)
    source = random.Random(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    config._attn_implementation = "attrdrop"
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    addrop = attrdrop.ADDrop(model, p=0.3, q=0.3, accumulation_steps=accumulation_steps)

    for epoch in range(1, epochs + 1):
        model.train()
        addrop.start_epoch(epoch)
        addrop.reset_statistics()
        for _ in range(steps):
            for _ in range(accumulation_steps):
                out = addrop(**make_batch(batch_size, source))
                (out.loss / accumulation_steps).backward()
            optimizer.step()
            optimizer.zero_grad()
        found = addrop.statistics()
        print(f"epoch {epoch}: last loss {out.loss.item():.3f}, {found.fraction_dropped:.1%} of the positions dropped")

    model.eval()
    test = make_batch(500, source)
    with torch.no_grad():
        accuracy = (model(**test).logits.argmax(-1) == test["labels"]).float().mean().item()
    print(f"accuracy on 500 fresh sentences {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
