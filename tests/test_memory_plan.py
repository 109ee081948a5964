"""Counted on the meta device, and allocated: the same bytes."""

import pytest
import torch

from bokehdepth.acceleration import bake_modulation
from bokehdepth.benchmarks import models
from bokehdepth.benchmarks.memory import peak_bytes
from bokehdepth.memory_plan import apply_plan, baked_bytes, module_bytes, needed_bytes, plan_memory
from bokehdepth.memory_plan import store_transformer_float8 as store_float8

CPU, META = torch.device("cpu"), torch.device("meta")


def allocated(*modules: torch.nn.Module) -> int:
    """Bytes of the storages that modules hold, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for module in modules for t in (*module.parameters(), *module.buffers()) if t.numel()}  # fmt: skip
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counting_without_weights_gives_what_is_allocated(dtype):
    pipe = models.pipeline(False, CPU, dtype, 64, 8)
    counted = models.transformer(False, META, dtype)
    adapter = models.adapter(counted, 8)
    assert module_bytes(counted) == allocated(pipe.transformer)
    assert module_bytes(adapter) == allocated(pipe.bokeh_adapter)
    assert module_bytes(models.autoencoder(False, META, dtype)) == allocated(pipe.vae)
    base = models.depth_anything(False, CPU, dtype)
    meta = models.depth_anything(False, META, dtype)
    assert module_bytes(models.with_dsfa(meta, (2, 3))) == allocated(models.with_dsfa(base, (2, 3)))

    removed = bake_modulation(pipe, num_inference_steps=2)
    tables = sum(module_bytes(m) for m in pipe.transformer.modules() if type(m).__name__.startswith("Baked"))
    assert allocated(pipe.transformer) - tables == baked_bytes(counted)
    assert allocated(*removed.values()) == module_bytes(counted) - baked_bytes(counted)


def test_float8_keeps_the_modulation_wide():
    """The share of the plan is that of FLUX's own size; this size has another, by the same rule."""
    pipe = models.pipeline(False, CPU, torch.bfloat16, 64, 8)
    before, linear = allocated(pipe.transformer), 0
    for name, module in pipe.transformer.named_modules():
        is_narrow = isinstance(module, torch.nn.Linear) and "norm" not in name and name != "proj_out"
        linear += sum(p.numel() for p in module.parameters()) if is_narrow else 0
    store_float8(pipe)
    assert allocated(pipe.transformer, pipe.bokeh_adapter) == pytest.approx(
        before + module_bytes(pipe.bokeh_adapter) - linear, rel=0.01
    )
    counted = models.transformer(True, META, torch.bfloat16)
    narrow = sum(
        p.numel() for name, m in counted.named_modules() if isinstance(m, torch.nn.Linear)
        and "norm" not in name and name != "proj_out" for p in m.parameters()
    )  # fmt: skip
    size = module_bytes(counted)
    needed = needed_bytes({"transformer": size}, 0)
    assert needed["float8"] == pytest.approx(size - narrow, rel=0.01)


def test_resident_plan_counts_weights_and_work_that_a_stack_takes():
    pipe = models.pipeline(False, CPU, torch.float32, 128, 32)
    sizes = {name: module_bytes(getattr(pipe, name)) for name in ("transformer", "vae", "bokeh_adapter")}
    photo = torch.rand(3, 128, 128)
    work = peak_bytes(lambda: pipe.generate_stack(photo, (10, 20, 30), num_inference_steps=1), CPU)
    plan = plan_memory(sizes, None, work)
    apply_plan(pipe, plan, "cpu")
    assert plan.name == "resident"
    assert plan.needed_bytes == allocated(pipe.transformer, pipe.vae, pipe.bokeh_adapter) + work
    # Frames are decoded one by one, so a stack of three takes less than three times the work of one.
    single = peak_bytes(lambda: pipe.generate_stack(photo, (10,), num_inference_steps=1), CPU)
    assert single < work < 2.9 * single
