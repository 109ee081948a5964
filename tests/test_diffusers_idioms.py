"""What people do with diffusers' pipelines, done to ours and to `FluxKontextPipeline`."""

import copy
import inspect

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline

import tiny
from bokehdepth import BokehDepthPipeline
from bokehdepth.hub import load_pipeline

FIXED = {"reference_attention": "causal", "reference_timestep": 0.25, "null_token": True, "rotary_query": False}
EMBEDS, POOLED = torch.randn(1, 5, 32), torch.randn(1, 24)
SIDE = 64
PHOTO = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def noise(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def both(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    return pipe(PHOTO, (10, 20), generator=noise(), output_type="np", **options)


def same(got, wanted) -> bool:
    return np.array_equal(got.images, wanted.images) and np.array_equal(got.depth_m, wanted.depth_m)


def kontext_on(pipe) -> FluxKontextPipeline:
    """Diffusers' own pipeline on the same base."""
    names = ("scheduler", "vae", "transformer", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    stock = FluxKontextPipeline(**{name: getattr(pipe, name) for name in names})
    stock.set_progress_bar_config(disable=True)
    return stock


def plain() -> BokehDepthPipeline:
    """Ours with a fresh adapter, which changes nothing."""
    return tiny.pipeline(bokeh_adapter=tiny.adapter(trained=False, num_inference_steps=3, max_area=SIDE**2))


def run(pipe, **options):
    """One frame of ours, or the picture of Kontext, from the same arguments; float (H, W, 3)."""
    common = {"guidance_scale": 2.5, "prompt_embeds": EMBEDS, "pooled_prompt_embeds": POOLED, "output_type": "np"}
    if "latents" not in options:
        common["generator"] = noise(4)
    common |= {} if "sigmas" in options else {"num_inference_steps": 3}
    if hasattr(pipe, "generate_stack"):
        return pipe.generate_stack(PHOTO, 20, max_area=SIDE**2, restore=False, **common, **options).images[0]
    image = torch.from_numpy(PHOTO / np.float32(255)).permute(2, 0, 1)[None]
    common |= {name: common[name].to(pipe.transformer.dtype) for name in ("prompt_embeds", "pooled_prompt_embeds")}
    size = {"height": SIDE, "width": SIDE, "max_area": SIDE**2, "_auto_resize": False}
    if "sigmas" in options:
        common["num_inference_steps"] = len(options["sigmas"])
    return pipe(image=image, **size, **common, **options).images[0]


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, atol=3e-5)


# ---------------------------------------------------------------------- one call, beside Kontext


def test_sigmas_and_latents_are_kontexts():
    pipe = plain()
    stock = kontext_on(pipe)
    close(run(pipe), run(stock))
    levels = [1.0, 0.7, 0.2, 0.1]
    close(run(pipe, sigmas=levels), run(stock, sigmas=levels))
    latents = torch.randn(1, 16, 16, generator=noise(9))
    close(run(pipe, latents=latents), run(stock, latents=latents.clone()))
    assert np.abs(run(pipe, latents=latents) - run(pipe)).max() > 1e-3
    memory = pipe.remember_photo(PHOTO, sigmas=levels, latents=latents, guidance_scale=2.5, prompt_embeds=EMBEDS,
                                 pooled_prompt_embeds=POOLED)  # fmt: skip
    wanted = run(pipe, sigmas=levels, latents=latents)
    assert np.array_equal(pipe.generate_stack(memory, 20, restore=False, output_type="np").images[0], wanted)


def test_interrupt_steps_and_tensors_of_a_callback_are_kontexts():
    pipe, seen = plain(), {}
    stock = kontext_on(pipe)

    def callback(which, stop=None):
        def called(p, index, timestep, tensors):
            told = (index, float(timestep), sorted(tensors), p.num_timesteps, float(p.current_timestep))
            seen.setdefault(which, []).append((*told, p.guidance_scale, p.joint_attention_kwargs))
            p._interrupt = index == stop
            return {"prompt_embeds": tensors["prompt_embeds"] * 1.5}

        return called

    inputs = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    for stop in (None, 1):
        for name, one in (("ours", pipe), ("theirs", stock)):
            seen[name, "picture"] = run(one, callback_on_step_end=callback((name, stop), stop), **inputs,
                                        joint_attention_kwargs={})  # fmt: skip
        assert seen["ours", stop] == seen["theirs", stop]
        assert len(seen["ours", stop]) == (3 if stop is None else 2)
        close(seen["ours", "picture"], seen["theirs", "picture"])
    close(run(pipe), run(stock))  # neither is remembered


def test_scale_of_loras_is_kontexts():
    pipe = plain()
    stock = kontext_on(pipe)
    before = run(pipe)
    pipe.load_lora_weights(tiny.lora())
    results = {}
    for scale in (1.0, 0.3, 0.0):
        results[scale] = run(pipe, joint_attention_kwargs={"scale": scale})
        close(results[scale], run(stock, joint_attention_kwargs={"scale": scale}))
    assert np.abs(results[1.0] - results[0.3]).max() > 1e-3
    close(results[0.0], before)
    assert np.array_equal(run(pipe), results[1.0])


def test_scale_of_loras_reaches_a_photo_that_is_encoded_apart():
    pipe = tiny.pipeline(bokeh_adapter=tiny.adapter(**FIXED))
    plain = pipe.generate_stack(PHOTO, 20, generator=noise(), output_type="np").images
    pipe.load_lora_weights(tiny.lora())
    memory = pipe.remember_photo(PHOTO, generator=noise())
    for scale in (1.0, 0.0, 1.0):
        options = {"output_type": "np", "joint_attention_kwargs": {"scale": scale}}
        wanted = pipe.generate_stack(PHOTO, 20, generator=noise(), **options).images
        close(pipe.generate_stack(memory, 20, **options).images, wanted)
        assert (np.abs(wanted - plain).max() < 1e-4) == (scale == 0)


@torch.no_grad()
def test_scale_of_loras_reaches_the_embedded_base():
    from peft import LoraConfig

    pipe = load_pipeline("embedded")
    wanted = both(pipe)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False))
    close(both(pipe, joint_attention_kwargs={"scale": 0.0}).images, wanted.images)
    assert np.abs(both(pipe, joint_attention_kwargs={"scale": 5.0}).images - wanted.images).max() > 1e-3


