"""Which tokens of a text a model's answer depends on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from attrdrop import lrp
from attrdrop.lab.errors import InputError
from attrdrop.lab.text.models import loaded, quiet


class Explained(NamedTuple):
    """By text: its tokens, their relevance (N, T), what is explained, and its logit."""

    tokens: list[list[str]]
    relevance: Tensor
    classes: list[str]
    logits: list[float]


def explained(name: str, texts: Sequence[str], rule: lrp.Rule, target: int | None, device: torch.device) -> Explained:
    """Of a classifier the predicted class or that asked for, of a language model the next token."""
    quiet()
    config = loaded(AutoConfig, name)
    kind = next(iter(config.architectures or []), "")
    is_causal = kind.endswith(("ForCausalLM", "LMHeadModel"))
    if not is_causal and not kind.endswith("ForSequenceClassification"):
        raise InputError(
            f"--model: {name} was trained as {kind or 'nothing that it names'}; explain takes a text classifier, such "
            "as finetune --save leaves, or a language model."
        )
    tokenizer = loaded(AutoTokenizer, name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = loaded(AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification, name).to(device).eval()
    batch = dict(tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(device))
    position = "last" if is_causal else None
    with torch.no_grad():
        logits = model(**batch).logits
    if is_causal:
        last = (torch.arange(logits.shape[1], device=device) * batch["attention_mask"]).amax(1)
        logits = logits[torch.arange(len(logits), device=device), last]
    if target is not None and not 0 <= target < logits.shape[1]:
        raise InputError(f"--target: {target} is not a class of {name}, which has 0 to {logits.shape[1] - 1}.")
    chosen = logits.argmax(1) if target is None else torch.full((len(texts),), target, device=device)
    relevance = lrp.relevance(model, batch, chosen, rule=rule, position=position).cpu()
    valid = batch["attention_mask"].bool().cpu()
    rows = [row[kept] for row, kept in zip(relevance, valid, strict=True)]
    ids = [row[kept].tolist() for row, kept in zip(batch["input_ids"].cpu(), valid, strict=True)]
    names = [tokenizer.decode([c]) if is_causal else str((config.id2label or {}).get(c, c)) for c in chosen.tolist()]
    return Explained(
        [tokenizer.convert_ids_to_tokens(row) for row in ids],
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        names,
        logits.gather(1, chosen[:, None])[:, 0].tolist(),
    )
