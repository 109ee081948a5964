import functools
import hashlib
import json
import re

import numpy as np
import parity
import pytest
import released_layouts as layouts
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image

import tiny
from bokehdepth import audit, released
from bokehdepth.acceleration import bake_modulation, modulation_layers
from bokehdepth.cli import main
from bokehdepth.convert import convert_state
from bokehdepth.errors import InputError
from bokehdepth.memory_plan import (
    baked_bytes,
    module_bytes,
    needed_bytes,
    plan_memory,
    store_transformer_float8,
    working_bytes,
)
from bokehdepth.released import (
    ReleasedPipeline,
    generate_released_stack,
    made_up_camera,
    released_prompt,
    transfer_color_8bit,
)

SIZES = {"attention_head_dim": 16, "num_attention_heads": 4}


def tiny_pipeline(adapter_state, transformer_state=None, vae_state=None, depth=None):
    transformer = tiny.transformer(
        **SIZES, num_single_layers=3, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6), in_channels=16
    )
    vae = tiny.autoencoder()
    if transformer_state is not None:
        transformer.load_state_dict(transformer_state)
        vae.load_state_dict(vae_state)
    adapter, _ = convert_state(
        adapter_state,
        rank=8,
        alpha=8.0,
        num_double_blocks=2,
        num_single_blocks=3,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        **SIZES,
    )
    parts = {"scheduler": tiny.scheduler(), "vae": vae, "transformer": transformer, "bokeh_adapter": adapter}
    text = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    adapter.register_to_config(max_area=64 * 64)
    pipe = ReleasedPipeline(**parts, **text, depth_estimator=depth)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_pipeline(depth=None):
    return tiny_pipeline(layouts.filled(layouts.adapter(blocks=5, dim=64, rank=8)), depth=depth)


def encoded(strengths):
    prompts = [released_prompt(k) for k in strengths]
    draws = [
        [torch.from_numpy(parity.draw(f"in:{n}:{p}").standard_normal(s, dtype=np.float32)) for p in prompts]
        for n, s in (("B.t5", (7, 32)), ("B.clip", (16,)))
    ]
    return torch.stack(draws[0]), torch.stack(draws[1])


def photo(width=137, height=101):
    values = parity.draw("in:B.image.137x101").random((height, width, 3), dtype=np.float32)
    return Image.fromarray(np.floor(values * 256).astype(np.uint8))


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["f32_k10_20_30", "f32_k0.5_10_45", "f32_k20_single", "bf16_k10_20_30"])
def test_numbers_of_the_released_generation(parity_root, group):
    arrays = np.load(parity_root / "open" / "B_stage1_generation.npz")
    keys = json.loads((parity_root / "A_tiny_keys.json").read_text())
    keys |= json.loads((parity_root / "B_tiny_vae_keys.json").read_text())
    names = ("adapter_rank8_context768_hidden64", "transformer", "vae")
    states = [{name: parity.released_weight(name, shape) for name, shape in keys[part].items()} for part in names]
    pipe = tiny_pipeline(*states)
    half = group.startswith("bf16")
    for part in (pipe.transformer, pipe.vae, pipe.bokeh_adapter) if half else ():
        part.to(torch.bfloat16)
    strengths = arrays[f"{group}/k_values"].tolist()
    embeds, pooled = encoded(strengths)
    calls, decoded = [], []
    pipe.transformer.register_forward_pre_hook(lambda m, a, k: calls.append(k), with_kwargs=True)
    decode = pipe._decode
    pipe._decode = lambda latents, *size: decoded.append(latents) or decode(latents, *size)
    images = generate_released_stack(
        pipe,
        photo(),
        strengths,
        num_inference_steps=3,
        size_px=None,
        color_transfer=False,
        clamp_strengths=True,
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        noise=torch.from_numpy(arrays[f"{group}/noise_packed"]) if half else None,
    ).images
    found = {
        "noise_packed": calls[0]["hidden_states"][:, :48],
        "reference_latents_packed": calls[0]["hidden_states"][:, 48:],
        "timestep_per_call": torch.stack([call["timestep"] for call in calls]),
        "step2_latents_in": calls[2]["hidden_states"][:, :48],
        "final_latents_packed": torch.cat(decoded),
    }
    for name, value in found.items():
        wanted = torch.from_numpy(arrays[f"{group}/{name}"]).float()
        if half:
            assert (value.float() - wanted).norm() <= 2e-2 * wanted.norm(), name
        else:
            # Phases of the timestep embedding end at 6e-5, see test_numbers_of_the_released_adapter.
            assert (value - wanted).abs().max() <= 3e-5 * wanted.abs().max(), name
    assert list(images[0].size) == arrays[f"{group}/out_size_wh"].tolist() == [128, 96]
    pictures = np.stack([np.asarray(image) for image in images])[:, ::3, ::3].astype(int)
    difference = np.abs(pictures - arrays[f"{group}/image_u8"])
    if half:  # the one worst pixel depends on how a CPU's instructions round bfloat16
        assert difference.mean() <= 1 and np.quantile(difference, 0.999) <= 8
    else:
        assert difference.max() <= 1