def test_arguments_are_written_out_and_named_as_there():
    theirs = inspect.signature(FluxKontextPipeline.__call__).parameters
    for method in (BokehDepthPipeline.__call__, BokehDepthPipeline.generate_stack):
        ours = inspect.signature(method).parameters
        assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in ours.values())
        assert {"sigmas", "latents", "joint_attention_kwargs", "max_area", "callback_on_step_end_tensor_inputs",
                "guidance_scale", "max_sequence_length"} <= ours.keys() & theirs.keys()  # fmt: skip
    stack = set(inspect.signature(BokehDepthPipeline.generate_stack).parameters) - {"restore", "for_depth"}
    assert stack <= inspect.signature(BokehDepthPipeline.__call__).parameters.keys()


def test_every_public_method_of_ours_has_an_example():
    for name in ("__call__", "generate_stack", "estimate_depth", "remember_photo", "from_pipe", "load_base_model",
                 "from_released", "check_bokeh_strengths"):  # fmt: skip
        assert "Example:\n" in inspect.getdoc(getattr(BokehDepthPipeline, name)), name


def test_a_tuple_is_to_tuple():
    pipe = tiny.pipeline()
    matrix = np.array([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])
    out, parts = both(pipe, intrinsics=matrix), both(pipe, intrinsics=matrix, return_dict=False)
    assert len(parts) == len(out.to_tuple()) == 4
    assert all(np.array_equal(a, b) for a, b in zip(parts, out.to_tuple(), strict=True))
    stack = pipe.generate_stack(PHOTO, 10, return_dict=False)
    assert len(stack) == 2 and stack[1] == (10.0,)
    alone = pipe.estimate_depth(PHOTO, return_dict=False)
    assert [type(part) for part in alone] == [type(part) for part in pipe.estimate_depth(PHOTO).to_tuple()]


