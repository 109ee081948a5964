"""Training on manifests: what is read, where K goes under crops, both stages, captions, stacks of whole data sets."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab

import tiny
from bokehdepth.camera.lens import blur_radius_px
from bokehdepth.errors import InputError
from bokehdepth.manifest import CameraAnns, Intrinsics, ManifestRow, StackFrame, read_manifest, write_manifest
from bokehdepth.rendering.refocus import render_from_depth
from train import grounded, rows, stacks, stage1, stage2
from train.config import ManifestConfig, PhaseConfig, Stage1Config, Stage2Config, load
from train.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = Path(__file__).resolve().parents[1] / "train/configs"
FOCUS_M = 1.5


def picture(height, width, seed):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A manifest of every kind of row, 80 x 96 px to 128 x 64 px, with true renders as captured targets."""
    folder, made = tmp_path_factory.mktemp("rows"), []
    for number, (height, width) in enumerate([(80, 96), (96, 80), (64, 128), (80, 96)]):
        name = f"r{number}"
        photo = picture(height, width, number)
        depth = np.full((height, width), 3.0, np.float32)
        depth[:, : width // 2] = FOCUS_M
        photo.save(folder / f"{name}.png")
        stored = depth * 1000
        stored[:2, :2] = 0  # a hole
        np.save(folder / f"{name}.npy", stored)
        Image.fromarray((depth == FOCUS_M).astype(np.uint8) * 255).save(folder / f"{name}_mask.png")
        array = np.asarray(photo, np.float32) / 255
        frames = []
        for k in (10.0, 20.0):
            frame = Image.fromarray(np.round(render_from_depth(array, depth, k, FOCUS_M) * 255).astype(np.uint8))
            frame.save(folder / f"{name}_k{k:g}.png")
            frames.append(StackFrame(folder / f"{name}_k{k:g}.png", k))
        made.append(
            ManifestRow(
                row_id=name,
                scene=name,
                image_path=folder / f"{name}.png",
                target_path=folder / f"{name}_k20.png" if number != 3 else None,
                depth_path=folder / f"{name}.npy" if number != 1 else None,
                depth_unit="m" if number != 1 else None,
                depth_scale=0.001 if number != 1 else None,
                mask_path=folder / f"{name}_mask.png" if number != 1 else None,
                captions=(f"scene {number}", "a scene"),
                strength_unit="metric",
                camera_anns=CameraAnns(bokeh_strength=20.0) if number != 3 else None,
                stack=tuple(frames),
                intrinsics=Intrinsics(100.0, 110.0, width / 2 + 3, height / 2),
            )
        )
    write_manifest(folder / "all.jsonl", made)
    write_manifest(folder / "depth.jsonl", [row for row in made if row.depth_path])
    return folder


def stage1_config(home, *changes):
    cfg = load(Stage1Config, CONFIGS / "stage1_debug.yaml", ["pool=null", "manifests={files: [x]}", *changes])
    return replace(cfg, manifests=replace(cfg.manifests, files=[str(home / "all.jsonl")], renders=1))


def stage2_config(home, *changes):
    cfg = load(Stage2Config, CONFIGS / "stage2_debug.yaml", ["pool=null", "manifests={files: [x]}", *changes])
    return replace(cfg, manifests=ManifestConfig([str(home / "depth.jsonl")]))


def test_pairs_are_loaded_and_their_strength_follows_the_crop(home):
    cfg = stage1_config(home, "text_to_image=0", "manifests.rendered_share=0")
    source = rows.RowPairs(cfg, None)
    phase = cfg.phases[0]
    seen = {}
    for step in range(30):
        batch = source(step, phase, np.arange(2))
        for image, target, k in zip(batch["image"], batch["target"], batch["strength"], strict=True):
            seen[round(k.item(), 3)] = (image, target)
    # Captured: 96 px wide cut to 80 (K = 24), 80 px wide kept (20); 128 cut to 64 (K = 40) is left out.
    assert {24.0, 20.0} <= seen.keys() and 40.0 not in seen
    for k, number, left, width in ((24.0, 0, 8, 80), (20.0, 1, 0, 80)):
        top = 0 if number == 0 else 8
        box = (left, top, left + width, top + 80)
        for got, suffix in zip(seen[k], ("", "_k20"), strict=True):
            with Image.open(home / f"r{number}{suffix}.png") as image:
                wanted = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1)[None].float() / 255
            wanted = rows.resize(wanted, 64, 64)[0]
            assert torch.equal(got, wanted) or torch.equal(got, wanted.flip(-1))


