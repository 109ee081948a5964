import copy
import json
import threading

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

import tiny
from bokehdepth import BokehDepthOutput, BokehDepthPipeline, BokehStackOutput
from bokehdepth.processing_bokehdepth import DetailRestorer, PhotoRows, working_size
from doors import assert_same_bits, call_local, run_remote_door


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


def photo(width=80, height=50, seed=0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def noise(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_stack_has_the_photos_size_and_one_frame_for_each_k(pipe):
    out = pipe.generate_stack(photo(), (5, 10.5, 30), generator=noise())
    assert isinstance(out, BokehStackOutput)
    assert out.bokeh_strengths == (5.0, 10.5, 30.0)
    assert [frame.size for frame in out.images] == [(80, 50)] * 3
    assert len({frame.tobytes() for frame in out.images}) == 3


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_output_types_agree(pipe, kind):
    frames = pipe.generate_stack(photo(), (10, 20), generator=noise(), output_type=kind).images
    assert frames.shape == ((2, 50, 80, 3) if kind == "np" else (2, 3, 50, 80))
    pil = pipe.generate_stack(photo(), (10, 20), generator=noise()).images
    array = frames if kind == "np" else frames.permute(0, 2, 3, 1).numpy()
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, np.stack([np.asarray(f) for f in pil]) / 255, atol=0.5 / 255 + 1e-6)


def test_inputs_of_every_kind_give_the_same(pipe):
    image = photo()
    array = np.asarray(image)
    kinds = [image, array, array.astype(np.float32) / 255, torch.from_numpy(array / 255.0).permute(2, 0, 1)]
    results = [pipe.generate_stack(k, (10,), generator=noise(), output_type="np").images for k in kinds]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-5)


def test_k_zero_is_the_photo(pipe):
    image = photo()
    frames = pipe.generate_stack(image, (0, 20), generator=noise()).images
    assert frames[0].tobytes() == image.tobytes()
    alone = pipe.generate_stack(image, (0,)).images
    assert alone[0].tobytes() == image.tobytes()


def test_frames_share_their_noise_and_do_not_depend_on_each_other(pipe):
    three = pipe.generate_stack(photo(), (10, 20, 30), generator=noise(), output_type="pt").images
    one = pipe.generate_stack(photo(), (20,), generator=noise(), output_type="pt").images
    torch.testing.assert_close(three[1:2], one, atol=1e-5, rtol=0)


