"""Small random transformers models and batches with padding, shared by tests."""

from __future__ import annotations

import torch
import transformers as hf  # whose classes are imported when they are first used

import attrdrop.integrations.transformers  # noqa: F401  (registers the attention)

hf.logging.set_verbosity_error()

SIZE = dict(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=64,
)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
SEQ2SEQ = dict(vocab_size=99, d_model=32, pad_token_id=0, decoder_start_token_id=0)
LAYERS_OF_BOTH = dict(
    encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=40,
    decoder_ffn_dim=40, max_position_embeddings=64, dropout=0.0,
)  # fmt: skip
GROUPED = dict(num_key_value_heads=2, pad_token_id=0)
# DeBERTa rounds its scale to float32. It is exact there for heads of 12 and three terms, and of 16 and one.
DISENTANGLED = {**SIZE, **NO_DROPOUT, "hidden_size": 48, "relative_attention": True}
CONTENT_ONLY = {**SIZE, **NO_DROPOUT, "hidden_size": 64}
DEBERTA_V3 = dict(
    **DISENTANGLED, pos_att_type=["p2c", "c2p"], share_att_key=True, position_buckets=8, position_biased_input=False,
    norm_rel_ebd="layer_norm",
)  # fmt: skip

CLASSIFIERS = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZE, **NO_DROPOUT)),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SIZE, **NO_DROPOUT)),
    "electra": lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(**SIZE, **NO_DROPOUT, embedding_size=32)),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(
            vocab_size=99, dim=32, n_layers=3, n_heads=4, hidden_dim=40, max_position_embeddings=64,
            dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
        )
    ),
    "albert": lambda: hf.AlbertForSequenceClassification(
        hf.AlbertConfig(**SIZE, **NO_DROPOUT, embedding_size=16, classifier_dropout_prob=0.0)
    ),
    "modernbert": lambda: hf.ModernBertForSequenceClassification(
        hf.ModernBertConfig(
            **SIZE, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, local_attention=8
        )
    ),
    "gpt2": lambda: hf.GPT2ForSequenceClassification(
        hf.GPT2Config(
            vocab_size=99, n_embd=32, n_layer=3, n_head=4, n_positions=64, pad_token_id=0, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
        )
    ),
    "llama": lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**SIZE, **GROUPED)),
    "vit": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, image_size=16,
            patch_size=4, **NO_DROPOUT,
        )
    ),
}  # fmt: skip
TOKEN_MODELS = {
    "bert-tokens": lambda: hf.BertForTokenClassification(hf.BertConfig(**SIZE, **NO_DROPOUT, num_labels=5)),
    "llama-lm": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, **GROUPED)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**SEQ2SEQ, **LAYERS_OF_BOTH)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**SEQ2SEQ, **LAYERS_OF_BOTH)),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(**SEQ2SEQ, d_kv=8, d_ff=40, num_layers=2, num_heads=4, dropout_rate=0.0)
    ),
}  # fmt: skip
FURTHER = {
    "xlm-roberta": lambda: hf.XLMRobertaForSequenceClassification(hf.XLMRobertaConfig(**SIZE, **NO_DROPOUT)),
    "qwen3": lambda: hf.Qwen3ForSequenceClassification(hf.Qwen3Config(**SIZE, **GROUPED, head_dim=8)),
    "gemma": lambda: hf.GemmaForSequenceClassification(hf.GemmaConfig(**SIZE, **GROUPED, head_dim=8)),
    "bert-regression": lambda: hf.BertForSequenceClassification(
        hf.BertConfig(**SIZE, **NO_DROPOUT, num_labels=1, problem_type="regression")
    ),
    "swin": lambda: hf.SwinForImageClassification(  # in windows, shifted in every second layer; a bias that is learned
        hf.SwinConfig(
            image_size=16, patch_size=2, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4,
            drop_path_rate=0.0, **NO_DROPOUT,
        )
    ),
}  # fmt: skip
ADAPTED = {
    "mpnet": lambda: hf.MPNetForSequenceClassification(hf.MPNetConfig(**SIZE, **NO_DROPOUT)),
    "deberta": lambda: hf.DebertaForSequenceClassification(
        hf.DebertaConfig(**DISENTANGLED, pos_att_type=["c2p", "p2c"])
    ),
    "deberta-content-only": lambda: hf.DebertaForSequenceClassification(hf.DebertaConfig(**CONTENT_ONLY)),
    "deberta-v2": lambda: hf.DebertaV2ForSequenceClassification(
        hf.DebertaV2Config(**DISENTANGLED, pos_att_type=["p2c", "c2p"], max_relative_positions=12, conv_kernel_size=3)
    ),
    "deberta-v2-content-only": lambda: hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**CONTENT_ONLY)),
    "deberta-v3": lambda: hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**DEBERTA_V3)),
    "deberta-v3-tokens": lambda: hf.DebertaV2ForTokenClassification(hf.DebertaV2Config(**DEBERTA_V3, num_labels=5)),
}  # fmt: skip
UNREACHABLE = {
    "convbert": lambda: hf.ConvBertForSequenceClassification(hf.ConvBertConfig(**SIZE)),
    "roformer": lambda: hf.RoFormerForSequenceClassification(hf.RoFormerConfig(**SIZE)),
}
EVERY = {**CLASSIFIERS, **TOKEN_MODELS}
ALL = {**EVERY, **FURTHER, **ADAPTED}


def build(name: str, dtype: torch.dtype = torch.float32, attention: str = "attrdrop", seed: int = 0, **fields):
    """A model in training mode; the same weights for the same seed. Larger weights than the library's, so that
    attributions differ visibly between positions. Fields of its configuration take the place of those above."""
    torch.manual_seed(seed)
    model = ALL[name]()
    if fields:
        model.config.update(fields)
        model = type(model)(model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.set_attn_implementation(attention)  # those that AD-DROP adapts keep their own
    return model.to(dtype).train()


def distinct_tokens(size: int, length: int, generator: torch.Generator):
    """No token twice in a sample: equal ones would tie wherever positions do not count, as in T5."""
    return torch.stack([3 + torch.randperm(96, generator=generator)[:length] for _ in range(size)])


def batch(name: str, size: int = 3, length: int = 20, dtype: torch.dtype = torch.float32, seed: int = 1):
    """Random inputs; the second sample is padded."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (size,), generator=generator)
    if name in ("vit", "swin"):
        return dict(pixel_values=torch.randn(size, 3, 16, 16, generator=generator).to(dtype), labels=labels)
    ids = distinct_tokens(size, length, generator)
    mask = torch.ones_like(ids)
    if size > 1:
        mask[1, length - 8 :] = 0
    is_tagger = name.endswith("-tokens")
    if is_tagger or name in TOKEN_MODELS:
        labels = distinct_tokens(size, length, generator)
        labels = labels % 5 if is_tagger else labels
        labels = labels.masked_fill(mask == 0, -100)
        labels[:, -1] = -100
    if name.endswith("-regression"):
        labels = torch.randn(size, generator=generator).to(dtype)
    return dict(input_ids=ids.masked_fill(mask == 0, 0), attention_mask=mask, labels=labels)


def attended(addrop):
    """Positions that AD-DROP could drop, of live queries and of dead ones."""
    found = addrop.statistics()
    return found.valid + found.dead_valid


def with_dropout(model, p=0.2):
    """Dropout everywhere, that of attention too."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = p
    return model
