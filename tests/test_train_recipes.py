"""Stage-2's published recipes: the losses against their authors' code, and what the configurations train."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForDepthEstimation, DepthAnythingConfig, DepthAnythingForDepthEstimation

import tiny
from bokehdepth.errors import InputError
from bokehdepth.manifest import Intrinsics, ManifestRow, StackFrame, write_manifest
from bokehdepth.modeling_bokehdepth_unidepth import BokehDepthUniDepthConfig, BokehDepthUniDepthForDepthEstimation
from train import losses, stage2, unidepth_losses
from train.config import PhaseConfig, Stage2Config, load
from train.rows import RowStacks

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = Path(__file__).resolve().parents[1] / "train/configs"
SIDE = 70


@pytest.fixture(scope="module")
def example():
    """Two pictures of 70 x 84 px by formulas alone, so that the figures of other code on them can be taken again."""
    y, x = torch.meshgrid(torch.arange(70.0).double(), torch.arange(84.0).double(), indexing="ij")
    truth = torch.stack([2 + (x / 9).sin() + 0.02 * y, 5 + 2 * (y / 7).cos() + 0.01 * x])
    depth = truth * torch.stack([1.15 + 0.1 * (y / 5).sin(), 0.8 + 0.1 * (x / 6).cos()])
    valid = torch.stack([(x + 2 * y) % 7 != 0, (3 * x + y) % 11 != 0])
    image = torch.stack(
        [torch.stack([(x * (c + 1) / 8).sin() * (y * (b + 1) / 6).cos() for c in range(3)]) for b in range(2)]
    )
    confidence = torch.stack([0.2 + 0.1 * (x / 4).sin(), 0.5 + 0.2 * (y / 4).cos()])
    return {
        "depth": depth.float(),
        "truth": truth.float(),
        "valid": valid,
        "image": (image / 2 + 0.5).float(),
        "confidence": confidence.float(),
    }


# ---------------------------------------------------------------------- losses


def test_pooled_over_two_pictures_by_hand():
    """One picture too far by e^0.2, one too near by e^-0.1: roots of halves apart, one root of both together."""
    target = torch.rand(2, 5, 7) + 1
    prediction = target * torch.tensor([0.2, -0.1]).exp()[:, None, None]
    loss = lambda **options: losses.scale_invariant_log_loss(prediction, target, 0.5, **options).item()  # noqa: E731
    assert loss() == pytest.approx((0.2 + 0.1) / 2 * math.sqrt(0.5), rel=1e-5)
    mean, square = (0.2 - 0.1) / 2, (0.2**2 + 0.1**2) / 2
    assert loss(pooled_pictures=2) == pytest.approx(math.sqrt(square - 0.5 * mean**2), rel=1e-5)
    # Pictures count by their valid pixels, and one without any not at all.
    valid = torch.zeros(2, 5, 7, dtype=torch.bool)
    valid[0, 0] = True
    assert loss(valid=valid, pooled_pictures=2) == pytest.approx(0.2 * math.sqrt(0.5), rel=1e-5)


def test_pooled_loss_is_that_of_depth_anything_v2(example):
    """`SiLogLoss` of metric_depth/util/loss.py gives 0.198016, and 0.117711 and 0.177807 for the pictures apart."""
    parts = (example[name] for name in ("depth", "truth"))
    loss = losses.scale_invariant_log_loss(*parts, 0.5, example["valid"], pooled_pictures=2)
    assert loss.item() == pytest.approx(0.198016, abs=2e-6)
    parts = (example[name] for name in ("depth", "truth"))
    apart = losses.scale_invariant_log_loss(*parts, 0.5, example["valid"])
    assert apart.item() == pytest.approx((0.117711 + 0.177807) / 2, abs=2e-6)


def test_losses_are_those_of_unidepth(example):
    """Figures of `Regression`, `Confidence` and the two halves of `EdgeGuidedLocalSSI` of unidepth/ops/losses."""
    camera = torch.tensor([[[60.0, 0, 40], [0, 66, 33], [0, 0, 1]], [[72.0, 0, 40], [0, 66, 33], [0, 0, 1]]])
    true_camera = torch.tensor([[[70.0, 0, 42], [0, 70, 35], [0, 0, 1]]]).expand(2, -1, -1)
    close = {"rtol": 0, "atol": 6e-5}
    rays = unidepth_losses.ray_error(camera, true_camera, 70, 84)
    torch.testing.assert_close(rays, torch.tensor([0.0361, 0.0246]), **close)
    torch.testing.assert_close(unidepth_losses.ray_error(camera, camera, 70, 84), torch.full((2,), 0.01))
    known = (example[name] for name in ("confidence", "depth", "truth", "valid"))
    torch.testing.assert_close(unidepth_losses.confidence_error(*known), torch.tensor([1.3417, 1.0892]), **close)
    rows, columns = unidepth_losses.strong_edges(example["image"])
    places = [sorted(zip(r.tolist(), c.tolist(), strict=True)) for r, c in zip(rows, columns, strict=True)]
    assert places == [[(21, 35), (21, 49), (21, 77)], [(63, 7), (63, 21), (63, 63)]]
    known = (example[name] for name in ("depth", "truth", "valid", "image"))
    halves = (torch.tensor([0.4668, 0.5189]) + torch.tensor([0.4836, 0.6006])) / 2
    torch.testing.assert_close(unidepth_losses.edge_guided_error(*known), halves, **close)


def test_holes_have_no_say_in_unidepths_losses(example):
    """Values where nothing is known may be anything; a picture without any is finite, and so is its gradient."""
    truth, valid = example["truth"].clone(), example["valid"].clone()
    valid[1] = False
    found = []
    for hole in (0.0, float("nan"), float("inf")):
        truth[~valid] = hole
        depth = example["depth"].clone().requires_grad_()
        edge = unidepth_losses.edge_guided_error(depth, truth, valid, example["image"])
        confidence = unidepth_losses.confidence_error(example["confidence"], depth, truth, valid)
        (edge.sum() + confidence.sum()).backward()
        assert depth.grad.isfinite().all() and depth.grad[0].any()
        found.append(torch.cat([edge, confidence]).detach())
    assert found[0].isfinite().all() and torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# ---------------------------------------------------------------------- configurations


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Four landscape photos with depth, a stack and intrinsics (all.jsonl), one of them without (some.jsonl)."""
    folder, made = tmp_path_factory.mktemp("recipes"), []
    for number in range(4):
        rng = np.random.default_rng(number)
        photo = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).resize((96, 80))
        photo.save(folder / f"{number}.png")
        np.save(folder / f"{number}.npy", rng.uniform(1, 4, (80, 96)).astype(np.float32))
        frames = tuple(StackFrame(folder / f"{number}.png", k) for k in (7.5, 15.0))
        made.append(
            ManifestRow(
                row_id=f"r{number}",
                scene=f"r{number}",
                image_path=folder / f"{number}.png",
                depth_path=folder / f"{number}.npy",
                depth_unit="m",
                strength_unit="metric",
                stack=frames,
                intrinsics=Intrinsics(90.0, 90.0, 48.0, 40.0),
            )
        )
    write_manifest(folder / "all.jsonl", made)
    write_manifest(folder / "some.jsonl", [*made[:2], replace(made[2], intrinsics=None), made[3]])
    torch.manual_seed(0)
    settings = tiny.depth_model().config.to_dict()
    unwanted = ("model_type", "depth_estimation_type", "max_depth")
    known = {k: v for k, v in settings.items() if k in DepthAnythingConfig.__dataclass_fields__ and k not in unwanted}
    relative = DepthAnythingForDepthEstimation(DepthAnythingConfig(**known, depth_estimation_type="relative"))
    relative.save_pretrained(folder / "relative")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "out_indices": (1, 2, 3, 4),
             "decoder_hidden_size": 32, "decoder_out_channels": 8, "decoder_num_heads": 2, "decoder_depths": (1, 1, 1),
             "image_size": 56, "initializer_range": 0.2}  # fmt: skip
    unidepth = BokehDepthUniDepthForDepthEstimation(BokehDepthUniDepthConfig(**sizes, dsfa_levels=()))
    unidepth.save_pretrained(folder / "unidepth")
    return folder


