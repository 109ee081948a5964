import hashlib
import json
import re

import numpy as np
import parity
import pytest
import released_layouts as layouts
import torch
from PIL import Image

import tiny
from bokehdepth.cli import main
from bokehdepth.errors import InputError
from bokehdepth.released import audit
from bokehdepth.released import pipeline as released
from bokehdepth.released.convert import convert_state
from bokehdepth.released.pipeline import (
    PLACEMENTS,
    ReleasedPipeline,
    generate_released_stack,
    made_up_camera,
    place,
    released_prompt,
    transfer_color_8bit,
)

SIZES = {"attention_head_dim": 16, "num_attention_heads": 4}
ADAPTER = {"rank": 8, "alpha": 8.0, "num_double_blocks": 2, "num_single_blocks": 3, "joint_attention_dim": 32,
           "pooled_projection_dim": 16}  # fmt: skip


def tiny_pipeline(adapter_state, transformer_state=None, vae_state=None, depth=None):
    transformer = tiny.transformer(
        **SIZES, num_single_layers=3, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6), in_channels=16
    )
    vae = tiny.autoencoder()
    if transformer_state is not None:
        transformer.load_state_dict(transformer_state)
        vae.load_state_dict(vae_state)
    adapter, _ = convert_state(adapter_state, **ADAPTER, **SIZES)
    adapter.register_to_config(max_area=64 * 64)
    parts = {"scheduler": tiny.scheduler(), "vae": vae, "transformer": transformer, "bokeh_adapter": adapter}
    text = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
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


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bokeh_strengths": (0.5, 10)}, "must be from 1 to 30"),
        ({"bokeh_strengths": (10, 45)}, "must be from 1 to 30"),
        ({"bokeh_strengths": (20, 10)}, "ascending finite"),
        ({"bokeh_strengths": (float("nan"),)}, "ascending finite"),
        ({"size_px": (8, 64)}, "must be sides of 16 px"),
        ({"prompt_embeds": torch.zeros(1, 7, 32)}, "`prompt_embeds` must have 2 rows, got 1"),
        ({"noise": torch.zeros(2, 5, 16)}, "`noise` must have the shape"),
        ({"prompt_embeds": None, "pooled_prompt_embeds": None}, "text encoders must be loaded"),
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


@pytest.mark.parametrize("preset", ["paper", "fast", "released"])
def test_pipeline_writes_k_into_the_prompt(preset, monkeypatch):
    assert released_prompt(7.125).startswith("Set dof_cond = 7.12 (stronger background defocus); preserve subject")
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
    with pytest.raises(ValueError, match="must be 0 or from 1 to 30"):
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


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_gives_the_same_bits(placement):
    frames = []
    for name in (None, placement):
        pipe = random_pipeline()
        assert place(pipe, "cpu", name) == (name or "resident")
        embeds, pooled = encoded((20,))
        frames += generate_released_stack(
            pipe, photo(), (20,), num_inference_steps=2, size_px=None, prompt_embeds=embeds,
            pooled_prompt_embeds=pooled, output_type="pt",
        ).images  # fmt: skip
    assert torch.equal(*frames)


def test_parts_are_placed_by_the_devices_free_memory(monkeypatch):
    pipe = random_pipeline(tiny.depth_model())
    sizes = [part.get_memory_footprint() for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    for room, placement in ((sum(sizes), "resident"), (sum(sizes) - 1, "offload"), (max(sizes) - 1, "stream")):
        monkeypatch.setattr(released, "free_bytes", lambda device, room=room: released._MARGIN_BYTES + room)
        assert place(random_pipeline(tiny.depth_model()), "cpu") == placement


# --- loading, auditing, the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"depth": "magic"}, "`depth` must be one of unidepth, depth_anything, got 'magic'"),
        ({"preset": "best"}, "`preset` must be one of"),
        ({"placement": "float8"}, "`placement` must be one of resident, offload, stream, got 'float8'"),
        ({"device": "mps"}, "`device` must be one that this machine has, got 'mps'"),
        ({"revisions": {"a/b": "v1"}}, "got one of a/b"),
        ({"base_model_id": "."}, "got '.', without the configuration of a FLUX transformer"),
    ],
)
def test_loading_refuses_what_it_cannot_use(change, message):
    with pytest.raises(InputError, match=message):
        released.load_released(**change)


def test_audit_tells_an_untrained_depth_model_from_a_trained_one(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "_SIDES_PX", {"depth": (56, 70)})
    state = layouts.filled(layouts.unidepth(64, 12, 32, 4, side=3), seed=2)
    torch.save(state, tmp_path / "trained.pth")
    generator = torch.Generator().manual_seed(0)
    for name in state:
        if name.endswith("k_embed.0.weight"):
            state[name] = 1.9 * torch.rand(16, 1, generator=generator) - 0.95
    torch.save(state, tmp_path / "fresh.pth")
    torch.save({name: value for name, value in state.items() if "norm.bias" not in name}, tmp_path / "hole.pth")
    trained, fresh, hole = (
        {finding.question: finding for finding in audit.audit_checkpoint(tmp_path / f"{name}.pth", dsfa_num_heads=4)}
        for name in ("trained", "fresh", "hole")
    )
    assert len(fresh) == 4 and all(finding.ok for finding in fresh.values())
    assert "untrained" in fresh["is K trained"].says and "untrained" not in trained["is K trained"].says
    values = fresh["does the stack move the depth"].values
    assert 0 < values["change, raw K"] < 0.1 * values["change, K / 30"]
    assert hole["what to pin"].ok and not hole["keys and shapes"].ok and "lacks" in hole["keys and shapes"].says


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
    assert main([*command, "--base", "x", "-o", str(tmp_path / "x")]) == 2 and not (tmp_path / "x").exists()
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
    pins = {None: "not pinned yet", commit: "pinned so already", "9" * 40: f"pinned is {'9' * 40}"}
    for pinned, words in pins.items():
        monkeypatch.setattr(audit, "REVISIONS", {"fogradio/BokehDepth": pinned})
        pin, keys, parts = audit.audit_checkpoint(folder / "bokeh_lora.bin", **ADAPTER, **SIZES)
        says = f"fogradio/BokehDepth@{commit}, {words}; bokeh_lora.bin there has SHA-256 {digest}."
        assert pin.says == says and pin.ok == (pinned in (None, commit))
        assert keys.ok and parts.says == "none stayed at zero."
    state = {name: 0 * value if "to_q_adp.up" in name else value for name, value in state.items()}
    torch.save(state, tmp_path / "blob")
    outside, _, parts = audit.audit_checkpoint(tmp_path / "blob", **ADAPTER, **SIZES)
    assert "not in the Hub's cache" in outside.says and parts.says == "to_q_adp stayed at zero."


def test_command_asks_an_adapter_on_its_base(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "_SIDES_PX", {"picture": (64, 48)})
    transformer = tiny.transformer(**SIZES, num_single_layers=3, axes_dims_rope=(4, 6, 6))
    tiny.kontext(transformer=transformer).save_pretrained(tmp_path / "base")
    torch.save(layouts.filled(layouts.adapter(blocks=5, dim=64)), tmp_path / "a.bin")
    command = ["convert", str(tmp_path / "a.bin"), "--base", str(tmp_path / "base"), "--device", "cpu", "--audit"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines if not line.startswith(" ")] == ["ok  "] * 4
    numbers = {line.split(":")[0].strip(): float(line.split(":")[1]) for line in lines[-2:]}
    assert list(numbers) == ["K sweeps, prompt held", "prompt sweeps, K held"]
    assert all(value > 0 for value in numbers.values())