def test_the_strength_of_a_crop_gives_the_same_blur():
    crop = rows.centre_crop((80, 96), (64, 64))
    assert (crop.width, crop.height, crop.left) == (80, 80, 8)
    whole = blur_radius_px(20.0, 1.0, 3.0, 96)  # px of the photo
    part = blur_radius_px(crop.strength(20.0, 96), 1.0, 3.0, 64)  # px of the resized crop
    assert part == pytest.approx(whole * 64 / 80)


def test_rows_are_rendered_at_the_strength_they_state(home):
    cfg = stage1_config(home, "text_to_image=0", "manifests.rendered_share=1")
    source = rows.RowPairs(cfg, None)
    row = source.rows[3]
    crop = rows.centre_crop((80, 96), (64, 64))
    sample = source._sample(3, (64, 64), np.random.default_rng(0), False, None)
    sharp = crop.of(rows.load_picture(row.image_path))[0].permute(1, 2, 0).contiguous().numpy()
    depth = rows.fill_holes(crop.of_depth(rows.read_depth(row)))
    assert np.isnan(rows.read_depth(row)[0, 0]) and np.isfinite(depth).all() and set(np.unique(depth)) == {1.5, 3.0}
    wanted = render_from_depth(sharp, depth, sample["strength"].item(), FOCUS_M)
    target = sample["target"].permute(1, 2, 0).numpy()
    assert np.array_equal(target, wanted) or np.array_equal(target, wanted[:, ::-1])
    assert np.abs(target - sharp).max() > 0.05


def test_text_steps_take_photos_and_groups_and_captions(home, tmp_path):
    cfg = stage1_config(home, "text_to_image=1", "prompts.caption_dropout=0.3", "grounded_share=1")
    prompts = Prompts(str(tmp_path), "a base", 3)
    texts = prompts.missing([text for row in rows.load_rows(cfg.manifests) for text in row.captions])
    assert texts[:2] == [None, ""] and set(texts[2:]) == {"a scene", *(f"scene {n}" for n in range(4))}
    codes = {text: float(number) for number, text in enumerate(texts)}
    named = {stage1.Prompts.__init__.__globals__["DEFAULT_PROMPT"] if t is None else t: v for t, v in codes.items()}
    prompts.fill(texts, lambda text: (torch.full((3, 16), named[text]), torch.full((16,), named[text])))
    assert prompts.missing(["a scene"]) == []
    source, seen, kinds = rows.RowPairs(cfg, prompts), set(), set()
    for step in range(24):
        batch = source(step, cfg.phases[0], np.arange(4))
        group = bool((batch["pivot_rows"] != torch.arange(4)).any())
        kinds.add(group)
        if group:
            assert batch["pivot_rows"].tolist() == [0, 0, 2, 2] and batch["strength"][::2].eq(0).all()
            assert torch.equal(batch["prompt_embeds"][0], batch["prompt_embeds"][1])
            assert torch.equal(batch["image"][0], batch["image"][1]) and batch["seed"][0] == batch["seed"][1]
        else:
            assert torch.equal(batch["image"], batch["target"])
        seen |= set(batch["pooled_prompt_embeds"][:, 0].tolist())
    assert kinds == {True, False} and codes[None] not in seen
    assert {codes[""], codes["a scene"], codes["scene 0"]} <= seen
    with pytest.raises(InputError, match="'unknown'"):
        prompts.look_up("unknown")