# ---------------------------------------------------------------------- the same weights in another pipeline


@pytest.mark.parametrize("model", ["embedded", "tiny"])
def test_components_alone_make_the_same_pipeline(model):
    pipe = load_pipeline("embedded") if model == "embedded" else tiny.pipeline()
    wanted = both(pipe)
    assert same(both(BokehDepthPipeline(**pipe.components)), wanted)
    assert same(both(BokehDepthPipeline.from_pipe(pipe)), wanted)
    assert same(both(copy.deepcopy(pipe)), wanted)


def test_from_pipe_keeps_every_precision_both_ways():
    kontext = tiny.kontext().to(torch.bfloat16)
    kontext.text_encoder_2.to(torch.float32)
    kontext.set_progress_bar_config(disable=True)
    parts = {name: part for name, part in kontext.components.items() if isinstance(part, torch.nn.Module)}
    dtypes = {name: part.dtype for name, part in parts.items()}
    assert len(set(dtypes.values())) == 2
    before = {name: value.clone() for name, value in kontext.transformer.state_dict().items()}
    wanted = run(kontext)
    adapter, depth = tiny.adapter(), tiny.depth_model()
    made = BokehDepthPipeline.from_pipe(kontext, bokeh_adapter=adapter, depth_estimator=depth)
    assert {name: part.dtype for name, part in parts.items()} == dtypes
    assert adapter.dtype == depth.dtype == torch.float32
    assert all(getattr(made, name) is part for name, part in parts.items())
    assert both(made).depth_m.shape == (SIDE, SIDE)
    # The base under a folded adapter is still Kontext's own, on the old pipeline, a new one, and one of from_pipe.
    back = FluxKontextPipeline.from_pipe(made, dtype=torch.bfloat16)
    for stock in (kontext, kontext_on(made), back):
        both(made)
        assert adapter.is_folded
        assert np.array_equal(run(stock), wanted)
    assert all(torch.equal(value, before[name]) for name, value in kontext.transformer.state_dict().items())
    assert BokehDepthPipeline.from_pipe(made, dtype=torch.float32).transformer.dtype == torch.float32


@pytest.mark.parametrize("made", [tiny.pipeline, lambda: load_pipeline("embedded")], ids=["tiny", "embedded"])
def test_a_saved_pipeline_gives_the_same_bits(tmp_path, made):
    pipe = made()
    wanted = both(pipe)
    pipe.save_pretrained(tmp_path)
    assert same(both(BokehDepthPipeline.from_pretrained(tmp_path, dtype=pipe.dtype)), wanted)


def test_folders_of_before_are_refused_by_name(tmp_path):
    pipe = tiny.pipeline()
    pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("{", '{\n  "default_num_inference_steps": 4,', 1))
    with pytest.raises(ValueError, match="has default_num_inference_steps, which .* must hold as num_inference_steps"):
        BokehDepthPipeline.from_pretrained(tmp_path)


# ---------------------------------------------------------------------- precision and place


@pytest.mark.parametrize("adapter", [{}, FIXED, {"modulation_conditioning": True}], ids=["branch", "fixed", "shift"])
def test_base_in_bfloat16_under_an_adapter_in_float32(tmp_path, adapter):
    kontext_on(tiny.pipeline()).save_pretrained(tmp_path / "base")
    light = dict.fromkeys(("transformer", "vae", "scheduler")) | {"bokeh_adapter": tiny.adapter(**adapter)}
    pipe = tiny.pipeline(**light, base_model_id=str(tmp_path / "base"))
    pipe.load_base_model(dtype=torch.bfloat16)
    assert pipe.transformer.dtype == pipe.vae.dtype == torch.bfloat16 and pipe.bokeh_adapter.dtype == torch.float32
    wanted = both(tiny.pipeline(bokeh_adapter=tiny.adapter(**adapter))).images
    got = both(pipe).images
    assert np.abs(got - wanted).mean() < 0.02 and np.abs(got[0] - got[1]).max() > 0.02
    other = tiny.pipeline(**light, base_model_id=str(tmp_path / "base")).to(torch.float64)
    other.load_base_model()
    assert other.transformer.dtype == torch.float64  # the pipeline's own


