"""AD-DROP on several processes: a small BERT from scratch on made-up sentences, under FSDP2. Some seconds on a CPU:

torchrun --standalone --nproc-per-node 2 examples/many_processes.py

Any number of processes trains on the same batches and drops the same positions, so all print the same losses; started
without torchrun, it is one process.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from transformers import BertConfig, BertForSequenceClassification

import attrdrop
import attrdrop.integrations.transformers  # registers attn_implementation="attrdrop"


def make_batch(size: int, seed: int) -> dict[str, Tensor]:
    """Sentences of 12 numbers; the label says whether those above 32 are in the majority."""
    ids = torch.randint(1, 64, (size, 12), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": (ids.gt(32).sum(1) > 6).long()}


def main(epochs: int = 4, steps: int = 40, batch_size: int = 32) -> float:
    """Train with AD-DROP in every second epoch; returns the accuracy on fresh sentences."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29513"}.items():
        os.environ.setdefault(name, value)  # torchrun sets them
    dist.init_process_group("gloo")  # "nccl" on GPUs
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same weights on all processes
    sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # whose draws differ by process
    model = BertForSequenceClassification(BertConfig(**sizes, **no_dropout, attn_implementation="attrdrop")).train()
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    addrop = attrdrop.ADDrop(model, p=0.3, q=0.3)

    for epoch in range(1, epochs + 1):
        addrop.start_epoch(epoch)
        for step in range(steps):
            whole = make_batch(batch_size, seed=1000 * epoch + step)
            part = {name: value.chunk(count)[rank] for name, value in whole.items()}
            loss = addrop(**part).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        dist.all_reduce(mean := loss.detach() / count)
        if rank == 0:
            print(f"epoch {epoch}: last loss {mean:.4f}")

    model.eval()
    test = make_batch(500, seed=0)
    with torch.no_grad():  # on every process, whose pieces of the model are needed
        accuracy = (model(**test).logits.argmax(-1) == test["labels"]).float().mean().item()
    if rank == 0:
        print(f"accuracy on 500 fresh sentences {accuracy:.3f}")
    dist.destroy_process_group()
    return accuracy


if __name__ == "__main__":
    main()