def test_buckets_keep_the_aspect_and_the_area(home):
    sizes = rows.bucket_sizes(512)
    assert (512, 512) in sizes and all(h % 16 == 0 and w % 16 == 0 for h, w in sizes)
    assert all(abs(h * w / 512**2 - 1) < 0.03 and 0.5 <= h / w <= 2 for h, w in sizes)
    assert rows.nearest_bucket((1080, 1920), sizes) == min(
        sizes, key=lambda b: abs(math.log(b[1] / b[0] * 1080 / 1920))
    )
    cfg = stage1_config(home, "text_to_image=0")
    phase = PhaseConfig(64, 2, 4, 1e-3, buckets=True)
    source = rows.RowPairs(replace(cfg, phases=[phase]), None)
    shapes = {tuple(source(step, phase, np.arange(2))["image"].shape[-2:]) for step in range(12)}
    assert len(shapes) >= 2 and shapes <= set(rows.bucket_sizes(64))


def test_stage1_trains_on_rows_in_both_phases(home, tmp_path):
    cfg = stage1_config(
        home, f"output={tmp_path}/one", "loop={log_every: 1, save_every: 4, sample_every: 4, workers: 1}"
    )
    phases = [PhaseConfig(64, 2, 2, 1e-3), PhaseConfig(64, 2, 2, 1e-3, buckets=True, text_to_image=0.0)]
    model = stage1.run(replace(cfg, phases=phases))
    lines = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert [sorted(set(line) & {"image_to_image", "text_to_image"}) for line in lines[:4]] == [
        ["image_to_image"],
        ["text_to_image"],
        ["image_to_image"],
        ["image_to_image"],
    ]
    assert (model / "bokeh_adapter").is_dir() and "response_k10" in lines[-1]


def test_rows_that_cannot_be_used_are_refused_by_name(home, tmp_path):
    base = read_manifest(home / "all.jsonl")
    relative = replace(base[1], strength_unit="relative", row_id="rel", stack=())
    for name, wanted_rows, kind, words in (
        ("mixed", [base[0], relative], stage1_config, "metric and relative K"),
        ("split", [replace(base[0], split="test")], stage1_config, "no row of splits"),
        ("nothing", [replace(base[1], target_path=None, camera_anns=None, stack=())], stage1_config, "neither pairs"),
        ("odd", [replace(base[0], target_path=home / "r1.png")], stage1_config, "differ in size"),
        ("plain", [base[1]], stage2_config, "no row with a depth"),
        ("bare", [replace(base[0], stack=())], stage2_config, "r0 has no stack"),
        ("wide", [base[2]], stage2_config, "K is above 30 after any square crop"),
    ):
        (home / f"{name}.jsonl").unlink(missing_ok=True)
        write_manifest(home / f"{name}.jsonl", wanted_rows)
        cfg = kind(home, "text_to_image=0") if kind is stage1_config else kind(home, "stack=stage1")
        cfg = replace(cfg, manifests=replace(cfg.manifests, files=[str(home / f"{name}.jsonl")]))
        with pytest.raises(InputError, match=words):
            rows.RowPairs(cfg, None) if kind is stage1_config else rows.RowStacks(cfg)
    cfg = stage1_config(home, "text_to_image=0.5")
    with pytest.raises(InputError, match="batch is 3"):
        rows.RowPairs(replace(cfg, phases=[replace(cfg.phases[0], batch=3)]), None)


def stage2_rows(home, stack, **augment):
    cfg = stage2_config(home, f"stack={stack}")
    cfg = replace(cfg, augment=replace(cfg.augment, frames=1, **augment))
    return cfg, rows.RowStacks(cfg)


