"""AD-DROP of feed-forward units and heads, restated: the models run by hand, every unit ranked and drawn in a loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from ranking import oracle_row
from torch import Tensor

from attrdrop._core.seeds import derive_seed
from attrdrop.reference.philox import philox4x32_10


@dataclass
class Taps:
    """What a forward by hand passes its units through: notes them, and zeroes what is not to be kept.

    By (kind, layer): feed-forward units (B, n, f), or head outputs (B, n, H, d) of which bits are (B, 1, H).
    attention: bool (B, H, n_q, n_k), by layer, what may be attended to; else all that the model lets.
    """

    attention: dict[int, Tensor] = field(default_factory=dict)
    keep: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    seen: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def __call__(self, kind: str, layer: int, a: Tensor) -> Tensor:
        self.seen[kind, layer] = a
        if (kind, layer) in self.keep:
            bits = self.keep[kind, layer]
            a = a * (bits[..., None] if kind == "heads" else bits)
        return a

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        """(B, H, n, d) each, to the heads' joint output (B, n, H d)."""
        scores = q @ k.transpose(-1, -2) * scale + bias
        if layer in self.attention:
            scores = scores.masked_fill(~self.attention[layer], -torch.inf)
        return self("heads", layer, (scores.softmax(-1) @ v).transpose(1, 2)).flatten(2)


def drawn(seed: int, layer: int, sample: int, rows: int, columns: int, q: float) -> Tensor:
    """Bool (rows, columns), what a draw would drop of a sample: 16 bits of 16 words are the number of each unit."""
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    place = torch.tensor(65535 + 65536 * layer), torch.tensor(sample)
    words = [w for call in range(4) for w in philox4x32_10(seed, (4 * (column // 32) + call, row, *place))]
    return sum((word >> column % 32 & 1) << bit for bit, word in enumerate(words)) < int(q * 65536 + 0.5)


def kept(scores: Tensor, p: float, q: float, seed: int, kind: str, layer: int, low: bool, first: int) -> Tensor:
    """Eq. 6 and 7 row by row: scores (B, n, m) to bool."""
    seed = derive_seed(seed, 3, 0 if kind == "heads" else 1)
    keep = torch.ones(scores.shape, dtype=torch.bool)
    for sample, of_sample in enumerate(scores.tolist()):
        chance = drawn(seed, layer, first + sample, *scores.shape[1:], q)
        for row, values in enumerate(of_sample):
            dropped = torch.tensor(oracle_row(values, p, low)) & chance[row]
            if not dropped.all():
                keep[sample, row] = ~dropped
    return keep


def masks(forward, seed: int, p: float, q: float, layers, low: bool = False, first: int = 0) -> dict:
    """Pass 1 and Eq. 5 to 7; ``forward(taps)`` gives the target and the loss."""
    taps = Taps()
    target, _ = forward(taps)
    keep = {}
    for (kind, layer), a in taps.seen.items():
        if layer in layers:
            (grad,) = torch.autograd.grad(target, a, retain_graph=True)
            product = a.detach() * grad
            scores = product.sum((1, 3))[:, None].abs() if kind == "heads" else product.abs()
            keep[kind, layer] = kept(scores, p, q, seed, kind, layer, low, first)
    return keep


def heads_of(x: Tensor, count: int = 4) -> Tensor:
    """(B, n, H d) to (B, H, n, d)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def padding(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(mask == 0, -torch.inf)[:, None, None]


def of_classes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the largest logits (B, C), and the loss."""
    return logits.max(1).values.sum(), torch.nn.functional.cross_entropy(logits, labels)


def bert(model, inputs, taps):
    x = model.bert.embeddings(input_ids=inputs["input_ids"])
    bias = padding(inputs["attention_mask"], x.dtype)
    for index, layer in enumerate(model.bert.encoder.layer):
        own, after = layer.attention.self, layer.attention.output
        q, k, v = (heads_of(part(x)) for part in (own.query, own.key, own.value))
        x = after.LayerNorm(after.dense(taps.attend(index, q, k, v, bias, 8**-0.5)) + x)
        a = taps("feed-forward", index, torch.nn.functional.gelu(layer.intermediate.dense(x)))
        x = layer.output.LayerNorm(layer.output.dense(a) + x)
    return of_classes(model.classifier(model.bert.pooler(x)), inputs["labels"])


def vit(model, inputs, taps):
    x = model.vit.embeddings(inputs["pixel_values"])
    for index, layer in enumerate(model.vit.layers):
        own, y = layer.attention, layer.layernorm_before(x)
        q, k, v = (heads_of(part(y)) for part in (own.q_proj, own.k_proj, own.v_proj))
        x = own.o_proj(taps.attend(index, q, k, v, x.new_zeros(()), 8**-0.5)) + x
        a = taps("feed-forward", index, torch.nn.functional.gelu(layer.mlp.fc1(layer.layernorm_after(x))))
        x = layer.mlp.fc2(a) + x
    return of_classes(model.classifier(model.vit.layernorm(x)[:, 0]), inputs["labels"])


def llama(model, inputs, taps):
    x = model.model.embed_tokens(inputs["input_ids"])
    n, mask = x.shape[1], inputs["attention_mask"]
    bias = padding(mask, x.dtype).masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    cos, sin = (t[:, None] for t in model.model.rotary_emb(x, position_ids=torch.arange(n)[None]))
    turn = lambda t: t * cos + torch.cat((-t[..., 4:], t[..., :4]), -1) * sin  # noqa: E731
    for index, layer in enumerate(model.model.layers):
        own, y = layer.self_attn, layer.input_layernorm(x)
        q, k, v = turn(heads_of(own.q_proj(y))), turn(heads_of(own.k_proj(y), 2)), heads_of(own.v_proj(y), 2)
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        x = own.o_proj(taps.attend(index, q, k, v, bias, 8**-0.5)) + x
        y, mlp = layer.post_attention_layernorm(x), layer.mlp
        a = taps("feed-forward", index, torch.nn.functional.silu(mlp.gate_proj(y)) * mlp.up_proj(y))
        x = mlp.down_proj(a) + x
    last = model.model.norm(x)[torch.arange(len(x)), mask.sum(1) - 1]
    return of_classes(model.score(last), inputs["labels"])


def t5(model, inputs, taps):
    """The encoder by hand; the decoder is the model's."""
    x = model.shared(inputs["input_ids"])
    first = model.encoder.block[0].layer[0].SelfAttention
    bias = padding(inputs["attention_mask"], x.dtype) + first.compute_bias(x.shape[1], x.shape[1])
    for index, block in enumerate(model.encoder.block):
        own, y = block.layer[0].SelfAttention, block.layer[0].layer_norm(x)
        q, k, v = (heads_of(part(y)) for part in (own.q, own.k, own.v))
        x = own.o(taps.attend(index, q, k, v, bias, 1.0)) + x
        ff = block.layer[1]
        x = ff.DenseReluDense.wo(taps("feed-forward", index, ff.DenseReluDense.wi(ff.layer_norm(x)).relu())) + x
    encoded = (model.encoder.final_layer_norm(x),)
    out = model(encoder_outputs=encoded, attention_mask=inputs["attention_mask"], labels=inputs["labels"])
    best = out.logits.log_softmax(-1).max(-1).values
    return best[inputs["labels"] != -100].mean(), out.loss


FORWARDS = {"bert": bert, "vit": vit, "llama": llama, "t5": t5}