def shipped(home, name, base, rows="all", *changes):
    """A configuration that ships, at a size that a CPU trains in seconds."""
    cfg = load(Stage2Config, CONFIGS / f"{name}.yaml", [f"size_px={SIDE}", f"output={home}/run", *changes])
    model = {k: v for k, v in cfg.base.model.items() if k != "dsfa_num_heads"} | {"dsfa_num_heads": base[1]}
    return replace(
        cfg,
        base=replace(cfg.base, path=str(home / base[0]), model=model),
        manifests=replace(cfg.manifests, files=[str(home / f"{rows}.jsonl")]),
        steps=min(cfg.steps, 2),
        loop=replace(cfg.loop, workers=0, save_every=1, sample_every=0, log_every=1, precision="fp32"),
    )


DAV2, UNIDEPTH = ("stage2_dav2", ("relative", 3)), ("stage2_unidepth", ("unidepth", 2))


def batch_of(cfg, count=4):
    phase = PhaseConfig(cfg.size_px, cfg.batch, cfg.steps, cfg.learning_rate)
    return RowStacks(cfg)(0, phase, np.arange(count), count)


def test_the_configuration_of_depth_anything_v2_is_its_recipe(home):
    """Points of metric_depth/train.py, util/loss.py and dist_train.sh, one by one."""
    cfg = load(Stage2Config, CONFIGS / "stage2_dav2.yaml", [])
    assert cfg.base.path == "depth-anything/Depth-Anything-V2-Large-hf" and cfg.base.fresh_head
    assert (cfg.optimizer.name, cfg.optimizer.betas, cfg.optimizer.weight_decay) == ("adamw", [0.9, 0.999], 0.01)
    assert (cfg.learning_rate, cfg.optimizer.head_factor, cfg.optimizer.grad_clip) == (5e-6, 10, None)
    assert (cfg.optimizer.schedule, cfg.optimizer.warmup, cfg.optimizer.final_rate) == ("poly", 0, 0)
    assert (cfg.loop.precision, cfg.loop.ema_decay) == ("fp32", 0)
    assert (cfg.batch, cfg.pooled_pictures) == (4, 4) and 4 * cfg.batch * cfg.loop.accumulation == 4 * 8
    assert (cfg.variance_share, cfg.gradient_weight, cfg.relative_weight, cfg.edge_weight) == (0.5, 0, 0, 0)
    assert (cfg.size_px, cfg.min_depth_m, cfg.max_depth_m, cfg.base.model["max_depth"]) == (518, 0.001, 20, 20)
    assert (cfg.augment.mirror, cfg.augment.crop, cfg.lone_share) == (True, 1, 0)
    assert not any((cfg.augment.gain, cfg.augment.white_balance, cfg.augment.hue, cfg.augment.chroma))