def test_crops_of_stacks_carry_strength_depth_and_intrinsics(home):
    cfg, source = stage2_rows(home, "stage1", crop=0.5, gain=0.0, white_balance=0.0, strength_jitter=0.0)
    row = source.rows[0]
    widths = set()
    for seed in range(12):
        sample = source._sample(row, np.random.default_rng(seed))
        k = sample["strength"].item()
        fx, fy = sample["intrinsics"][0, 0].item(), sample["intrinsics"][1, 1].item()
        side = round(100 * 56 / fx)
        widths.add(side)
        assert k <= 30 and any(k == pytest.approx(frame.bokeh_strength * 96 / side) for frame in row.stack)
        assert fy / fx == pytest.approx(1.1)
        # A point of the photo is where the crop's own geometry puts it: the two depths meet in the photo's middle.
        where = (sample["depth_m"][0, 28] == FOCUS_M).float()
        edge = (where[1:] != where[:-1]).nonzero().flatten()
        if len(edge) == 1:
            cx = sample["intrinsics"][0, 2].item()
            meets = edge.item() + 1
            assert abs(abs(meets - cx) - 3 * 56 / side) < 1.01
        assert sample["valid"].float().mean() > 0.9
    assert len(widths) > 3


def test_all_frames_get_the_same_light(home):
    _, source = stage2_rows(home, "sharp", gain=0.3)
    sample = source._sample(source.rows[0], np.random.default_rng(4))
    assert torch.equal(sample["bokeh"][0], sample["image"])
    _, plain = stage2_rows(home, "sharp", gain=0.0, white_balance=0.0)
    before = plain._sample(plain.rows[0], np.random.default_rng(4))["image"]
    ratio = (sample["image"] / before)[:, (before > 0.2).all(0) & (sample["image"] < 1).all(0)]
    assert (ratio.std(1) < 1e-3).all() and not torch.allclose(ratio.mean(1), torch.ones(3), atol=0.01)


def test_controls_draw_the_same_rows_and_crops(home):
    batches = {}
    for stack in ("stage1", "sharp", "none", "renderer"):
        cfg, source = stage2_rows(home, stack, crop=0.7)
        batches[stack] = source(5, PhaseConfig(56, 3, 1, 0.0), np.arange(3))
    for stack in ("sharp", "none", "renderer"):
        for name in ("image", "depth_m", "valid", "intrinsics"):
            assert torch.equal(batches[stack][name], batches["stage1"][name]), (stack, name)
    assert torch.equal(batches["sharp"]["strength"], batches["stage1"]["strength"])
    assert not torch.equal(batches["sharp"]["bokeh"], batches["stage1"]["bokeh"])


