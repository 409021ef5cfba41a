"""One AD-DROP step on each process of a gloo group; rank 0 saves the averaged gradients. Run by torchrun
with the attribution, the file and the units, with commas between."""

import sys

import torch
import torch.distributed as dist
from models import batch, build
from torch.nn.parallel import DistributedDataParallel

from attrdrop import ADDrop

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(build("bert"))
    options = dict(attribution=sys.argv[1], units=sys.argv[3].split(","), iga_steps=3, cross_tuning=False)
    addrop = ADDrop(model, p=0.4, q=0.5, **options)
    part = {key: value.chunk(count)[rank] for key, value in batch("bert", size=4).items()}
    addrop(**part).loss.backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}, sys.argv[2])
    dist.destroy_process_group()