def test_prompt_names_k_in_two_decimals():
    assert released_prompt(7.125).startswith("Set dof_cond = 7.12 (stronger background defocus); preserve subject")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bokeh_strengths": (0.5, 10)}, "wanted values from 1 to 30"),
        ({"bokeh_strengths": (10, 45)}, "wanted values from 1 to 30"),
        ({"bokeh_strengths": (20, 10)}, "ascending finite"),
        ({"bokeh_strengths": (float("nan"),)}, "ascending finite"),
        ({"size_px": (8, 64)}, "wanted sides of 16 px"),
        ({"prompt_embeds": torch.zeros(1, 7, 32)}, "prompt_embeds has 1 rows; wanted 2"),
        ({"noise": torch.zeros(2, 5, 16)}, "noise has shape"),
        ({"prompt_embeds": None, "pooled_prompt_embeds": None}, "text encoders are None"),
    ],
)
def test_generation_refuses_what_it_cannot_use(change, message):
    embeds, pooled = encoded((10, 20))
    arguments = {"bokeh_strengths": (10, 20), "prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "size_px": None}
    with pytest.raises(InputError, match=re.escape(message)):
        generate_released_stack(random_pipeline(), photo(), num_inference_steps=1, **{**arguments, **change})


def test_color_transfer_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:64, :80]
    base = np.stack([x * 3, y * 3, 255 - x * 2], -1) + generator.integers(0, 30, (64, 80, 3))
    image, reference = base.clip(0, 255).astype(np.uint8), (base[::-1] // 2 + 40).clip(0, 255).astype(np.uint8)
    lab, wanted = (cv2.cvtColor(a, cv2.COLOR_RGB2LAB).astype(np.float64) for a in (image, reference))
    moved = (lab - lab.mean((0, 1))) / lab.std((0, 1)) * wanted.std((0, 1)) + wanted.mean((0, 1))
    expected = cv2.cvtColor(moved.clip(0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB).astype(int)
    difference = np.abs(transfer_color_8bit(image, reference).astype(int) - expected)
    assert difference.mean() < 0.5 and np.quantile(difference, 0.99) <= 3
    assert np.abs(image.astype(int) - expected).mean() > 10
    with pytest.raises(InputError, match="wanted uint8"):
        transfer_color_8bit(image / 255, reference)


@pytest.mark.parametrize("preset", ["paper", "fast", "released"])
def test_pipeline_writes_k_into_the_prompt(preset, monkeypatch):
    pipe = random_pipeline(tiny.depth_model())
    pipe.preset = preset
    asked = []
    monkeypatch.setattr(released, "encode_released_prompts", lambda p, ks: asked.append(list(ks)) or encoded(ks))
    steps = []
    pipe.transformer.register_forward_pre_hook(lambda m, a: steps.append(1))
    if preset == "released":
        monkeypatch.setitem(released.PRESETS, preset, released.Preset(2, 7.0, exact=True))
    out = pipe(photo(80, 50), (0, 10, 20))
    assert [frame.size for frame in out.images] == [(80, 50)] * 3 and out.depth_m.shape == (50, 80)
    assert out.images[0].tobytes() == photo(80, 50).tobytes()
    assert asked == [[10.0, 20.0]] and len(steps) == {"paper": 10, "fast": 5, "released": 2}[preset]
    pipe.generate_stack(photo(80, 50), (20,), num_inference_steps=1)
    assert len(asked) == 1  # kept
    first, again, other = (
        pipe.generate_stack(
            photo(80, 50),
            (20,),
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="wanted 0 or values from 1 to 30"):
        pipe.generate_stack(photo(80, 50), (0.5,))
    with pytest.raises(ValueError, match="bokehdepth convert"):
        pipe.save_pretrained("anywhere")


# --- depth with a camera ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_pipeline_reads_depth_camera_and_confidence_from_unidepth():
    state = layouts.filled(layouts.unidepth(64, 12, 32, 4, side=3), seed=2)
    model, _ = convert_state(state, dsfa_num_heads=4)
    model.config.pixels_min, model.config.pixels_max = 2000, 6000
    pipe = random_pipeline(model)
    image, stack = photo(80, 50), [photo(80, 50).rotate(180)]
    alone, both = pipe.estimate_depth(image), pipe.estimate_depth(image, stack, (1.5,))
    assert alone.depth_m.shape == alone.confidence.shape == (50, 80) and alone.intrinsics.shape == (3, 3)
    assert not np.allclose(alone.depth_m, both.depth_m, rtol=1e-4)
    camera = made_up_camera(50, 80)
    assert np.array_equal(camera, [[56, 0, 40], [0, 56, 25], [0, 0, 1]])
    given = pipe.estimate_depth(image, intrinsics=camera)
    pixels = torch.from_numpy(np.asarray(image) / 255.0).permute(2, 0, 1)[None].float()
    direct = model.infer(pixels, intrinsics=torch.tensor(camera)[None])
    np.testing.assert_allclose(given.depth_m, direct.predicted_depth[0].numpy(), rtol=1e-5)
    assert given.intrinsics is camera and not np.allclose(given.depth_m, alone.depth_m, rtol=1e-3)
    pipe.assume_camera = True
    assert np.array_equal(pipe.estimate_depth(image).depth_m, given.depth_m)
    with pytest.raises(ValueError, match="processing_resolution is 56"):
        pipe.estimate_depth(image, processing_resolution=56)
    with pytest.raises(InputError, match="width_px is 0"):
        made_up_camera(50, 0)


@torch.no_grad()
def test_numbers_of_the_released_depth_script(parity_root):
    arrays = np.load(parity_root / "open" / "E3_pipeline_stage2_vits.npz")
    model, _ = convert_state(layouts.drawn(parity_root / "E_dsfa_vits_keys.json"))
    for height, width in ((128, 160), (64, 208)):
        pixels = torch.stack(
            [torch.from_numpy(np.floor(parity.draw(f"in:E3.{name}_{height}x{width}").random(
                (height, width, 3), dtype=np.float32) * 256) / 255).permute(2, 0, 1)
             for name in ("ref", "stack0", "stack1", "stack2")]
        )  # fmt: skip
        camera = torch.tensor(made_up_camera(height, width))[None]
        seen = {}
        model.register_forward_hook(lambda m, args, out, seen=seen: seen.update(args=args, out=out))
        strengths = torch.tensor([[0.0, 10, 20, 30]])
        out = model.infer(pixels[None], strengths, camera, pad_with_black=True)
        name = f"{height}x{width}"
        np.testing.assert_allclose(seen["args"][2], arrays[f"{name}/network_K"], rtol=1e-5)
        parity.assert_stored(arrays, f"{name}/network_image", seen["args"][0][:, 0], 1e-5, by="std")
        parity.assert_stored(arrays, f"{name}/network_rays", seen["out"].rays, 1e-5, by="std")
        depth = seen["out"].predicted_depth[:, None]
        parity.assert_stored(arrays, f"{name}/network_depth", depth, 1e-3, by="std")
        if name == "128x160":  # the release crops padded photos wrongly; ours come back at the photo's size
            parity.assert_stored(arrays, f"{name}/depth_npy", out.predicted_depth[0], 1e-3, by="std")
        assert out.predicted_depth.shape == (1, height, width)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_true_sizes_and_the_plans_that_fit_them():
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
        t5 = T5EncoderModel(
            T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                     feed_forward_proj="gated-gelu")
        )  # fmt: skip
        clip = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=16,
            use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
    adapter, _ = convert_state(layouts.filled(layouts.adapter(), seed=None))
    depth, _ = convert_state(layouts.filled(layouts.unidepth(), seed=None))
    parts = {"transformer": transformer, "text_encoder_2": t5, "text_encoder": clip, "vae": vae,
             "bokeh_adapter": adapter, "depth_estimator": depth}  # fmt: skip
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert count["transformer"] == pytest.approx(11.901e9, rel=1e-4)
    modulation = sum(p.numel() for n, p in transformer.named_parameters() if ".norm" in f".{n}" and "linear" in n)
    assert modulation == pytest.approx(3.247e9, rel=1e-3)
    assert count["text_encoder_2"] == pytest.approx(4.762e9, rel=1e-3)
    assert count["text_encoder"] == pytest.approx(0.123e9, rel=1e-2)
    assert count["vae"] == pytest.approx(83.8e6, rel=1e-3)
    sizes = {name: module_bytes(part.to(torch.bfloat16)) for name, part in parts.items()}
    assert sizes["transformer"] == pytest.approx(23.80e9, rel=1e-3)
    # Section 3.9 of perf.md: weights in bfloat16 baked and in float8 baked, and what they come to with three frames.
    assert baked_bytes(transformer) == pytest.approx(17.3e9, rel=5e-3)
    assert baked_bytes(transformer) / 2 == pytest.approx(8.7e9, rel=1e-2)
    assert baked_bytes(transformer) + working_bytes(512 * 512, 3) == pytest.approx(20e9, rel=1e-2)
    assert 22e9 < baked_bytes(transformer) + working_bytes(1024 * 1024, 3) < 24.5e9
    assert baked_bytes(transformer) / 2 + working_bytes(512 * 512, 3) < 12e9
    assert baked_bytes(transformer) / 4 < 5e9
    base = sum(sizes[name] for name in ("transformer", "text_encoder_2", "text_encoder", "vae"))
    assert base == pytest.approx(33.7e9, rel=3e-3)
    work = working_bytes(512 * 512, 3)
    needed = needed_bytes(sizes, work)
    assert list(needed.values()) == sorted(needed.values(), reverse=True)
    gib = 2**30
    plans = {memory: plan_memory(sizes, memory * gib, work).name for memory in (141, 80, 48, 32, 24, 16, 12, 8)}
    assert plans == {
        141: "resident", 80: "resident", 48: "resident", 32: "offload", 24: "float8", 16: "stream", 12: "stream",
        8: "stream",
    }  # fmt: skip
    assert plan_memory(sizes, None, work).name == "resident"
    assert plan_memory(sizes, 80 * gib, work, "stream").name == "stream"
    with pytest.raises(InputError, match="device has 2.0 GB"):
        plan_memory(sizes, 2_000_000_000, work)
    with pytest.raises(InputError, match="plan is 'magic'"):
        plan_memory(sizes, None, work, "magic")
    with pytest.raises(InputError, match="wanted 'resident' on the CPU"):
        plan_memory(sizes, None, work, "offload")


def test_baking_leaves_the_bytes_that_were_counted():
    pipe = tiny.pipeline()
    counted = baked_bytes(pipe.transformer)
    bake_modulation(pipe)
    tables = sum(module_bytes(layer.linear) for layer in modulation_layers(pipe.transformer).values())
    assert module_bytes(pipe.transformer) - tables - module_bytes(pipe.transformer.time_text_embed) == counted


@torch.no_grad()
def test_float8_storage_halves_the_transformer_and_keeps_the_picture():
    pipe = random_pipeline()
    for part in (pipe.transformer, pipe.vae, pipe.bokeh_adapter):
        part.to(torch.bfloat16)
    embeds, pooled = encoded((20,))

    def run():
        return generate_released_stack(
            pipe, photo(), (20,), num_inference_steps=2, size_px=None, color_transfer=False, prompt_embeds=embeds,
            pooled_prompt_embeds=pooled, output_type="pt",
        ).images  # fmt: skip

    size, adapter = module_bytes(pipe.transformer), module_bytes(pipe.bokeh_adapter)
    before = run()
    store_transformer_float8(pipe)
    assert pipe.bokeh_adapter.is_folded and module_bytes(pipe.bokeh_adapter) == adapter
    # Attached, the transformer holds the adapter's blocks as well.
    assert module_bytes(pipe.transformer) - module_bytes(pipe.bokeh_adapter.blocks) < 0.65 * size
    assert (run() - before).abs().mean() < 0.05


# --- loading, auditing, the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"depth": "magic"}, "depth is 'magic'"),
        ({"preset": "best"}, "preset is 'best'"),
        ({"revisions": {"a/b": "v1"}}, "revisions has a/b, which is not loaded"),
        ({"base_model_id": "."}, "base_model_id is '.', without the configuration of a FLUX transformer"),
    ],
)
def test_loading_refuses_what_it_cannot_use(change, message):
    with pytest.raises(InputError, match=message):
        released.load_released(**change)