def test_base_goes_to_the_pipelines_device(tmp_path):
    kontext_on(tiny.pipeline()).save_pretrained(tmp_path / "base")
    light = dict.fromkeys(("transformer", "vae", "scheduler"))
    pipe = tiny.pipeline(**light, base_model_id=str(tmp_path / "base")).to("meta")
    pipe.load_base_model()
    assert pipe.transformer.device.type == pipe.vae.device.type == "meta"


def run_on_the_cpu(pipe):
    """For accelerate "cpu:0", as diffusers names the CPU, is another device, to which it copies weights."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    for module in (module for part in parts for module in part.modules() if hasattr(module, "_hf_hook")):
        for hook in (module._hf_hook, *getattr(module._hf_hook, "hooks", ())):
            hook.execution_device = torch.device("cpu")


def offload_model(pipe):
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.maybe_free_model_hooks = lambda: None  # which would offload once more, to "cpu:0"
    run_on_the_cpu(pipe)


def offload_leaves(pipe):
    pipe.enable_sequential_cpu_offload(device="cpu")
    run_on_the_cpu(pipe)


def offload_groups(pipe):
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


def offload_blocks_of_the_base(pipe):
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)


OFFLOADS = [offload_model, offload_leaves, offload_groups, offload_blocks_of_the_base]


@pytest.mark.parametrize("offload", OFFLOADS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("adapter", [{}, FIXED], ids=["branch", "fixed"])
def test_offloaded_pipelines_give_the_same_bits(offload, adapter):
    """On the CPU the hooks run as on a device, and only the copies between devices are none."""
    wanted = both(tiny.pipeline(bokeh_adapter=tiny.adapter(**adapter)))
    fresh, used = (tiny.pipeline(bokeh_adapter=tiny.adapter(**adapter)) for _ in range(2))
    both(used)
    for pipe in (fresh, used):
        offload(pipe)
        for _ in range(2):
            assert same(both(pipe), wanted)
        assert pipe.bokeh_adapter.is_folded


@pytest.mark.parametrize("offload", OFFLOADS, ids=lambda f: f.__name__)
def test_offloaded_embedded_model_gives_the_same_bits(offload):
    pipe = load_pipeline("embedded")
    wanted = both(pipe)
    offload(pipe)
    assert same(both(pipe), wanted)


def test_models_leave_the_device_after_each_call_and_come_back():
    pipe, wanted = (
        tiny.pipeline(bokeh_adapter=tiny.adapter(**FIXED)),
        both(tiny.pipeline(bokeh_adapter=tiny.adapter(**FIXED))),
    )
    pipe.enable_model_cpu_offload(device="cpu")
    hooks = pipe._all_hooks
    for _ in range(2):
        got = both(pipe)  # whose weights have been copied, and some kernels round by their place
        np.testing.assert_allclose(got.images, wanted.images, atol=1e-4)
        np.testing.assert_allclose(got.depth_m, wanted.depth_m, rtol=1e-2)
        assert pipe._all_hooks is not hooks and len(pipe._all_hooks) == 3
        assert pipe.bokeh_adapter.is_folded and pipe.bokeh_adapter.transformer is pipe.transformer


@pytest.mark.parametrize("first", ["fold", "cast"])
def test_layerwise_casting(first):
    wanted = both(tiny.pipeline()).images
    pipe = tiny.pipeline()
    if first == "fold":
        both(pipe)
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=torch.float32)
    got = both(pipe).images
    assert 0 < np.abs(got - wanted).mean() < 0.05
    assert pipe.bokeh_adapter.is_folded == (first == "fold")