def test_generator_decides(pipe):
    first, again, other = (
        pipe.generate_stack(photo(), (20,), generator=noise(seed), output_type="pt", restore=False).images
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_list_of_photos_of_different_size(pipe):
    photos = [photo(), photo(48, 64, seed=3)]
    out = pipe(photos, (10, 20), generator=[noise(0), noise(1)])
    assert isinstance(out, BokehDepthOutput)
    assert [d.shape for d in out.depth_m] == [(50, 80), (64, 48)]
    single = pipe(photos[1], (10, 20), generator=noise(1))
    assert np.array_equal(single.depth_m, out.depth_m[1])
    assert [f.tobytes() for f in single.images] == [f.tobytes() for f in out.images[1]]


def test_call_is_both_stages(pipe):
    out = pipe(photo(), (10, 30), generator=noise(), intrinsics=np.eye(3))
    stack = pipe.generate_stack(photo(), (10, 30), generator=noise(), for_depth=True)
    depth = pipe.estimate_depth(photo(), stack)
    assert np.array_equal(out.depth_m, depth.depth_m)
    assert set(out.timings_s) == {"to_network_size", "stack", "restore", "depth", "depth_to_photo_size"}
    assert out.depth_m.dtype == np.float32 and out.depth_m.shape == (50, 80) and (out.depth_m > 0).all()
    assert out.bokeh_strengths == (10.0, 30.0)
    assert np.array_equal(out.intrinsics, np.eye(3))


def test_depth_does_not_depend_on_the_output_type(pipe):
    depths = [pipe(photo(), (0, 10, 30), generator=noise(), output_type=kind).depth_m for kind in ("pil", "np", "pt")]
    assert np.array_equal(depths[0], depths[1]) and np.array_equal(depths[0], depths[2].numpy())
    frames = pipe.generate_stack(photo(), (0, 10, 30), generator=noise(), output_type="pt").images
    whole = pipe.estimate_depth(photo(), frames, (0, 10, 30)).depth_m
    np.testing.assert_allclose(depths[0], whole, rtol=1e-3)


def test_a_stack_that_is_not_the_photos_is_refused(pipe):
    made = pipe.generate_stack(photo(), (10, 30), generator=noise(), for_depth=True)
    with pytest.raises(ValueError, match="stack has depth_frames of shape"):
        pipe.estimate_depth(photo(50, 80), made)
    with pytest.raises(ValueError, match="wanted the stack's own"):
        pipe.estimate_depth(photo(), made, (10, 20))
    with pytest.raises(ValueError, match="restore is False"):
        pipe.generate_stack(photo(), (10,), restore=False, for_depth=True)


def test_depth_uses_the_stack_and_works_without_one(pipe):
    image = photo()
    alone = pipe.estimate_depth(image)
    assert alone.images is None and alone.bokeh_strengths == ()
    stack = [photo(seed=7), photo(seed=8)]
    assert alone.depth_m.std() > 0.01
    assert not np.allclose(pipe.estimate_depth(image, stack, (10, 20)).depth_m, alone.depth_m, rtol=1e-3)
    zero = pipe.estimate_depth(image, [image, *stack], (0, 10, 20)).depth_m
    assert np.array_equal(zero, pipe.estimate_depth(image, stack, (10, 20)).depth_m)


def test_depth_is_the_models_own_brought_to_the_photos_size(pipe):
    image = photo(84, 56)
    pixels = torch.from_numpy(np.asarray(image) / 255.0).permute(2, 0, 1).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        wanted = pipe.depth_estimator(pixel_values=((pixels - mean) / std)[None]).predicted_depth[0]
    depth = pipe.estimate_depth(image, output_type="pt", processing_resolution=56).depth_m
    assert isinstance(depth, torch.Tensor)
    torch.testing.assert_close(depth, wanted)


def test_return_tuple(pipe):
    images, strengths = pipe.generate_stack(photo(), (10,), generator=noise(), return_dict=False)
    assert len(images) == 1 and strengths == (10.0,)


def test_one_transformer_pass_serves_all_frames(pipe):
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    encoded = []
    encode = pipe.vae.encode
    pipe.vae.encode = lambda *a, **k: encoded.append(1) or encode(*a, **k)
    try:
        pipe.generate_stack(photo(), (10, 20, 30), num_inference_steps=3, generator=noise())
    finally:
        handle.remove()
        del pipe.vae.encode
    assert seen == [3, 3, 3]
    assert encoded == [1]


def test_callback_sees_every_step_and_may_change_latents(pipe):
    steps = []

    def callback(pipeline, index, timestep, tensors):
        steps.append((index, tuple(tensors["latents"].shape)))
        return {"latents": tensors["latents"] * 0}

    frames = pipe.generate_stack(
        photo(), (10, 20), num_inference_steps=3, generator=noise(), callback_on_step_end=callback, restore=False
    ).images
    assert [index for index, _ in steps] == [0, 1, 2]
    assert frames[0].tobytes() == frames[1].tobytes()


def test_two_threads_get_what_one_gets(pipe):
    wanted = {k: pipe.generate_stack(photo(), (k,), generator=noise(), output_type="pt").images for k in (5.0, 25.0)}
    wrong = []

    def work(k):
        for _ in range(3):
            got = pipe.generate_stack(photo(), (k,), generator=noise(), output_type="pt").images
            if not torch.equal(got, wanted[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


REFUSED = {
    "negative K": ({"bokeh_strengths": (-1,)}, "bokeh_strengths is .*wanted one or more values from 0 to 30"),
    "NaN": ({"bokeh_strengths": (float("nan"),)}, "bokeh_strengths"),
    "K of 31": ({"bokeh_strengths": (10, 31)}, "bokeh_strengths"),
    "no K": ({"bokeh_strengths": ()}, "bokeh_strengths"),
    "descending": ({"bokeh_strengths": (20, 10)}, "ascending"),
    "a word": ({"bokeh_strengths": "strong"}, "wanted a number or a sequence"),
    "LoRA's name": ({"joint_attention_kwargs": {"ip_hidden_states": 1}}, "must hold the LoRAs' `scale` alone"),
    "tensor": ({"callback_on_step_end_tensor_inputs": ["noise"]}, "must be of .*latents.*got 'noise'"),
    "latents": (
        {"latents": torch.zeros(1, 3, 16)},
        r"\(B, N, C\) = \(1, \d+, 16\) .*got shape \(1, 3, 16\)",
    ),
    "sigmas": ({"sigmas": [1.0], "num_inference_steps": 2}, "`sigmas` must be one or more, without"),
    "prompt rows": (
        {"prompt_embeds": torch.zeros(2, 5, 32), "pooled_prompt_embeds": torch.zeros(2, 24)},
        "rows, got 2",
    ),
    "steps": ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    "area": ({"max_area": 5}, "max_area is 5"),
    "output": ({"output_type": "jpg"}, "output_type is 'jpg'"),
    "prompt": ({"prompt": "a cat"}, "text encoders are None"),
    "half an embedding": ({"prompt_embeds": torch.zeros(1, 5, 32)}, "go together"),
    "generators": ({"generator": [torch.Generator(), torch.Generator()]}, "generator has 2 entries"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_arguments_are_refused_before_any_model_runs(pipe, arguments, message):
    called = []
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: called.append(1))
    try:
        with pytest.raises(ValueError, match=message):
            pipe.generate_stack(photo(), **arguments)
    finally:
        handle.remove()
    assert not called


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (photo().convert("L"), "PIL mode L; wanted RGB"),
        (Image.new("RGB", (1, 1)), "1x1 px; wanted at least 32"),
        (np.zeros((50, 80), np.float32), "shape"),
        (np.full((50, 80, 3), 2.0, np.float32), "outside"),
        (np.full((50, 80, 3), np.nan, np.float32), "outside"),
        ("photo.jpg", "is a str"),
        ([], "empty list"),
    ],
)
def test_bad_photos_are_refused(pipe, image, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate_stack(image, (10,))


def test_bad_stacks_are_refused(pipe):
    with pytest.raises(ValueError, match="stack has a frame of 40x40 px; wanted the photo's 80x50 px"):
        pipe.estimate_depth(photo(), [photo(40, 40)], (10,))
    with pytest.raises(ValueError, match="stack has 1 frames; wanted 2"):
        pipe.estimate_depth(photo(), [photo()], (10, 20))
    with pytest.raises(ValueError, match="go together"):
        pipe.estimate_depth(photo(), [photo()])


def test_missing_components_are_named():
    with pytest.raises(ValueError, match=r"transformer is None.*load_base_model"):
        tiny.pipeline(transformer=None).generate_stack(photo(), (10,))
    depth_only = dict.fromkeys(("scheduler", "vae", "transformer", "bokeh_adapter"))
    assert tiny.pipeline(**depth_only).estimate_depth(photo()).depth_m.shape == (50, 80)
    with pytest.raises(ValueError, match="depth_estimator is None"):
        tiny.pipeline(depth_estimator=None).estimate_depth(photo())
    with pytest.raises(ValueError, match="base_model_id is None"):
        tiny.pipeline(transformer=None).load_base_model()


def test_relative_depth_model_is_refused():
    model = tiny.depth_model()
    model.config.depth_estimation_type = "relative"
    with pytest.raises(ValueError, match="relative disparity"):
        tiny.pipeline(depth_estimator=model).estimate_depth(photo())


# ---------------------------------------------------------------------- sizes and restoring


@pytest.mark.parametrize("size", [(50, 80), (512, 512), (3000, 4000), (40, 400), (400, 40)])
def test_working_size_keeps_aspect_and_area(size):
    height, width = size
    h, w, padded = working_size(height, width, 256 * 256, 16)
    assert w % 16 == 0 and padded % 16 == 0 and 0 <= padded - h < 16
    assert abs(h / w - height / width) <= 0.51 / w
    assert 0.7 < h * w / 256**2 < 1.4


def test_restoring_keeps_the_photo_where_nothing_changed():
    torch.manual_seed(0)
    full = torch.rand(1, 3, 96, 128)
    small = torch.nn.functional.interpolate(full, (48, 64), mode="bicubic", antialias=True).clamp(0, 1)
    restorer = DetailRestorer(PhotoRows(full[0]), small)
    assert torch.allclose(restorer(small), full, atol=1e-6)
    kernel = torch.ones(3, 1, 9, 9) / 81
    blurred = torch.nn.functional.conv2d(torch.nn.functional.pad(small, (4,) * 4, mode="replicate"), kernel, groups=3)
    half = small.clone()
    half[..., 32:] = blurred[..., 32:]
    out = restorer(half)
    assert torch.allclose(out[..., :40], full[..., :40], atol=1e-6)
    detail = lambda x: (x[..., 1:] - x[..., :-1]).abs().mean()  # noqa: E731
    assert detail(out[..., 96:]) < 0.15 * detail(full[..., 96:])


# ---------------------------------------------------------------------- saving and loading


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    pipe.generate_stack(photo(), (10,), generator=noise())
    pipe.save_pretrained(folder)
    return folder


def test_saved_folder_has_the_documented_layout(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_bokehdepth", "BokehDepthPipeline"]
    assert index["bokeh_adapter"] == ["modeling_bokeh_adapter", "BokehAdapter"]
    assert index["depth_estimator"] == ["modeling_bokehdepth", "BokehDepthAnythingForDepthEstimation"]
    assert index["text_encoder_2"] == [None, None]
    code = {path.relative_to(saved).as_posix() for path in saved.rglob("*.py")}
    assert code == {
        "pipeline.py",
        "pipeline_bokehdepth.py",
        "modeling_bokeh_adapter.py",
        "modeling_bokehdepth.py",
        "bokeh_adapter/modeling_bokeh_adapter.py",
        "depth_estimator/modeling_bokehdepth.py",
    }
    from safetensors import safe_open

    with safe_open(saved / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert not any("bokeh" in key or "processor" in key for key in file.keys())


def test_saving_leaves_the_pipeline_as_it_was(pipe, saved):
    assert pipe.bokeh_adapter.transformer is pipe.transformer


@pytest.fixture(scope="module")
def loaded(saved):
    again = BokehDepthPipeline.from_pretrained(saved)
    again.set_progress_bar_config(disable=True)
    return again


def test_round_trip_keeps_every_weight(pipe, loaded):
    for name in ("transformer", "vae", "bokeh_adapter", "depth_estimator"):
        before, after = getattr(pipe, name).state_dict(), getattr(loaded, name).state_dict()
        # The transformer that carries the adapter also shows the adapter's weights.
        before = {k: v for k, v in before.items() if ".processor." not in k}
        after = {k: v for k, v in after.items() if ".processor." not in k}
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before), name
    # Mapped weights lie at other addresses, for which some kernels round otherwise.
    wanted = pipe(photo(), (10, 20), generator=noise(), output_type="np")
    out = loaded(photo(), (10, 20), generator=noise(), output_type="np")
    np.testing.assert_allclose(out.images, wanted.images, atol=1e-4)
    np.testing.assert_allclose(out.depth_m, wanted.depth_m, rtol=1e-2)


def test_second_round_trip_gives_the_same_bits(loaded, tmp_path):
    wanted = loaded(photo(), (10, 20), generator=noise())
    loaded.save_pretrained(tmp_path)
    again = BokehDepthPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    out = again(photo(), (10, 20), generator=noise())
    assert np.array_equal(out.depth_m, wanted.depth_m)
    assert [f.tobytes() for f in out.images] == [f.tobytes() for f in wanted.images]


def test_remote_code_door_and_its_own_save(loaded, saved, tmp_path):
    """The folder as a stranger loads it, without this package; then what that pipeline saves, with the package."""
    run_remote_door(saved, tmp_path)
    image = Image.open(tmp_path / "photo.png")
    wanted = call_local(loaded, image)
    assert_same_bits(tmp_path / "out.npz", wanted)
    again = BokehDepthPipeline.from_pretrained(tmp_path / "again")
    assert np.array_equal(call_local(again, image).depth_m, wanted.depth_m)


def test_components_passed_in_and_switched_off(pipe, saved):
    other = tiny.depth_model(seed=11)
    loaded = BokehDepthPipeline.from_pretrained(saved, depth_estimator=other, transformer=None)
    assert loaded.depth_estimator is other
    assert loaded.transformer is None


def test_from_pipe_shares_weights_both_ways(pipe):
    parts = {name: getattr(pipe, name) for name in ("scheduler", "vae", "transformer")}
    kontext = FluxKontextPipeline(**parts, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None)
    made = BokehDepthPipeline.from_pipe(
        kontext,
        bokeh_adapter=pipe.bokeh_adapter,
        depth_estimator=pipe.depth_estimator,
    )
    made.set_progress_bar_config(disable=True)
    assert made.transformer is pipe.transformer
    out = made(photo(), (10,), generator=noise())
    assert np.array_equal(out.depth_m, pipe(photo(), (10,), generator=noise()).depth_m)
    back = FluxKontextPipeline.from_pipe(made)
    assert back.transformer is pipe.transformer


def test_base_is_loaded_from_its_own_folder(pipe, tmp_path):
    kontext = FluxKontextPipeline(
        scheduler=pipe.scheduler, vae=pipe.vae, transformer=copy.deepcopy(tiny.transformer()),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    kontext.save_pretrained(tmp_path / "base")
    without = tiny.pipeline(transformer=None, vae=None, scheduler=None, base_model_id=str(tmp_path / "base"))
    without.save_pretrained(tmp_path / "light")
    assert not (tmp_path / "light" / "transformer").exists()
    loaded = BokehDepthPipeline.from_pretrained(tmp_path / "light")
    loaded.load_base_model()
    loaded.set_progress_bar_config(disable=True)
    out = loaded(photo(), (10,), generator=noise(), output_type="np")
    wanted = pipe(photo(), (10,), generator=noise(), output_type="np")
    np.testing.assert_allclose(out.images, wanted.images, atol=1e-4)


def test_push_to_hub_is_refused(pipe, tmp_path):
    with pytest.raises(ValueError, match="push_to_hub"):
        pipe.save_pretrained(tmp_path, push_to_hub=True)
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------------- agreement with diffusers


def test_velocity_loop_equals_the_stock_kontext_pipeline(pipe):
    """At lambda 0 and without q/k change the loop is diffusers' own: same latents from the same noise."""
    base = tiny.pipeline(bokeh_adapter=tiny.adapter(trained=False))
    embeds, pooled = torch.randn(1, 5, 32), torch.randn(1, 24)
    size = 64
    image = photo(size, size)
    got = base.generate_stack(
        image, (20,), num_inference_steps=3, guidance_scale=2.5, generator=noise(4), prompt_embeds=embeds,
        pooled_prompt_embeds=pooled, restore=False, output_type="pt",
    ).images  # fmt: skip
    stock = FluxKontextPipeline(
        scheduler=base.scheduler, vae=base.vae, transformer=base.transformer,
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    wanted = stock(
        image=image, height=size, width=size, max_area=size * size, _auto_resize=False, num_inference_steps=3,
        guidance_scale=2.5, generator=noise(4), prompt_embeds=embeds, pooled_prompt_embeds=pooled, output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)