@pytest.mark.parametrize("stack", ["stage1", "renderer"])
def test_stage2_trains_on_rows(home, tmp_path, stack):
    cfg = stage2_config(home, f"stack={stack}", f"output={tmp_path}", "steps=2")
    cfg = replace(cfg, augment=replace(cfg.augment, frames=1), loop=replace(cfg.loop, log_every=1))
    model = stage2.run(cfg)
    settings = json.loads((model / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 56, "width": 56} and settings["ensure_multiple_of"] == 14
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_stacks_of_a_data_set_survive_a_bad_photo_and_go_on(home, tmp_path):
    made = read_manifest(home / "all.jsonl")[:3]
    kept = [replace(row, stack=(), depth_path=None, depth_unit=None, depth_scale=None, mask_path=None, captions=(),
                    target_path=None, camera_anns=None, strength_unit=None) for row in made]  # fmt: skip
    for number, row in enumerate(kept):
        (tmp_path / f"{number}.png").write_bytes(row.image_path.read_bytes())
        kept[number] = replace(row, image_path=tmp_path / f"{number}.png")
    write_manifest(tmp_path / "photos.jsonl", kept)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    pipe, settings = tiny.pipeline(), {"seed": 3, "model": "tiny"}
    options = {"num_inference_steps": 1, "max_area": 64 * 64}
    count = stacks.stack_manifest(pipe, tmp_path / "photos.jsonl", "made", (5.0, 25.0), settings, **options)
    assert count == (2, 1)
    failed = [json.loads(line) for line in (tmp_path / "made" / "failures_0.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in failed] == ["r1"]
    again = read_manifest(tmp_path / "made.jsonl")
    assert [[f.bokeh_strength for f in row.stack] for row in again] == [[5.0, 25.0]] * 2
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "made").rglob("*.png")}
    (tmp_path / "1.png").write_bytes(whole)
    assert stacks.stack_manifest(pipe, tmp_path / "photos.jsonl", "made", (5.0, 25.0), settings, **options) == (3, 0)
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())  # what is complete is not made again
    assert not (tmp_path / "made" / "failures_0.jsonl").exists()
    assert [row.row_id for row in read_manifest(tmp_path / "made.jsonl")] == ["r0", "r1", "r2"]
    with pytest.raises(InputError, match="seed is 4"):
        stacks.stack_manifest(pipe, tmp_path / "photos.jsonl", "made", (5.0, 25.0), {**settings, "seed": 4}, **options)
    with pytest.raises(InputError, match="wanted a plain name"):
        stacks.stack_manifest(pipe, tmp_path / "photos.jsonl", "../up", (5.0, 25.0), settings, **options)


def test_scenes_from_text_follow_their_pivot():
    """Grounded frames take the pivot's colours, and lie nearer to it than frames generated apart."""
    pipe = tiny.pipeline(transformer=tiny.transformer())
    ks = (0.0, 10.0, 30.0)

    def scene(**changes):
        source = torch.Generator().manual_seed(2)
        return grounded.generate_scene(pipe, None, ks, height=64, width=64, steps=2, generator=source, **changes)

    apart, held = scene(grounded=False, transfer=False), scene(transfer=False)
    assert apart.shape == (3, 64, 64, 3)
    np.testing.assert_allclose(held[0], apart[0], atol=2e-5)  # the pivot itself is generated as ever
    assert np.abs(held[2] - apart[2]).max() > 1e-4
    coloured = scene()
    np.testing.assert_allclose(coloured[2], grounded.color_transfer(held[2], held[0]), atol=1e-6)
    held_lab, lab = (rgb2lab(frame.astype(np.float64)) for frame in (held[0], coloured[2]))
    np.testing.assert_allclose(lab.mean((0, 1)), held_lab.mean((0, 1)), atol=2)  # but for what leaves the gamut
    assert np.array_equal(coloured[0], held[0])
    for wrong, words in (({"pivot": 3}, "pivot is 3"), ({"height": 60}, "height is 60")):
        with pytest.raises(InputError, match=words):
            grounded.generate_scene(pipe, None, ks, **{"height": 64, "width": 64, **wrong})


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    """A Flux Kontext pipeline of tiny true classes on disk, text encoders and tokenizers included."""
    from diffusers import FluxKontextPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

    torch.manual_seed(0)
    letters = [chr(code) for code in range(97, 123)] + list("0123456789")
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    end = {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 77}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *((c, -2.0) for c in letters)]
    clip = CLIPTextConfig(vocab_size=len(words), hidden_size=24, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, projection_dim=24, bos_token_id=0, eos_token_id=1)  # fmt: skip
    t5 = T5Config(vocab_size=len(pieces), d_model=32, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    base = FluxKontextPipeline(
        scheduler=tiny.scheduler(),
        vae=tiny.autoencoder(),
        transformer=tiny.transformer(),
        text_encoder=CLIPTextModel(clip),
        tokenizer=CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], **end),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=T5TokenizerFast(vocab=pieces, model_max_length=512),
    )
    folder = tmp_path_factory.mktemp("kontext")
    base.save_pretrained(folder)
    return folder