def test_audit_tells_an_untrained_file_and_how_k_reaches_the_picture(tmp_path):
    state = layouts.filled(layouts.unidepth(64, 12, 32, 4, side=3), seed=2)
    generator = torch.Generator().manual_seed(0)
    for name in state:
        if name.endswith("k_embed.0.weight"):
            state[name] = 1.9 * torch.rand(16, 1, generator=generator) - 0.95
    torch.save(state, tmp_path / "fresh.pth")
    findings = audit.audit_checkpoint(tmp_path / "fresh.pth", size_px=(56, 70), dsfa_num_heads=4)
    assert all(finding.ok and finding.asked for finding in findings) and len(findings) == 6
    says = {finding.question: finding.says for finding in findings}
    assert "never to have been trained" in says["is K trained"]
    values = next(finding.values for finding in findings if "stack" in finding.question)
    assert values["noise, raw K"] < 0.1 * values["noise, K / 30"]
    torch.save({name: value for name, value in state.items() if "norm.bias" not in name}, tmp_path / "hole.pth")
    pin, first = audit.audit_checkpoint(tmp_path / "hole.pth", size_px=(56, 70), dsfa_num_heads=4)
    assert pin.ok and not first.ok and "lacks" in first.says
    found = audit.audit_generation(random_pipeline(), photo(), encoded, num_inference_steps=2, size_px=(64, 48))
    assert set(found.values) == {"K sweeps, prompt held", "prompt sweeps, K held", "K = 1 against no bokeh branch"}
    assert all(value > 0.1 for value in found.values.values())


