"""Engines that train a model on several processes, each wrapped so that tests drive all of them in one way."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

RATE = 0.1


class Engine:
    """One process alone; the others differ in how they wrap, walk back and gather.

    model: as it is trained. A micro-step that is not the last of its step is ``is_last=False``.
    """

    def __init__(self, model: nn.Module, layers: Callable[[nn.Module], list[nn.Module]], **options: Any):
        self.options = options
        self.model = self.wrap(model, layers(model))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)

    def wrap(self, model: nn.Module, layers: list[nn.Module]) -> nn.Module:
        return model

    def micro_step(self, is_last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def gradients(self) -> dict[str, Tensor]:
        """Whole ones by name of the model, averaged over processes."""
        named = ((name, parameter.grad) for name, parameter in self.model.named_parameters())
        return {_plain(name): self.whole(grad).clone() for name, grad in named if grad is not None}

    def weights(self) -> dict[str, Tensor]:
        """Whole ones by name of the model."""
        with torch.no_grad():
            return {_plain(name): self.whole(x).clone() for name, x in self.model.named_parameters()}

    def whole(self, grad: Tensor) -> Tensor:
        return grad

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class DDP(Engine):
    def wrap(self, model, layers):
        return DistributedDataParallel(model, **self.options)

    def micro_step(self, is_last):
        return contextlib.nullcontext() if is_last else self.model.no_sync()


class FSDP1(Engine):
    def wrap(self, model, layers):
        policy = ModuleWrapPolicy({type(layer) for layer in layers})
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"), **self.options
        )

    def micro_step(self, is_last):
        return contextlib.nullcontext() if is_last else self.model.no_sync()

    def gradients(self):
        with FullyShardedDataParallel.summon_full_params(self.model, with_grads=True):
            return super().gradients()


class FSDP2(Engine):
    def wrap(self, model, layers):
        for layer in layers:
            fully_shard(layer, **self.options)
        return fully_shard(model, **self.options)

    def micro_step(self, is_last):
        self.model.set_requires_gradient_sync(is_last)
        return contextlib.nullcontext()

    def whole(self, grad):
        return grad.full_tensor()


class TransformersFSDP2(FSDP2):
    """What from_pretrained itself takes apart as it loads."""

    def wrap(self, model, layers):
        from transformers.distributed import DistributedConfig

        names = {re.sub(r"\d+", "*", name) for name, module in model.named_modules() if module in layers}
        split = DistributedConfig(fsdp_size=dist.get_world_size(), fsdp_plan=dict.fromkeys(names, "free_full_weight"))
        with tempfile.TemporaryDirectory() as own:
            (folder, *_) = gathered(own)
            model.save_pretrained(folder)  # by the first process alone
            dist.barrier()
            options = dict(attn_implementation="attrdrop", dtype=model.dtype)
            loaded = type(model).from_pretrained(folder, distributed_config=split, **options)
            dist.barrier()
        return loaded.train()


class DeepSpeed(Engine):
    """stage: of ZeRO; 0 for none."""

    def __init__(self, model, layers, stage):
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        initialize = _deepspeed().initialize
        self.model, self.optimizer, *_ = initialize(model=model, optimizer=optimizer, config=zero(stage))

    def backward(self, loss):
        self.model.backward(loss)

    def gradients(self):
        from deepspeed.utils import safe_get_full_grad

        named = self.model.module.named_parameters()
        found = {name: safe_get_full_grad(parameter) for name, parameter in named}
        return {name: grad.clone() for name, grad in found.items() if grad is not None}

    def step(self):
        self.model.step()


def _deepspeed() -> Any:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which would be compiled, for a minute
    return deepspeed


def zero(stage: int, **fields: Any) -> dict[str, Any]:
    """A configuration of DeepSpeed's."""
    stage_3 = {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    defaults = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, **stage_3},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return defaults | fields


class AccelerateFSDP1(FSDP1):
    def wrap(self, model, layers):
        return _accelerator(layers, **self.options).prepare(model)


class AccelerateFSDP2(FSDP2):
    def __init__(self, model, layers, **options):
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        self.model, self.optimizer = _accelerator(layers(model), **options).prepare(model, optimizer)


class AccelerateZero(DeepSpeed):
    def __init__(self, model, layers, stage):
        from accelerate import Accelerator, DeepSpeedPlugin

        state_of_accelerate("deepspeed")
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(zero(stage)))
        self.model, self.optimizer = accelerator.prepare(model, optimizer)


