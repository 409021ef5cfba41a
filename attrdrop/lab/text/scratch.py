"""Small models without pre-training, for task types that no packaged model serves.

They have a byte-level vocabulary of the training texts and two layers of a common architecture.
"""

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, GPT2Config, MarianConfig, PretrainedConfig, PreTrainedTokenizerFast

from attrdrop.lab.text.kinds import Kind
from attrdrop.lab.text.tasks import Task

VOCABULARY = 4000
PAD, START, END, UNKNOWN, MASK = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
WIDTH, HEADS, LAYERS = 128, 4, 2


def tokenizer(task: Task, max_length: int) -> PreTrainedTokenizerFast:
    """Byte pairs of the training texts, sources and targets alike; each text ends with </s>."""
    core = Tokenizer(models.BPE(unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_texts(task), trainer)
    ids = [(token, core.token_to_id(token)) for token in (START, END)]
    start = "" if task.kind in ("seq2seq", "causal-lm") else f"{START} "
    core.post_processor = processors.TemplateProcessing(
        single=f"{start}$A {END}", pair=f"{start}$A {END} $B {END}", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, bos_token=START, eos_token=END, unk_token=UNKNOWN, mask_token=MASK,
        model_max_length=max_length, model_input_names=["input_ids", "attention_mask"], add_prefix_space=True,
    )  # fmt: skip


def config(kind: Kind, max_length: int) -> PretrainedConfig:
    """Of a model for the kind: Marian for text to text, GPT-2 for causal language, else BERT."""
    special: dict[str, Any] = {
        "vocab_size": len(kind.tokenizer),
        "pad_token_id": kind.tokenizer.pad_token_id,
        "bos_token_id": kind.tokenizer.bos_token_id,
        "eos_token_id": kind.tokenizer.eos_token_id,
    } | kind.model_options()
    if kind.name == "seq2seq":
        return MarianConfig(
            d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH,
            max_position_embeddings=max_length + 1, decoder_start_token_id=kind.tokenizer.pad_token_id,
            forced_eos_token_id=kind.tokenizer.eos_token_id, scale_embedding=True, **special,
        )  # fmt: skip
    if kind.name == "causal-lm":
        return GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=max_length, **special)
    return BertConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        max_position_embeddings=max_length, **special,
    )  # fmt: skip


def _texts(task: Task) -> Iterator[str]:
    for texts in (task.train.texts, task.train.pairs, task.train.labels if task.kind == "seq2seq" else None):
        for text in texts or []:
            yield text if isinstance(text, str) else " ".join(text)
