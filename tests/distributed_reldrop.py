"""RelDrop and one training step on each process of a gloo group; rank 0 saves images and gradients. Run by torchrun."""

import sys

import torch
import torch.distributed as dist
from image_models import image_batch, small_resnet
from torch.nn.parallel import DistributedDataParallel

from attrdrop import RelDrop

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(small_resnet(is_frozen=True))
    images, labels = (tensor.chunk(count)[rank] for tensor in image_batch(8))
    occluded = RelDrop(model, p=0.7, alpha=0.3, seed=3)(images, labels)
    torch.nn.functional.cross_entropy(model(occluded), labels).backward()
    parts = [torch.empty_like(occluded) for _ in range(count)]
    dist.all_gather(parts, occluded)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
        torch.save((torch.cat(parts), gradients), sys.argv[1])
    dist.destroy_process_group()
