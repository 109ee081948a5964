"""Counted on the meta device, and allocated: the same bytes."""

import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import random_models as models
from bokehdepth import weights_bokehdepth
from bokehdepth.acceleration import bake_modulation
from bokehdepth.hub import load_pipeline
from bokehdepth.memory_plan import (
    PLANS,
    MemoryPlan,
    apply_plan,
    baked_bytes,
    load_bytes,
    module_bytes,
    needed_bytes,
    plan_memory,
    stored_bytes,
)
from bokehdepth.memory_plan import store_transformer_float8 as store_float8
from measure import peak_bytes

CPU, META = torch.device("cpu"), torch.device("meta")


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a safetensors file: all but its header and the length of that in 8 bytes."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


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
    adapter = allocated(pipe.bokeh_adapter)
    store_float8(pipe)
    assert allocated(pipe.bokeh_adapter) == adapter == module_bytes(pipe.bokeh_adapter)
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


def both_stages(device, dtype):
    """Parts of a small pipeline by name; on the meta device without weights."""
    transformer = models.transformer(False, device, dtype)
    return {
        "transformer": transformer,
        "vae": models.autoencoder(False, device, dtype),
        "bokeh_adapter": models.adapter(transformer, 8),
        "depth_estimator": models.with_dsfa(models.depth_anything(False, device, dtype), (2, 3)),
    }


def placed_pipeline(dtype):
    pipe = models.pipeline(False, CPU, dtype, 64, 8)
    pipe.register_modules(**both_stages(CPU, dtype))
    return pipe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counting_without_weights_gives_what_loading_reads(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_bokehdepth, "_MOST_MOVED_BYTES", 0)  # as for parts that stay mapped, which are large
    placed_pipeline(dtype).save_pretrained(tmp_path)
    stored = {name: stored_bytes(part) for name, part in both_stages(META, dtype).items()}
    files = {name: sorted((tmp_path / name).glob("*.safetensors")) for name in stored}
    paths = {path for part in files.values() for path in part}
    assert paths == set(tmp_path.rglob("*.safetensors"))
    for name, part in files.items():
        assert stored[name] == sum(tensor_bytes(path) for path in part), name
        assert stored[name] == sum(tensor.nbytes for path in part for tensor in load_file(path).values()), name
    for plan in load_bytes({}, stored).values():
        # Headers are what the files have beside.
        assert plan.read < sum(path.stat().st_size for path in paths) < 1.005 * plan.read
    loaded = load_pipeline(tmp_path, dtype=dtype)
    assert {name: allocated(getattr(loaded, name)) for name in stored} == stored
    maps = Path("/proc/self/maps")
    if maps.exists():
        mapped = {Path(line.split(maxsplit=5)[5]) for line in maps.read_text().splitlines() if str(tmp_path) in line}
        assert mapped == paths


def test_files_hold_shared_tensors_once_and_no_passing_buffers():
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    module[1].weight = module[0].weight
    module.register_buffer("passing", torch.zeros(100), persistent=False)
    assert stored_bytes(module) == 4 * (15 + 5 + 5 + 4 * 5) + 8  # and the count of batches, int64
    assert module_bytes(module) == stored_bytes(module) + 400


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_moves_to_the_device_what_was_counted(plan, monkeypatch):
    """The meta device stands for one with memory of its own: what is on it after placing was moved there."""
    idle = types.SimpleNamespace(empty_cache=lambda: None, is_available=lambda: True)
    monkeypatch.setattr(torch, "meta", idle, raising=False)
    pipe, sizes = (
        placed_pipeline(torch.float32),
        {n: module_bytes(p) for n, p in both_stages(META, torch.float32).items()},
    )
    apply_plan(pipe, MemoryPlan(plan, 0, None), "meta")
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    moved = sum(t.nbytes for t in tensors.values() if t.is_meta)
    assert moved == load_bytes(sizes, sizes)[plan].moved
    assert (moved == sum(sizes.values())) == (plan == "resident")


def test_resident_plan_counts_weights_and_work_that_a_stack_takes():
    pipe = models.pipeline(False, CPU, torch.float32, 128, 32)
    sizes = {name: module_bytes(getattr(pipe, name)) for name in ("transformer", "vae", "bokeh_adapter")}
    photo = torch.rand(3, 128, 128)
    pipe.bokeh_adapter.prepare(pipe.transformer)  # a fold keeps the base's own weights, on the CPU whatever the device
    work = peak_bytes(lambda: pipe.generate_stack(photo, (10, 20, 30), num_inference_steps=1), CPU)
    plan = plan_memory(sizes, None, work)
    apply_plan(pipe, plan, "cpu")
    assert plan.name == "resident"
    assert plan.needed_bytes == allocated(pipe.transformer, pipe.vae, pipe.bokeh_adapter) + work
    # Frames are decoded one by one, so a stack of three takes less than three times the work of one.
    single = peak_bytes(lambda: pipe.generate_stack(photo, (10,), num_inference_steps=1), CPU)
    assert single < work < 2.9 * single
