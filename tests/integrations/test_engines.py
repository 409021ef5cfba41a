"""AD-DROP, RelDrop and LRP under engines that train on several processes: all equal one process on the whole batch."""

import functools
import importlib.util
import json

import engine_cases
import engine_images
import pytest
import torch
from engines import dtype_of, parsed
from models import build
from torchrun import run
from transformers import LlamaForCausalLM

from attrdrop import ADDrop

TORCH = ["ddp", "ddp-static-graph", "ddp-find-unused", "fsdp1", "fsdp2", "fsdp2-no-reshard"]
ZERO = ["zero1", "zero2", "zero3"]
ATTRIBUTIONS = ["GA", "IGA", "AA", "RD", "GA+units", "RD+units"]
SIZES = ["2,2/2,2", "5,3", "2,1/2,3"]  # accumulation, uneven batches, and both
IMAGES = ["blocks", "patches", "kept", "stage", "cutmix", "cutmix-source", "mixup", "vit"]

WRAPPED = [*(f"{attribution}:5,3" for attribution in ATTRIBUTIONS), "blocks:4,4"]
"""Of engines that wrap in the manner of another one."""

needs_lightning = pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="needs the extra lightning")
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")


def launched(cases, file, processes=2):
    """What each case gave, all of them from one start of so many processes."""
    run("engine_cases.py", file, *cases, options=["--standalone", f"--nproc-per-node={processes}"])
    return torch.load(file)


@functools.cache
def alone(kind, dtype):
    """What one process gives."""
    return engine_cases.run("alone" if dtype == torch.float64 else "alone-float32", kind, [[8]])


def check(results):
    """Each step's masks and occluded places exactly, losses and gradients to the rounding of the type."""
    for case, found in results.items():
        name, kind, _ = parsed(case)
        dtype = dtype_of(name, kind)
        is_exact = dtype == torch.float64
        tolerance = dict(rtol=1e-9, atol=1e-9) if is_exact else dict(rtol=1e-3, atol=1e-5)
        for step, (one, whole) in enumerate(zip(found, alone(kind, dtype), strict=True)):
            if step and not is_exact and kind not in engine_images.KINDS:
                continue  # the weights differ by rounding, which may turn a bit of a mask
            if "masks" in one:
                assert all(map(torch.equal, one["masks"], whole["masks"])), case
                assert len(one["masks"]) == 3, case  # layers
            elif "mix" not in kind:
                assert torch.equal(one["inputs"] == 0, whole["inputs"] == 0), case
            assert one["gradients"].keys() == whole["gradients"].keys(), case
            torch.testing.assert_close(one, whole | ({"masks": one["masks"]} if "masks" in one else {}), **tolerance)


def test_the_same_masks_and_pixels_as_in_one_process(tmp_path):
    """One start for all: what takes time is that two more processes import torch."""
    steps = ["ddp:GA:2,1/2,3", "fsdp1:GA:2,2/2,2", "fsdp2:GA:5,3", "fsdp2:AA:4,4"]
    images = ["ddp:cutmix:5,3", "fsdp1:blocks:4,4", "fsdp2:blocks:4,4"]
    check(launched(steps + images, tmp_path / "results.pt"))


@pytest.mark.slow
def test_every_engine_with_every_attribution(tmp_path):
    """But for a static graph whose first call is accumulated, which fails in torch, without AD-DROP too."""
    cases = [f"{name}:{attribution}:4,4" for name in TORCH for attribution in ATTRIBUTIONS]
    cases += [f"transformers-fsdp2:{attribution}:5,3" for attribution in ATTRIBUTIONS]
    cases += [f"{name}:GA:{sizes}" for name in TORCH for sizes in SIZES if name != "ddp-static-graph" or sizes == "5,3"]
    check(launched(cases, tmp_path / "results.pt"))


@pytest.mark.slow
def test_four_processes(tmp_path):
    sizes = ["GA:3,1,2,2", "GA:1,1,1,1/1,1,1,1", "IGA:2,2,2,2", "cutmix:3,1,2,2"]
    check(launched([f"{name}:{case}" for name in ("ddp", "fsdp2") for case in sizes], tmp_path / "results.pt", 4))