def test_a_fresh_metric_head_stands_on_the_relative_encoder(home):
    cfg = shipped(home, *DAV2)
    base = AutoModelForDepthEstimation.from_pretrained(home / "relative")
    torch.manual_seed(0)
    model = stage2.build_model(cfg)
    assert (model.config.depth_estimation_type, model.config.max_depth) == ("metric", 20)
    for (name, a), b in zip(model.backbone.named_parameters(), base.backbone.parameters(), strict=True):
        assert torch.equal(a, b), name
    for part in ("neck", "head"):
        for (name, a), b in zip(
            getattr(model, part).named_parameters(), getattr(base, part).parameters(), strict=True
        ):
            assert not torch.equal(a, b), name
            if a.ndim == 4:  # torch's default, uniform within 1 / sqrt(fan in): not transformers' deviation of 0.02
                fan = torch.nn.init._calculate_fan_in_and_fan_out(a)[0]
                assert 0.5 * fan**-0.5 < a.abs().max() <= fan**-0.5, name
    with pytest.raises(InputError, match="`base.fresh_head` must be true to make a metric model"):
        stage2.build_model(replace(cfg, base=replace(cfg.base, fresh_head=False)))
    plain = replace(cfg, base=replace(cfg.base, fresh_head=False, model={}))
    with pytest.raises(InputError, match="predicts relative depth"):
        stage2.build_model(plain)
    with pytest.raises(InputError, match="which is no Depth Anything"):
        stage2.build_model(replace(cfg, base=replace(cfg.base, path=str(home / "unidepth"), model={})))


