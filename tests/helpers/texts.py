"""Small random language models in float64, for the tests of relevance of tokens."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SIZE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 40,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
MODELS = {
    "bert": ("Bert", "ForSequenceClassification", {**SIZE, "num_labels": 3}),
    "llama": ("Llama", "ForCausalLM", {**SIZE, "num_key_value_heads": 2}),
    "t5": ("T5", "ForConditionalGeneration",
           {**T5, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}),
    "modernbert": ("ModernBert", "ForSequenceClassification",
                   {**SIZE, **SPECIAL, "num_labels": 3, "global_attn_every_n_layers": 2, "local_attention": 4}),
}  # fmt: skip
"""Llama has grouped queries, rotary embeddings, RMSNorm and SwiGLU."""


class InDouble(TorchFunctionMode):
    """What models compute in float32 stays float64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        is_cast = func is Tensor.float or (func is Tensor.to and torch.float32 in args)
        if is_cast and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **(kwargs or {}))


def build(name: str, has_shift: bool = True) -> nn.Module:
    """A model in eval mode; without shift no layer and no embedding but that of tokens adds anything."""
    torch.manual_seed(0)
    family, task, options = MODELS[name]
    if name == "t5" and not has_shift:
        options = {**options, "feed_forward_proj": "relu"}  # the 1 in its gelu takes a share
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(transformers, f"{family}{task}")(config).double().eval()
    with torch.no_grad():
        for key, values in model.named_parameters():
            is_shift = key.endswith("bias") or "position_embeddings" in key or "token_type" in key
            if is_shift and not has_shift:
                values.zero_()
            elif values.dim() > 1:
                values.normal_(0, values.shape[-1] ** -0.5)
            else:
                values.add_(0.1 * torch.randn_like(values))
    return model


def batch(name: str) -> dict[str, Tensor]:
    """Two texts of 7 tokens, the second padded: at its left for Llama."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 40, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    if name == "llama":
        mask[1, :2] = 0
    else:
        mask[1, 5:] = 0
    decoder = {"decoder_input_ids": torch.randint(3, 40, (2, 4))} if name == "t5" else {}
    return {"input_ids": ids, "attention_mask": mask, **decoder}