def test_an_adapter_is_trained_on_a_saved_base_with_its_captions_and_published_alone(home, kontext, tmp_path):
    from bokehdepth.hub import load_pipeline
    from train import publish

    base = json.dumps({"kind": "flux", "path": str(kontext)})
    card = json.dumps({"title": "A", "license": "apache-2.0", "license_link": "x", "summary": "s",
                       "training_data": "d", "limits": "l", "licences": "c"})  # fmt: skip
    cfg = stage1_config(
        home, f"base={base}", f"prompts={{cache: {tmp_path}/prompts, tokens: 6}}", f"output={tmp_path}/run",
        "phases=[{size_px: 64, batch: 2, steps: 2, learning_rate: 1e-2}]", f"card={card}",
        "loop={log_every: 1, precision: bf16, gradient_checkpointing: true}",
    )  # fmt: skip
    model = stage1.run(cfg)
    assert len(list((tmp_path / "prompts").iterdir())) == 2 + 5
    index = json.loads((model / "model_index.json").read_text())
    assert index["transformer"] == [None, None] and index["base_model_id"] == str(kontext)
    assert not (model / "transformer").exists()
    pipe = load_pipeline(model)  # the base comes from where it is named; no text encoder is loaded
    assert pipe.text_encoder is None and pipe.bokeh_adapter.prompt_embeds.shape == (6, 32)
    assert pipe.bokeh_adapter.prompt_embeds.abs().sum() > 0
    photo = rows.load_picture(home / "r0.png")[0]
    assert pipe.generate_stack(photo, (9.0,), num_inference_steps=1, output_type="np").images.shape == (1, 80, 96, 3)
    publish.push(cfg, model, "user/adapter", "python -m train.stage1", dry_run=True)
    cfg = stage1_config(home, f"prompts={{cache: {tmp_path}/other, tokens: 6}}")
    with pytest.raises(InputError, match="wanted a base that encodes"):
        stage1.run(cfg)


def test_a_depth_model_of_a_run_can_be_published(home, tmp_path):
    from train import publish

    card = json.dumps({"title": "A", "license": "apache-2.0", "license_link": "x", "summary": "s",
                       "training_data": "d", "limits": "l", "licences": "c"})  # fmt: skip
    cfg = stage2_config(home, "stack=sharp", f"output={tmp_path}", "steps=1", f"card={card}", "loop={log_every: 1}")
    cfg = replace(cfg, augment=replace(cfg.augment, frames=1))
    publish.push(cfg, stage2.run(cfg), "user/depth", "python -m train.stage2", dry_run=True)


def test_the_other_backbone_of_the_house_trains_too(home, tmp_path):
    """UniDepthV2 from a folder: with intrinsics its camera and confidence have no say, and are left alone."""
    from bokehdepth.modeling_bokehdepth_unidepth import BokehDepthUniDepthConfig, BokehDepthUniDepthForDepthEstimation

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "out_indices": (1, 2, 3, 4),
             "decoder_hidden_size": 32, "decoder_out_channels": 8, "decoder_num_heads": 2, "decoder_depths": (1, 1, 1),
             "image_size": 56, "dsfa_num_heads": 2}  # fmt: skip
    before = BokehDepthUniDepthForDepthEstimation(BokehDepthUniDepthConfig(**sizes))
    before.save_pretrained(tmp_path / "base")
    cfg = stage2_config(home, "stack=stage1", f"output={tmp_path}/run", "steps=1", "loop={ema_decay: 0}")
    base = replace(cfg.base, path=str(tmp_path / "base"), backbone={}, model={})
    cfg = replace(cfg, base=base, augment=replace(cfg.augment, frames=1))
    after = BokehDepthUniDepthForDepthEstimation.from_pretrained(stage2.run(cfg))
    moved = {
        name
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert any(name.startswith("dsfa.") for name in moved) and any("depth_layer" in name for name in moved)
    assert not any("camera_layer" in name or "confidence" in name for name in moved)
