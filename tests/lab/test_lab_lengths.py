"""How long texts may be: models whose tokenizer names no limit."""

import shutil

import pytest
import torch
import transformers
from lab_runs import one_thread  # noqa: F401
from refusals import assert_refused

from attrdrop.lab.text.models import longest_text

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
DECODER = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 50}  # fmt: skip
SHORT = {"max_position_embeddings": 20, "pad_token_id": 1}
MODELS = {
    "bert": (transformers.BertModel, transformers.BertConfig(**SIZES, **SHORT), 20),
    "roberta": (transformers.RobertaModel, transformers.RobertaConfig(**SIZES, **SHORT), 18),
    "mpnet": (transformers.MPNetModel, transformers.MPNetConfig(**SIZES, **SHORT), 18),
    "distilbert": (
        transformers.DistilBertModel,
        transformers.DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64, vocab_size=50, **SHORT),
        20,
    ),
    "gpt2": (
        transformers.GPT2Model,
        transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=20, vocab_size=50),
        20,
    ),
    "opt": (
        transformers.OPTModel,
        transformers.OPTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32,
            vocab_size=50, **SHORT
        ),
        20,
    ),
    "bart": (transformers.BartModel, transformers.BartConfig(**DECODER, **SHORT), 20),
    "marian": (
        transformers.MarianModel,
        transformers.MarianConfig(**DECODER, max_position_embeddings=20, pad_token_id=49, decoder_start_token_id=49),
        20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_its_longest_text_and_none_longer(name):
    kind, config, limit = MODELS[name]
    model = kind(config).eval()
    assert longest_text(model) == limit
    names = ["input_ids", "decoder_input_ids"] if config.is_encoder_decoder else ["input_ids"]
    with torch.no_grad():
        model(**dict.fromkeys(names, torch.full((1, limit), 5)))
        with pytest.raises((IndexError, RuntimeError)):
            model(**dict.fromkeys(names, torch.full((1, limit + 1), 5)))


def test_relative_positions_have_no_limit():
    config = transformers.DebertaV2Config(**SIZES, **SHORT, position_biased_input=False, relative_attention=True)
    for model in (
        transformers.DebertaV2Model(config),
        transformers.T5EncoderModel(transformers.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)),
    ):
        assert longest_text(model) is None
        model(torch.full((1, 40), 5))


@pytest.fixture
def unlimited(tiny_bert, tmp_path):
    """A model of 512 positions with a tokenizer that names no limit."""
    folder = tmp_path / "unlimited"
    shutil.copytree(tiny_bert, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=None)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(folder)
    return folder


def test_lengths_beyond_the_positions_are_refused(finetune, unlimited):
    sizes = ["--train-size", 8, "--dev-size", 4, "--test-size", 4, "--epochs", 1, "--seeds", 1, "--arms", "plain"]
    outcome, output = finetune(*sizes, "--max-length", 600, model=unlimited)
    assert_refused(outcome, output, "--max-length: 600 tokens are more than the 512 positions of", "unlimited")
    outcome, output = finetune(*sizes, "--max-length", 512, model=unlimited)
    assert outcome.exit_code == 0, outcome.output
