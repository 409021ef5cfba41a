"""A step of AD-DROP by the paper's text, on the eager attention of any transformers model.

Every eager attention ends in a softmax over scores (B, H, n_q, n_k). A torch function mode sees these calls, so nothing
of attrdrop but its random numbers and its reference for Eq. 6 and 7 is needed.
"""

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attrdrop import unpack_mask
from attrdrop._core.seeds import derive_seed
from attrdrop.addrop import attribution_target
from attrdrop.reference.keep_mask import candidates, draw

LOWERING = (torch.Tensor.to, torch.Tensor.float, torch.Tensor.type)


class InDouble(TorchFunctionMode):
    """Keeps double what a model lowers to float32 whatever its type, as RMS norms do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in LOWERING and args[0].dtype == torch.float64 and args[0].dim() and out.dtype == torch.float32:
            return args[0]
        return out


class EagerAttention(TorchFunctionMode):
    """Notes the probabilities of each attention call, and drops given positions by scores of -inf."""

    def __init__(self, keeps=()):
        super().__init__()
        self.keeps = dict(enumerate(keeps))
        self.probabilities, self.valid = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not functional.softmax or args[0].dim() != 4:
            return func(*args, **kwargs)
        scores = args[0]
        valid = scores > torch.finfo(scores.dtype).min / 2
        keep = self.keeps.get(len(self.probabilities))
        if keep is not None:
            scores = scores.masked_fill(valid & ~keep, -torch.inf)
        self.valid.append(valid.detach())
        self.probabilities.append(torch.softmax(scores, -1))
        return self.probabilities[-1]


def eager_step(model, inputs, addrop, layers, p, q):
    """Loss and masks of the step on an eager model, whose gradients it leaves in .grad.

    dF/dA by autograd on every A, full sorts, -inf scores in a second pass. layers: of the first attention calls, which
    in encoder-decoder models are the encoder's.
    """
    with EagerAttention() as first:
        outputs = model(**inputs)
    target = attribution_target(outputs, inputs, addrop.config.target, model)
    gradients = torch.autograd.grad(target, [first.probabilities[index] for index in layers])
    keeps = {}
    for index, b in zip(layers, gradients, strict=True):
        valid = first.valid[index]
        region = candidates(b, valid, p, low=False)
        rows, _, _ = draw(region, valid, q, derive_seed(addrop.config.seed, 0), index, None)
        keeps[index] = unpack_mask(rows, valid.shape[-1])
    with EagerAttention([keeps.get(index) for index in range(len(first.valid))]):
        loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), keeps