def test_the_loss_of_depth_anything_v2_is_the_published_one(home):
    """Of a batch, from what the network predicts, with torch alone; photos come as they are, but for the mirror."""
    cfg = shipped(home, *DAV2)
    batch = batch_of(cfg)
    torch.manual_seed(0)
    network = stage2.Stage2Network(stage2.build_model(cfg), cfg)
    with torch.no_grad():
        loss = network(batch)["loss"]
        depth = stage2.predict(network.model, batch, "frames")
    valid = batch["valid"][:, 0]
    error = batch["depth_m"][:, 0][valid].log() - depth[valid].log()
    torch.testing.assert_close(loss, (error.square().mean() - 0.5 * error.mean().square()).sqrt())
    pictures = {}
    for row in RowStacks(cfg).rows:
        crop = stage2.RowStacks(cfg)._sample(row, None)["image"]
        pictures[row.row_id] = sorted(crop.flatten(1).mean(1).tolist())
    # 80 of 96 px are seen whole or nearly so: no gain, no other balance of colours than one of the photos has.
    for image in batch["image"]:
        assert min(abs(a - np.array(sorted(image.flatten(1).mean(1).tolist()))).max() for a in
                   map(np.array, pictures.values())) < 0.03  # fmt: skip


def test_pools_are_the_same_however_a_step_is_split(home):
    cfg = replace(shipped(home, *DAV2), pooled_pictures=2, lone_share=0.5)
    batch = batch_of(cfg, 4)
    batch["lone"] = torch.tensor([True, False, False, True])
    torch.manual_seed(0)
    network = stage2.Stage2Network(stage2.build_model(cfg), cfg)
    with torch.no_grad():
        whole = network(batch)["loss"]
        parts = losses.total(network({k: v[p : p + 2] for k, v in batch.items()}, part=True) for p in (0, 2))
    torch.testing.assert_close(network.terms(parts)["loss"], whole)
    with pytest.raises(InputError, match="`batch` must be a multiple of pooled_pictures, 3, got 4"):
        replace(cfg, pooled_pictures=3)


def test_without_clipping_gradients_keep_their_norm(home):
    """Two steps of plain descent without a limit are those with one that never bites, not those with a small one."""
    moved = {}
    for name, clip in (("none", None), ("large", 1e9), ("small", 1e-4)):
        cfg = shipped(home, *DAV2)
        optimizer = replace(cfg.optimizer, name="sgd", grad_clip=clip)
        cfg = replace(cfg, optimizer=optimizer, learning_rate=1e-3, output=f"{home}/clip_{name}")
        model = stage2.run(cfg)
        moved[name] = AutoModelForDepthEstimation.from_pretrained(model).head.conv3.weight
    assert torch.equal(moved["none"], moved["large"]) and not torch.equal(moved["none"], moved["small"])


