"""Cases of training under engines, on each process of a gloo group; rank 0 saves what each gave.

Run by torchrun with a file and cases, "engine:kind:sizes" each: kind is an attribution of AD-DROP or a transform of
engine_images; sizes, how many samples each process has, in each call of a step.
"""

import functools
import sys

import engine_images
import engine_steps
import torch
import torch.distributed as dist
from engines import dtype_of, engine, parsed


def run(name, kind, sizes):
    module = engine_images if kind in engine_images.KINDS else engine_steps
    return module.run(functools.partial(engine, name), kind, sizes, dtype_of(name, kind))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    file, *cases = sys.argv[1:]
    results = {case: run(*parsed(case)) for case in cases}
    if dist.get_rank() == 0:
        torch.save(results, file)
    dist.destroy_process_group()
