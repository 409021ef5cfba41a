"""What ADDrop says to models of which each process has a part. Run by torchrun with a folder that holds a model; rank 0
saves it."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import attrdrop
import attrdrop.integrations.transformers  # makes attn_implementation="attrdrop" known

SPLITS = {"heads": {"tp_plan": "auto"}, "layers": {"pp_size": 2}}

if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder, said = Path(sys.argv[1]), {}
    for name, options in SPLITS.items():
        model = AutoModelForCausalLM.from_pretrained(
            folder / "model", distributed_config=DistributedConfig(**options), attn_implementation="attrdrop"
        )
        try:
            attrdrop.ADDrop(model)
        except ValueError as error:
            said[name] = str(error)
    if dist.get_rank() == 0:
        (folder / "refusals.json").write_text(json.dumps(said))
    dist.destroy_process_group()