@pytest.mark.slow
def test_every_engine_with_relevance(tmp_path):
    cases = [f"{name}:{kind}:4,4" for name in ("ddp", "fsdp1", "fsdp2") for kind in IMAGES]
    cases += ["fsdp2:blocks-sync:4,4", "ddp:points:4,4", "fsdp2:points:4,4"]
    cases += [f"{name}:{kind}:5,3" for name in ("ddp", "fsdp1", "fsdp2") for kind in ("blocks", "kept", "mixup")]
    check(launched(cases, tmp_path / "results.pt"))


@pytest.mark.slow
def test_mixed_precision_of_fsdp2(tmp_path):
    """bfloat16 rounds as in one process; only the sum over processes is in another order."""
    (two,) = launched(["fsdp2-bfloat16:GA:4,4"], tmp_path / "two.pt").values()
    (one,) = launched(["fsdp2-bfloat16:GA:8"], tmp_path / "one.pt", processes=1).values()
    assert all(map(torch.equal, two[0]["masks"], one[0]["masks"]))
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-2)
    for name, gradient in one[0]["gradients"].items():
        torch.testing.assert_close(two[0]["gradients"][name], gradient, rtol=5e-2, atol=1e-3, msg=name)


@pytest.mark.slow
def test_what_accelerate_wraps(tmp_path):
    """By its plugins for FSDP; whoever has them on CPUs lifts a check (engines.state_of_accelerate)."""
    names = ["accelerate-fsdp1", "accelerate-fsdp2"]
    cases = [f"{name}:{kind}" for name in names for kind in (*WRAPPED, "GA:2,1/2,3")]
    check(launched(cases, tmp_path / "results.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_what_accelerate_wraps_by_a_file(tmp_path, version):
    """As users write it, for `accelerate launch`."""
    plugin = {"fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_transformer_layer_cls_to_wrap": "BertLayer"}
    plugin["fsdp_version"] = version
    if version == 1:  # whose other defaults need a GPU
        plugin |= {"fsdp_use_orig_params": True}
        plugin |= dict.fromkeys(("fsdp_sync_module_states", "fsdp_cpu_ram_efficient_loading"), False)
    settings = {"distributed_type": "FSDP", "num_processes": 2, "mixed_precision": "no", "main_process_port": 0}
    (tmp_path / "fsdp.json").write_text(json.dumps(settings | {"fsdp_config": plugin}))
    case, results = f"launched-fsdp{version}:GA:5,3", tmp_path / "results.pt"
    options = ["launch", "--config_file", tmp_path / "fsdp.json"]
    run("engine_cases.py", results, case, options=options, launcher="accelerate.commands.accelerate_cli")
    check(torch.load(results))


@needs_deepspeed
@pytest.mark.slow
def test_what_accelerate_wraps_by_deepspeed(tmp_path):
    check(launched([f"accelerate-{name}:{kind}" for name in ZERO for kind in WRAPPED], tmp_path / "results.pt"))


@needs_lightning
@pytest.mark.slow
def test_what_lightning_wraps(tmp_path):
    cases = [f"lightning-ddp:{kind}" for kind in (*WRAPPED, "GA:2,1/2,3", "kept:5,3", "cutmix:4,4")]
    check(launched(cases, tmp_path / "results.pt"))


@needs_deepspeed
@pytest.mark.slow
def test_deepspeed_with_everything(tmp_path):
    cases = [f"{name}:{attribution}:4,4" for name in ZERO for attribution in ATTRIBUTIONS]
    cases += [f"{name}:GA:5,3" for name in ZERO]
    cases += [f"{name}:{kind}:4,4" for name in ZERO for kind in ("blocks", "kept", "vit", "cutmix")]
    check(launched(cases, tmp_path / "results.pt"))


def test_tensor_parallelism_is_refused():
    model = build("bert")
    model._tp_size = 2  # as from_pretrained(tp_plan="auto") leaves it
    with pytest.raises(ValueError, match="AD-DROP does not run under tensor or pipeline parallelism"):
        ADDrop(model)


@pytest.mark.slow
def test_parts_of_heads_and_of_layers_are_refused(tmp_path):
    LlamaForCausalLM(build("llama").config).save_pretrained(tmp_path / "model")
    run("split_models.py", tmp_path)
    refusals = json.loads((tmp_path / "refusals.json").read_text())
    for split in ("heads", "layers"):
        assert "AD-DROP does not run under tensor or pipeline parallelism" in refusals[split]