def test_dsfa_in_a_unidepth_without_it_starts_as_nothing(home):
    cfg = shipped(home, *UNIDEPTH)
    torch.manual_seed(0)
    model, base = stage2.build_model(cfg).eval(), AutoModelForDepthEstimation.from_pretrained(home / "unidepth")
    assert sorted(model.dsfa) == ["0", "1", "2", "3"] and not base.dsfa
    batch = batch_of(cfg)
    with torch.no_grad():
        assert torch.equal(stage2.predict(model, batch, "frames"), stage2.predict(base.eval(), batch, "none"))


def test_unidepths_terms_are_weighed_as_published(home):
    cfg = shipped(home, *UNIDEPTH)
    batch, model = batch_of(cfg), stage2.build_model(shipped(home, *UNIDEPTH))
    network = stage2.Stage2Network(model, cfg)
    terms = network(batch)
    weights = {"silog": 1.0, "edge": 1.0, "camera": 0.25, "confidence": 0.1}
    torch.testing.assert_close(terms["loss"], sum(w * terms[name] for name, w in weights.items()))
    hidden = {name: value for name, value in batch.items() if name != "intrinsics"}
    output = stage2.predict_all(model, hidden, "frames")  # depth for the predicted camera
    truth, valid = batch["depth_m"][:, 0], batch["valid"][:, 0]
    ray = unidepth_losses.ray_error(output.intrinsics, batch["intrinsics"], SIDE, SIDE).mean()
    torch.testing.assert_close(terms["camera"], ray)
    silog = losses.scale_invariant_log_loss(output.predicted_depth, truth, 0.85, valid)
    torch.testing.assert_close(terms["silog"], silog)


def camera_gradients(cfg, lacking):
    model = stage2.build_model(cfg)
    stage2.prepare_camera(cfg, model, lacking)
    torch.nn.init.normal_(model.pixel_decoder.camera_layer.out_pinhole.proj2.weight, std=0.3)
    network = stage2.Stage2Network(model, cfg)
    network(batch_of(cfg))["loss"].backward()
    head = {n: p for n, p in model.named_parameters() if "camera_layer" in n or "camera_token_adapter" in n}
    return head, model


def test_the_camera_head_is_trained_by_its_own_loss_or_not_at_all(home):
    with_loss, _ = camera_gradients(shipped(home, *UNIDEPTH), None)
    assert all(p.grad is not None and p.grad.any() for n, p in with_loss.items() if n.endswith("weight"))
    # Without intrinsics depth alone would train it: refused with its loss, frozen and out of the gradient without.
    some = shipped(home, *UNIDEPTH, "some")
    assert RowStacks(some).without_intrinsics == "row r2"
    with pytest.raises(
        InputError, match=r"`camera_weight` must be 0 where intrinsics are missing \(row r2 has none\)"
    ):
        stage2.run(some)
    head, model = camera_gradients(replace(some, camera_weight=0.0), "row r2")
    assert head and all(p.grad is None and not p.requires_grad for p in head.values())
    batch = {k: v for k, v in batch_of(some).items() if k != "intrinsics"}
    output = stage2.predict_all(model, batch, "frames")
    assert output.predicted_depth.requires_grad and not output.intrinsics.requires_grad
    for name in ("camera_weight", "confidence_weight"):
        with pytest.raises(InputError, match=f"`{name}` must be 0 for a base other than UniDepth, got 0.5"):
            cfg = replace(shipped(home, *DAV2), **{name: 0.5})
            stage2.prepare_camera(cfg, stage2.build_model(cfg), None)


def test_a_run_without_intrinsics_leaves_the_camera_head_as_it_is(home):
    cfg = replace(shipped(home, *UNIDEPTH, "some"), camera_weight=0.0, output=f"{home}/cameraless", learning_rate=1e-3)
    before = stage2.build_model(cfg)
    after = AutoModelForDepthEstimation.from_pretrained(stage2.run(cfg))
    moved = {n for (n, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if not a.equal(b)}
    assert any("depth_layer" in name for name in moved) and any("confidence" in name for name in moved)
    assert not any("camera" in name for name in moved if "prompt_camera" not in name)
