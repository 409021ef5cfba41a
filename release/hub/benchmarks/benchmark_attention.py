"""kernels benchmark FOLDER: attention under a mask beside torch's, and the masks of AD-DROP beside their definition."""

import torch
from kernels.benchmark import Benchmark


class Attention(Benchmark):
    seed = 0
    shape = (16, 12, 512, 64)
    dtype = torch.bfloat16

    def setup(self) -> None:
        self.q, self.k, self.v = (torch.randn(self.shape, device=self.device, dtype=self.dtype) for _ in range(3))
        n = self.shape[2]
        self.mask = torch.rand(*self.shape[:2], n, n, device=self.device) < 0.9
        self.keep = self.kernel.KeepMask.from_rows(self.kernel.pack_mask(self.mask), n)

    def benchmark_masked_attention(self) -> None:
        self.out = self.kernel.masked_attention(self.q, self.k, self.v, self.keep)

    def verify_masked_attention(self) -> torch.Tensor:
        attention = torch.nn.functional.scaled_dot_product_attention(self.q, self.k, self.v, self.mask)
        return attention.transpose(1, 2)

    def benchmark_keep_mask(self) -> None:
        self.out = self.kernel.keep_mask(self.q, self.v, p=0.3, q=0.3, seed=0).rows

    def verify_keep_mask(self) -> torch.Tensor:
        return self.kernel.keep_mask(self.q, self.v, p=0.3, q=0.3, seed=0, backend="reference").rows
