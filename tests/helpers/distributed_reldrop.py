"""RelDrop and a training step on each process of a gloo group; rank 0 saves inputs and gradients. Run by torchrun."""

import sys

import torch
import torch.distributed as dist
from image_models import image_batch, small_resnet
from point_models import point_batch, small_pointnet2
from torch.nn.parallel import DistributedDataParallel

from attrdrop import RelDrop, RelDropPoints

KINDS = {
    "images": (small_resnet, image_batch, RelDrop, {"p": 0.7, "alpha": 0.3, "seed": 3}),
    "points": (small_pointnet2, point_batch, RelDropPoints, {"mode": "calibrated", "beta": 0.3, "seed": 3}),
}

if __name__ == "__main__":
    make_model, make_batch, transform, settings = KINDS[sys.argv[2]]
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(make_model(is_frozen=True))
    inputs, labels = (tensor.chunk(count)[rank] for tensor in make_batch(8))
    occluded = transform(model, **settings)(inputs, labels)
    torch.nn.functional.cross_entropy(model(occluded), labels).backward()
    parts = [torch.empty_like(occluded) for _ in range(count)]
    dist.all_gather(parts, occluded)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
        torch.save((torch.cat(parts), gradients), sys.argv[1])
    dist.destroy_process_group()
