"""attn_implementation="attrdrop" without a pass is the model's own attention, or is refused."""

import ast
from pathlib import Path

import models
import pytest
import torch
import transformers
from torch import nn

from attrdrop import ADDrop
from attrdrop.addrop.gradient import GradientPass1
from attrdrop.addrop.interface import UNSUPPORTED
from attrdrop.addrop.passes import Draws
from attrdrop.integrations.transformers import attention_forward

SIZE = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
GROUPED = dict(**SIZE, num_key_value_heads=2, head_dim=8, pad_token_id=0)
SEQ2SEQ = dict(
    vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=64, pad_token_id=0, decoder_start_token_id=0,
)  # fmt: skip
REFUSED = {
    "Gemma2ForCausalLM": ("Gemma2Config", GROUPED, "soft-capped scores"),
    "VaultGemmaForCausalLM": ("VaultGemmaConfig", GROUPED, "soft-capped scores"),
}
SERVED = {  # of those that transformers does not let use SDPA
    "PegasusXForConditionalGeneration": ("PegasusXConfig", dict(**SEQ2SEQ, block_size=8, num_global_tokens=2)),
    "Speech2TextForConditionalGeneration": (
        "Speech2TextConfig",
        dict(**SEQ2SEQ, input_feat_per_channel=4, max_source_positions=64, max_target_positions=64, conv_channels=8),
    ),
    "NllbMoeForConditionalGeneration": ("NllbMoeConfig", dict(**SEQ2SEQ, num_experts=2, encoder_sparse_step=2)),
}
WITH_SINKS = {
    "GptOssForCausalLM": ("GptOssConfig", dict(**GROUPED, num_local_experts=2, num_experts_per_tok=1)),
    "OpenAIPrivacyFilterForTokenClassification": (
        "OpenAIPrivacyFilterConfig",
        dict(**GROUPED, num_local_experts=2, num_experts_per_tok=1, eos_token_id=1, num_labels=99),
    ),
    "MiMoV2FlashForCausalLM": (
        "MiMoV2FlashConfig",
        dict(**GROUPED, v_head_dim=8, n_routed_experts=2, num_experts_per_tok=1),
    ),
}


def build(name, config, fields, attention):
    torch.manual_seed(0)
    config = getattr(transformers, config)(**fields)
    model = getattr(transformers, name)._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.set_attn_implementation(attention)
    return model.eval()


def tokens():
    found = torch.randint(3, 99, (2, 8), generator=torch.Generator().manual_seed(1))
    return dict(input_ids=found, labels=found)


def inputs_of(name):
    if not name.startswith("Speech2Text"):
        return tokens()
    features = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(2))
    return dict(input_features=features, labels=tokens()["labels"])


@pytest.mark.parametrize("mode", ["eval", "plain step", "pass"])
@pytest.mark.parametrize("name", REFUSED)
def test_attention_that_is_more_than_a_softmax_is_refused_without_a_pass_too(name, mode):
    config, fields, what = REFUSED[name]
    model = build(name, config, fields, "attrdrop")
    addrop = ADDrop(model, cross_tuning=mode == "plain step")
    addrop.start_epoch(1)
    run = model if mode == "eval" else addrop
    model.train(mode != "eval")
    with pytest.raises(ValueError, match=f"attn_implementation='attrdrop' does not support {what}"):
        run(**tokens())


@pytest.mark.parametrize("name", SERVED)
def test_models_without_sdpa_attend_as_eagerly(name):
    """Their decoders do not say that they are causal, so their masks must."""
    eager, ours = (build(name, *SERVED[name], attention) for attention in ("eager", "attrdrop"))
    inputs = inputs_of(name)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, eager(**inputs).logits, atol=1e-4, rtol=1e-4)
    addrop = ADDrop(ours.train(), q=1e-9, attention="decoder", cross_tuning=False)
    addrop(**inputs)
    assert addrop.statistics().valid == 2 * 2 * 4 * (8 * 9 // 2)


@pytest.mark.parametrize("name", [name for name in WITH_SINKS if hasattr(transformers, name)])
def test_models_with_sinks_attend_as_eagerly(name):
    eager, ours = (build(name, *WITH_SINKS[name], attention) for attention in ("eager", "attrdrop"))
    inputs = dict(**tokens(), attention_mask=torch.tensor([[1] * 8, [1] * 5 + [0] * 3]))
    expected, found = eager(**inputs), ours(**inputs)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    sinks = [name for name, _ in eager.named_parameters() if name.endswith("sinks")]
    assert sinks
    gradients = [torch.autograd.grad(o.loss, [m.get_parameter(s) for s in sinks]) for o, m in
                 ((expected, eager), (found, ours))]  # fmt: skip
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    for attribution in ("GA", "AA", "IGA", "RD"):
        addrop = ADDrop(ours.train(), q=1e-9, attribution=attribution, cross_tuning=False)
        torch.testing.assert_close(addrop(**inputs).logits, expected.logits, atol=1e-5, rtol=1e-5)
        assert addrop.statistics().candidates > 0


@pytest.mark.parametrize("attrdrop", [None, GradientPass1(Draws(0.3, 0.3, 0, torch.arange(1)), scope=())])
@pytest.mark.parametrize("name", [*UNSUPPORTED, "temperature"])
def test_what_attention_is_not_asked_about_is_refused(name, attrdrop):
    """A parameter of any name is one of the model's, and no argument of the user's that travels along."""
    q = torch.ones(1, 1, 2, 4)
    value = nn.Parameter(torch.ones(1)) if name == "temperature" else 30.0
    with pytest.raises(ValueError, match=rf"does not support .* \({name}\) of Linear; load the model with another"):
        attention_forward(nn.Linear(1, 1), q, q, q, None, attrdrop=attrdrop, **{name: value})
    out, _ = attention_forward(nn.Linear(1, 1), q, q, q, None, **{name: None, "token_type_ids": torch.ones(1, 2)})
    assert out.shape == (1, 2, 1, 4)


@pytest.mark.slow
def test_every_argument_that_a_model_of_transformers_hands_to_attention_is_known():
    known = {
        "query", "key", "value", "attention_mask", "scaling", "dropout", "is_causal", "position_bias",
        "s_aux", "sinks",
        "sliding_window",  # in the mask already
        "position_ids", "output_attentions", "deterministic",  # say nothing to attention
        "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",  # for flash attention alone
    }  # fmt: skip
    found = set()
    for path in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "attention_interface":
                found |= {keyword.arg for keyword in node.keywords if keyword.arg}
    assert found <= known | set(UNSUPPORTED)


def test_a_causal_model_compiles_as_one_graph():
    model = models.build("llama-lm")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs = models.batch("llama-lm")
    torch.testing.assert_close(compiled(**inputs).loss, model(**inputs).loss)