def test_command_converts_and_audits(tmp_path, capsys):
    state = layouts.filled(layouts.depth_anything(dim=64, blocks=12, features=8, outs=(4, 6, 8, 8), side=3), seed=2)
    torch.save(state, tmp_path / "w.pth")
    command = ["convert", str(tmp_path / "w.pth"), "--dsfa-heads", "4"]
    assert main([*command, "-o", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert "307 tensors" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists() and (tmp_path / "out" / "conversion.json").exists()
    assert main([*command, "-o", str(tmp_path / "out")]) == 2
    assert main(command) == 2
    assert main([*command, "--audit", "-o", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
    capsys.readouterr()
    torch.save({**state, "pretrained.odd": torch.ones(1)}, tmp_path / "odd.pth")
    assert main(["convert", str(tmp_path / "odd.pth"), "--audit", "--json"]) == 1
    pin, keys = json.loads(capsys.readouterr().out)["findings"]
    assert pin["ok"] is True and keys["ok"] is False


def test_audit_prints_what_to_pin(tmp_path, monkeypatch):
    commit, state = "0123456789" * 4, layouts.filled(layouts.adapter(blocks=5, dim=64, rank=8))
    folder = tmp_path / "models--fogradio--BokehDepth" / "snapshots" / commit
    folder.mkdir(parents=True)
    torch.save(state, tmp_path / "blob")
    (folder / "bokeh_lora.bin").symlink_to(tmp_path / "blob")
    digest = hashlib.sha256((tmp_path / "blob").read_bytes()).hexdigest()
    sizes = {"rank": 8, "alpha": 8.0, "num_double_blocks": 2, "num_single_blocks": 3, "joint_attention_dim": 32,
             "pooled_projection_dim": 16, **SIZES}  # fmt: skip
    pins = {None: "not pinned yet", commit: "pinned so already", "9" * 40: f"pinned is {'9' * 40}"}
    for pinned, words in pins.items():
        monkeypatch.setattr(audit, "REVISIONS", {"fogradio/BokehDepth": pinned})
        pin, keys, parts, unasked = audit.audit_checkpoint(folder / "bokeh_lora.bin", **sizes)
        says = f"fogradio/BokehDepth@{commit}, {words}; bokeh_lora.bin there has SHA-256 {digest}."
        assert pin.says == says and pin.ok == (pinned in (None, commit))
        assert keys.ok and parts.ok and not unasked.asked and "needs a base" in unasked.says
    outside = audit.audit_checkpoint(tmp_path / "blob", **sizes)[0]
    assert f"blob has SHA-256 {digest}; it is not in the Hub's cache" in outside.says


def test_command_asks_an_adapter_on_its_base(tmp_path, capsys, monkeypatch):
    transformer = tiny.transformer(**SIZES, num_single_layers=3, axes_dims_rope=(4, 6, 6))
    tiny.kontext(transformer=transformer).save_pretrained(tmp_path / "base")
    torch.save(layouts.filled(layouts.adapter(blocks=5, dim=64)), tmp_path / "a.bin")
    small = functools.partial(audit.audit_adapter, num_inference_steps=1, size_px=(64, 48))
    monkeypatch.setattr(audit, "audit_adapter", small)
    command = ["convert", str(tmp_path / "a.bin"), "--base", str(tmp_path / "base"), "--device", "cpu"]
    assert main([*command, "--audit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines if not line.startswith(" ")] == ["ok  "] * 4
    numbers = {line.split(":")[0].strip(): float(line.split(":")[1]) for line in lines[-3:]}
    assert list(numbers) == ["K sweeps, prompt held", "prompt sweeps, K held", "K = 1 against no bokeh branch"]
    assert all(value > 0 for value in numbers.values())
    assert main([*command, "-o", str(tmp_path / "out")]) == 2
    assert "--base is" in capsys.readouterr().err and not (tmp_path / "out").exists()
    torch.save(layouts.filled(layouts.unidepth(64, 12, 32, 4, side=3, dsfa=False)), tmp_path / "d.pth")
    with pytest.raises(InputError, match="no adapter; wanted one, which has a base"):
        audit.audit_adapter(tmp_path / "d.pth", tmp_path / "base")