class LightningFabric(Engine):
    """What Lightning's Trainer wraps a model in too."""

    def __init__(self, model, layers, strategy):
        from lightning.fabric import Fabric

        self.fabric = Fabric(accelerator="cpu", devices=place()[1], strategy=strategy)
        self.fabric.launch()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        self.model, self.optimizer = self.fabric.setup(model, optimizer)

    def micro_step(self, is_last):
        return self.fabric.no_backward_sync(self.model, enabled=not is_last)

    def backward(self, loss):
        self.fabric.backward(loss)

    def gradients(self):
        named = self.model.module.named_parameters()
        return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def _accelerator(layers: list[nn.Module], **fields: Any) -> Any:
    """With a plugin of these fields; without any, that of accelerate's launcher."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    state_of_accelerate("fsdp")
    if not fields:
        return Accelerator()
    wrapped = sorted({type(layer).__name__ for layer in layers})
    policy = dict(auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=wrapped)
    return Accelerator(fsdp_plugin=FullyShardedDataParallelPlugin(**policy, **fields))


def state_of_accelerate(sharding: str) -> None:
    """Of processes on CPUs for a plugin of "fsdp" or "deepspeed".

    accelerate gives both up where it is told to use CPUs, so it is told of gloo alone. And FSDP's plugins it takes only
    among several GPUs or the like (AcceleratorState.__init__), so it is told of these.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        os.environ.pop(name, None)
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ[f"ACCELERATE_USE_{sharding.upper()}"] = "true"
    if sharding == "deepspeed":
        _deepspeed()
    state = PartialState(backend="gloo")
    if sharding == "fsdp":
        state.distributed_type = DistributedType.MULTI_GPU


def _plain(name: str) -> str:
    return name.replace("_fsdp_wrapped_module.", "").removeprefix("module.")


HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

ENGINES: dict[str, tuple[type[Engine], dict[str, Any]]] = {
    "alone": (Engine, {}),
    "alone-float32": (Engine, {}),
    "ddp": (DDP, {}),
    "ddp-static-graph": (DDP, {"static_graph": True}),
    "ddp-find-unused": (DDP, {"find_unused_parameters": True}),
    "fsdp1": (FSDP1, {}),
    "fsdp2": (FSDP2, {}),
    "fsdp2-no-reshard": (FSDP2, {"reshard_after_forward": False}),
    "transformers-fsdp2": (TransformersFSDP2, {}),
    "fsdp2-bfloat16": (FSDP2, {"mp_policy": HALF}),
    "zero1": (DeepSpeed, {"stage": 1}),
    "zero2": (DeepSpeed, {"stage": 2}),
    "zero3": (DeepSpeed, {"stage": 3}),
    "accelerate-fsdp1": (AccelerateFSDP1, {"fsdp_version": 1, "use_orig_params": True}),
    "accelerate-fsdp2": (AccelerateFSDP2, {"fsdp_version": 2}),
    "lightning-ddp": (LightningFabric, {"strategy": "ddp"}),
    "launched-fsdp1": (AccelerateFSDP1, {}),
    "launched-fsdp2": (AccelerateFSDP2, {}),
    "accelerate-zero1": (AccelerateZero, {"stage": 1}),
    "accelerate-zero2": (AccelerateZero, {"stage": 2}),
    "accelerate-zero3": (AccelerateZero, {"stage": 3}),
}


def engine(name: str, model: nn.Module, layers: Callable[[nn.Module], list[nn.Module]]) -> Engine:
    """The model inside an engine; "alone": in none."""
    kind, options = ENGINES[name]
    return kind(model, layers, **options)


def place() -> tuple[int, int]:
    """Rank and number of the processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(value: Any) -> list[Any]:
    """What each process gives."""
    found = [value] * place()[1]
    if dist.is_initialized():
        dist.all_gather_object(found, value)
    return found


def dtype_of(name: str, kind: str) -> torch.dtype:
    """What is trained in: DeepSpeed keeps parameters in float32, Fabric gives it back, and points are found in it."""
    is_single = "zero" in name or name.startswith("lightning") or name.endswith(("bfloat16", "float32"))
    return torch.float32 if is_single or kind == "points" else torch.float64


def parsed(case: str) -> tuple[str, str, list[list[int]]]:
    """Engine, what is trained, and how many samples each process has in each call of a step."""
    name, kind, sizes = case.split(":")
    return name, kind, [[int(size) for size in call.split(",")] for call in sizes.split("/")]
