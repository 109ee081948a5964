"""Training on procedural pools: two steps of each network, configurations, pool and losses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import train_runs
import yaml
from scipy import ndimage

from bokehdepth.errors import InputError
from bokehdepth.hub import load_pipeline
from bokehdepth.modeling_bokehdepth import BokehDepthAnythingForDepthEstimation
from bokehdepth.modeling_mini_flux import level_weights
from train import config, data, export_mini, loop, losses, publish, stage1, stage2
from train.bokeh_photos import BokehPhotos
from train.config import OptimizerConfig, PhaseConfig, Stage1Config, Stage2Config
from train.encoders import load_depth_model

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "train/configs"
POOL = {"scenes": 4, "held_out_scenes": 2, "shard": 2, "size_px": 64, "photos": [], "mattes": []}
STAGE1 = {
    "base": {
        "kind": "mini",
        "transformer": train_runs.TRANSFORMER,
    },
    "adapter": {"context_dim": 8, "rank": 2, "alpha": 2.0, "null_token": True, "query_key_lora": False},
    "picture_share": 0.5,
    "phases": [
        {"size_px": 32, "batch": 2, "steps": 2, "learning_rate": 1e-3},
        {"size_px": 64, "batch": 1, "steps": 1, "learning_rate": 1e-3},
    ],
    "optimizer": {"warmup": 2},
    "loop": {"log_every": 1, "save_every": 2, "sample_every": 3, "samples": 1, "plain_attention": True},
}
CARD = {
    "title": "A test",
    "license": "apache-2.0",
    "license_link": "https://www.apache.org/licenses/LICENSE-2.0",
    "summary": "Tiny.",
    "training_data": "Four scenes.",
    "limits": "It knows nothing.",
    "licences": "All our own.",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    pool = {**POOL, "folder": str(folder / "pool")}
    photos = {"files": [str(train_runs.draw_photos(folder))], "scene_share": 0.3}
    depth = str(train_runs.save_depth_model(folder / "depth"))
    one = {**STAGE1, "pool": pool, "photos": photos, "depth_model": depth, "output": str(folder / "one")}
    (folder / "stage1.yaml").write_text(yaml.safe_dump(one))
    debug = yaml.safe_load((CONFIGS / "stage2_debug.yaml").read_text())
    two = {**debug, "pool": pool, "output": str(folder / "two"), "steps": 2}
    (folder / "stage2.yaml").write_text(yaml.safe_dump(two))
    data.fill_pool(replace(config.load(Stage1Config, folder / "stage1.yaml", []).pool, render_missing=True))
    return folder


@pytest.fixture(scope="module")
def mini(root):
    """Folder of the embedded Stage-1 after three steps."""
    threads = torch.get_num_threads()
    model = stage1.run(config.load(Stage1Config, root / "stage1.yaml", []))
    torch.set_num_threads(threads)
    return model


def call(module, monkeypatch, *arguments):
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["train", *map(str, arguments)])
    module.main()
    torch.set_num_threads(threads)


def test_pool_is_the_same_again_and_splits_differ(root, tmp_path):
    cfg = config.load(Stage1Config, root / "stage1.yaml", [])
    again = replace(cfg.pool, folder=str(tmp_path))
    data.render_shard(again, "train", 1)
    with np.load(data.shard_path(cfg.pool, "train", 1)) as a, np.load(data.shard_path(again, "train", 1)) as b:
        assert sorted(a.files) == sorted(b.files)
        assert all(np.array_equal(a[k], b[k]) for k in a.files)
    train, held = data.ScenePool(cfg.pool, "train"), data.ScenePool(cfg.pool, "held_out")
    assert len(train) == 4 and len(held) == 2
    assert not torch.equal(train.tensors["image"][0], held.tensors["image"][0])


def test_augmentation_keeps_the_pair_exact(root):
    cfg = config.load(Stage1Config, root / "stage1.yaml", [])
    pool = data.ScenePool(cfg.pool, "train")
    plain = pool.batch(np.arange(4), 64)
    changed = pool.batch(np.arange(4), 64, [np.random.default_rng(n) for n in range(4)])
    assert not torch.equal(plain["image"], changed["image"])
    for name in ("offset_dpt", "depth_m"):
        same = [
            torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(plain[name], changed[name], strict=True)
        ]
        assert all(same)
    assert torch.isfinite(changed["depth_m"]).all() and changed["image"].max() <= 1


def test_files_are_split_by_name(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").touch()
    parts = [data.split_files([str(tmp_path / "*.png")], 0.3, split) for split in data.SPLITS]
    assert not set(parts[0]) & set(parts[1]) and len(parts[0]) + len(parts[1]) == 40 and parts[1]
    with pytest.raises(ValueError, match="which no file matches"):
        data.split_files([str(tmp_path / "*.gif")], 0.3, "train")


def test_the_embedded_stage1_trains_and_loads_as_a_pipeline(root, mini):
    assert mini == root / "one" / "model"
    pipe = load_pipeline(mini)
    photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    frames = pipe.generate_stack(photo, (5.0, 30.0), num_inference_steps=1, output_type="np").images
    assert frames.shape == (2, 64, 64, 3) and np.isfinite(frames).all()
    record = json.loads((mini / "training.json").read_text())
    assert record["effective_batch"] == [2, 1] and record["steps"] == 3 and record["trainable_parameters"] > 10_000
    lines = [json.loads(line) for line in (root / "one" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3] and "response_k30" in lines[-1]
    assert (root / "one" / "samples" / "step_00000003.png").is_file()


def test_the_loss_of_the_embedded_stage1_falls(root):
    """Thirty steps on one batch take a fifth of its loss away."""
    cfg = config.load(Stage1Config, root / "stage1.yaml", [])
    torch.manual_seed(0)
    network = stage1.build_network(cfg, None)[0].train()
    source = BokehPhotos(cfg, data.ScenePool(cfg.pool, "train"), load_depth_model(cfg.depth_model))
    batch = source(0, PhaseConfig(32, 4, 1, 1e-3), np.arange(4), 4)
    assert falls(network, batch, 30, 3e-3) < 0.8


def falls(network, batch, steps, rate):
    """Loss after some steps of Adam on one batch over the loss before."""
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate)
    seen = []
    for _ in range(steps + 1):
        loss = network(batch)["loss"]
        seen.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return seen[-1] / seen[0]


@pytest.fixture
def flux(root):
    """The network and batches of the debug configuration, whose every part is a true class."""
    cfg = config.load(Stage1Config, CONFIGS / "stage1_debug.yaml", [f"pool.folder={root}/pool", "grounded_share=0.5"])
    torch.manual_seed(0)
    network, _ = stage1.build_network(replace(cfg, loop=replace(cfg.loop, gradient_checkpointing=False)), None)
    source = data.PoolPairs(cfg)
    # The first step's neighbours: one of each kind.
    batches = [source(step, cfg.phases[0], np.arange(4)) for step in (0, 1)]
    assert [batch["text_to_image"] for batch in batches] == [False, True]
    return network, batches


def test_gradients_reach_every_trained_tensor_of_stage1_and_no_frozen_one(flux):
    network, batches = flux
    for batch in batches:
        batch["drop_strength"][:] = False
        for _ in range(2):  # the first step moves what starts at zero, behind which nothing has a gradient yet
            optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
            optimizer.zero_grad()
            network(batch)["loss"].backward()
            optimizer.step()
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad == name.startswith("adapter."), name
            if parameter.requires_grad:
                assert parameter.grad.abs().sum() > 0, name
            else:
                assert parameter.grad is None, name
    assert loop.freeze_idle(network, batches[0]) == []


def test_stage1_has_the_loss_and_the_gradients_of_diffusers_own_trainer(flux):
    """diffusers' Kontext trainer: weighted squared distance to noise - latents, each sample's mean, then theirs."""
    from diffusers import FluxKontextPipeline
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    network, batches = flux
    trained, seen = [p for p in network.parameters() if p.requires_grad], []
    network.transformer.register_forward_hook(lambda module, arguments, output: seen.append(output[0]))
    with torch.no_grad():  # a fresh branch has no effect yet
        for number, parameter in enumerate(trained):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    for batch in batches:
        loss = network(batch)["loss"]
        clean = network.encode(batch["target"])
        drawn = [stage1.draw_flux_noise(int(seed), clean.shape[1:], network.offset_noise) for seed in batch["seed"]]
        sigma, noise = (torch.stack(x) for x in zip(*drawn, strict=True))
        count = clean.shape[-2] * clean.shape[-1] // 4
        velocity = FluxKontextPipeline._unpack_latents(seen[-1][:, :count], 64, 64, 8)
        weighting = compute_loss_weighting_for_sd3("none", sigmas=sigma[:, None, None, None])
        squares = weighting.float() * (velocity.float() - (noise - clean).float()) ** 2
        wanted = squares.reshape(len(clean), -1).mean(1).mean()
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
        ours, theirs = (torch.autograd.grad(value, trained, retain_graph=True) for value in (loss, wanted))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * b.abs().max().item())


def test_a_tensor_without_effect_is_frozen(root):
    """One context token without a null token: its key is dead (a softmax over one key is 1)."""
    changes = [f"pool.folder={root}/pool", "adapter.null_token=false"]
    cfg = config.load(Stage1Config, CONFIGS / "stage1_debug.yaml", changes)
    network, _ = stage1.build_network(cfg, None)
    idle = loop.freeze_idle(network.train(), data.PoolPairs(cfg)(0, cfg.phases[0], np.arange(4)))
    assert idle and all("to_k_bokeh" in name for name in idle)


def test_stage1_loss_falls_on_one_batch(flux):
    """Forty steps of the adapter alone: it can only bend a random base, and takes two per cent of the loss away."""
    network, batches = flux
    for batch in batches:
        assert falls(network, batch, 40, 1e-2) < 0.98


def test_a_dropped_strength_leaves_the_branch_without_value(flux):
    network, (edit, _) = flux
    with torch.no_grad():
        for name, parameter in network.adapter.named_parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
        losses_ = {}
        for dropped in (False, True):
            edit["drop_strength"] = torch.full((4,), dropped)
            for k in (5.0, 25.0):
                losses_[dropped, k] = network({**edit, "strength": torch.full((4,), k)})["loss"].item()
    assert losses_[True, 5.0] == losses_[True, 25.0]
    assert losses_[False, 5.0] != losses_[False, 25.0]


def test_text_groups_share_noise_and_point_at_their_pivot(root):
    cfg = config.load(Stage1Config, CONFIGS / "stage1_debug.yaml", [f"pool.folder={root}/pool", "grounded_share=1"])
    batch = data.PoolPairs(cfg)(1, cfg.phases[0], np.arange(8))
    assert batch["text_to_image"] and batch["pivot_rows"].tolist() == [0] * 4 + [4] * 4
    assert (batch["strength"] == 0).tolist() == [True, False, False, False] * 2
    assert len(set(batch["seed"].tolist())) == 2 and len(set(batch["seed"][:4].tolist())) == 1
    assert torch.equal(batch["target"][0], batch["image"][3])
    assert not torch.equal(batch["target"][3], batch["image"][3])
    assert sum(data.is_text_step(step, 0.5) for step in range(10)) == 5
    assert sum(data.is_text_step(step, 0.3) for step in range(10)) == 3


def test_noise_is_eq_10_and_of_the_sample_alone():
    shape = torch.Size((4, 8, 8))
    sigma, noise = stage1.draw_flux_noise(7, shape, 0.0)
    assert 0 < sigma <= 1 and torch.equal(noise, stage1.draw_flux_noise(7, shape, 0.0)[1])
    clean = torch.randn(1, 4, 8, 8)
    noisy = stage1.add_noise(clean, noise[None], sigma[None])
    # The velocity that the loss asks for carries the noisy latents to the clean ones in one step of length sigma.
    torch.testing.assert_close(noisy - sigma * (noise[None] - clean), clean)
    offset = stage1.draw_flux_noise(7, shape, 0.5)[1] - noise
    assert offset.std((1, 2)).max() < 1e-6 and offset.mean((1, 2)).std() > 0.1


def test_stage2_trains_on_every_kind_of_stack(root):
    cfg = config.load(Stage2Config, root / "stage2.yaml", [])
    drawn = {}
    for stack in ("renderer", "sharp", "none"):
        changed = replace(cfg, stack=stack, output=str(root / f"two_{stack}"))
        model = BokehDepthAnythingForDepthEstimation.from_pretrained(stage2.run(changed))
        torch.manual_seed(cfg.seed)
        fresh = stage2.build_model(changed)
        same = [torch.equal(a, b) for a, b in zip(model.dsfa.parameters(), fresh.dsfa.parameters(), strict=True)]
        # Without a stack DSFA is not run, and not trained.
        assert all(same) == (stack == "none")
        drawn[stack] = data.PoolStacks(changed)(3, PhaseConfig(56, 2, 1, 0.0), np.arange(2))
    for name in ("image", "depth_m", "strength"):  # controls see the same data
        assert all(torch.equal(batch[name], drawn["renderer"][name]) for batch in drawn.values())


def test_gradients_of_stage2_and_its_loss_falls(root):
    cfg = config.load(Stage2Config, root / "stage2.yaml", ["optimizer.head_factor=10"])
    batch = data.PoolStacks(cfg)(0, PhaseConfig(56, 2, 1, 0.0), np.arange(2))
    network = stage2.Stage2Network(stage2.build_model(cfg), cfg).train()
    idle = loop.freeze_idle(network, batch)
    assert all("mask_token" in name or "residual_layer1" in name for name in idle)
    assert falls(network, batch, 40, 3e-3) < 0.7
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = stage2.build_model(replace(cfg, base=replace(cfg.base, trainable="dsfa")))
    assert {n.split(".")[0] for n, p in frozen.named_parameters() if p.requires_grad} == {"dsfa"}
    with pytest.raises(InputError, match="depends on no trainable parameter"):
        none = replace(cfg, stack="none", base=replace(cfg.base, trainable="dsfa"))
        loop.freeze_idle(stage2.Stage2Network(stage2.build_model(none), none), batch)


def test_samples_without_a_stack_are_those_of_the_base_path(root):
    cfg = config.load(Stage2Config, root / "stage2.yaml", ["lone_share=0.5"])
    drawn = data.lone_samples(cfg, 3, np.arange(200))
    assert torch.equal(drawn[7:60], data.lone_samples(cfg, 3, np.arange(7, 60)))
    assert data.lone_samples(replace(cfg, lone_share=1.0), 0, np.arange(4)).all()
    assert 70 < drawn.sum() < 130 and not torch.equal(drawn, data.lone_samples(cfg, 4, np.arange(200)))
    batch = data.PoolStacks(cfg)(0, PhaseConfig(56, 4, 1, 0.0), np.arange(4))
    torch.manual_seed(0)
    network = stage2.Stage2Network(stage2.build_model(cfg), cfg)
    lone = torch.tensor([True, False, False, True])
    with torch.no_grad():
        mixed = network({**batch, "lone": lone})["silog"]
        parts = {kind: stage2.predict(network.model, batch, kind) for kind in ("none", "frames")}
        depth = torch.where(lone[:, None, None], parts["none"], parts["frames"]).clamp(min=cfg.min_depth_m)
        each = losses.scale_invariant_log_loss(depth, batch["depth_m"][:, 0], cfg.variance_share, batch["valid"][:, 0])
    torch.testing.assert_close(mixed, each)
    assert (parts["none"] / parts["frames"]).log().abs().max() > 0.01


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_holes_in_the_truth_leave_gradients_finite(root, weight):
    cfg = config.load(Stage2Config, root / "stage2.yaml", [f"relative_weight={weight}"])
    batch = data.PoolStacks(cfg)(0, PhaseConfig(56, 2, 1, 0.0), np.arange(2))
    for place, hole in enumerate((0.0, float("inf"), float("nan"))):
        batch["depth_m"][:, :, place], batch["valid"][:, :, place] = hole, False
    network = stage2.Stage2Network(stage2.build_model(cfg), cfg)
    terms = network(batch)
    terms["loss"].backward()
    plain = terms["silog"] + cfg.gradient_weight * terms["gradient"]
    torch.testing.assert_close(terms["loss"], plain + weight * terms["abs_rel"])
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@torch.no_grad()
def test_a_decoder_from_nothing_passes_on_what_the_encoder_says(root):
    cfg = config.load(Stage2Config, root / "stage2.yaml", [])
    batch = data.PoolStacks(cfg)(0, PhaseConfig(56, 4, 1, 0.0), np.arange(4))
    torch.manual_seed(0)
    model = stage2.build_model(cfg)
    depth = stage2.predict(model, batch, "frames").log()
    assert 0.05 < depth.std() < 3 and 0.3 < depth.exp().median() < 30
    for module in (*model.neck.modules(), *model.head.modules()):
        model._init_weights(module)  # transformers' own start
    assert stage2.predict(model, batch, "frames").log().std() < 1e-3


def test_stage2_goes_on_from_a_plain_base(root, tmp_path):
    """A Depth Anything of transformers gets fresh DSFA and still equals itself; a relative one is refused."""
    from transformers import DepthAnythingForDepthEstimation

    cfg = config.load(Stage2Config, root / "stage2.yaml", [])
    source = stage2.build_model(cfg)
    fields = {k: v for k, v in source.config.to_dict().items() if not k.startswith(("dsfa", "use_", "bokeh", "focus"))}
    kind = DepthAnythingForDepthEstimation.config_class
    known = {k: v for k, v in fields.items() if k in kind.__dataclass_fields__}
    for name, estimates in (("metric", "metric"), ("relative", "relative")):
        plain = DepthAnythingForDepthEstimation(kind(**{**known, "depth_estimation_type": estimates}))
        plain.save_pretrained(tmp_path / name)
    changed = replace(
        cfg.base, path=str(tmp_path / "metric"), backbone={}, model={"dsfa_levels": [3], "dsfa_num_heads": 2}
    )
    model = stage2.build_model(replace(cfg, base=changed)).eval()
    plain = DepthAnythingForDepthEstimation.from_pretrained(tmp_path / "metric").eval()
    pixels = torch.randn(1, 2, 3, 56, 56)
    with torch.no_grad():
        fused = model(pixel_values=pixels, bokeh_strengths=torch.tensor([[0.0, 9.0]])).predicted_depth
        assert torch.equal(fused, plain(pixel_values=pixels[:, 0]).predicted_depth)
    with pytest.raises(InputError, match="relative depth"):
        stage2.build_model(replace(cfg, base=replace(changed, path=str(tmp_path / "relative"))))


def test_augmentation_of_stacks_keeps_frames_and_strengths_together(root):
    cfg = config.load(Stage2Config, root / "stage2.yaml", [])
    two, strength = replace(cfg.augment, frames=2), torch.tensor([1.0, 29.9])
    for seed in range(20):
        told = data.told_strength(strength, np.random.default_rng(seed), two)
        assert (told <= 30).all() and torch.allclose(told, strength, rtol=0.3)
    orders = {tuple(data.chosen_frames(4, np.random.default_rng(seed), two).tolist()) for seed in range(20)}
    assert len(orders) > 6 and all(len(set(order)) == 2 for order in orders)
    with pytest.raises(InputError, match="augment.frames is 9"):
        data.chosen_frames(4, np.random.default_rng(0), replace(cfg.augment, frames=9))
    # Frames that are picked from a pool are those of the whole stack, with their K.
    pool = data.ScenePool(cfg.pool, "train")
    rows, frames = np.array([1, 3]), torch.tensor([[2, 0], [1, 1]])
    everything = pool.batch(rows, 56, [np.random.default_rng(n) for n in rows], cfg.augment)
    picked = pool.batch(rows, 56, [np.random.default_rng(n) for n in rows], cfg.augment, frames)
    for row in range(2):
        assert torch.equal(picked["bokeh"][row], everything["bokeh"][row, frames[row]])
        assert torch.equal(picked["strength"][row], everything["strength"][row, frames[row]])
    assert torch.equal(picked["image"], everything["image"])


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "train/configs").glob("*.yaml")))
def test_every_configuration_that_ships_is_read(name):
    config.load(Stage1Config if "stage1" in name else Stage2Config, CONFIGS / f"{name}.yaml", [])


def test_configurations_are_strict(tmp_path):
    one, two = CONFIGS / "mini_stage1.yaml", CONFIGS / "mini_stage2.yaml"
    for kind, file, change, words in (
        (Stage1Config, one, "batchsize=3", "unknown key 'batchsize'"),
        (Stage1Config, one, "pool.foto=1", "unknown key 'pool.foto'"),
        (Stage1Config, one, "loop.keep=0", "loop.keep is 0"),
        (Stage1Config, one, "loop.keep=two", "loop.keep: Value 'two' of type 'str' could not be converted to Integer"),
        (Stage1Config, one, "loop.ema_decay=.nan", "loop.ema_decay is nan"),
        (Stage1Config, one, "optimizer.name=lion", "optimizer.name is 'lion'"),
        (Stage1Config, one, "text_to_image=0.5", "base.kind mini"),
        (Stage1Config, one, "picture_share=2", "picture_share is 2.0"),
        (Stage1Config, one, "augment.hue=-1", "augment.hue is -1.0"),
        (Stage1Config, one, "phases=[{size_px: 90, batch: 1, steps: 1, learning_rate: 1e-3}]", "size_px is 90"),
        (Stage1Config, CONFIGS / "stage1_debug.yaml", "pool=null", "both missing"),
        (Stage1Config, one, "photos=null", "`photos` must be given with base.kind mini"),
        (Stage1Config, one, "depth_model=''", "`depth_model` must be the folder"),
        (Stage2Config, two, "stack=wild", "stack is 'wild'"),
        (Stage2Config, CONFIGS / "stage2_debug.yaml", "stack=stage1", "`stack` must be renderer"),
        (Stage2Config, two, "stage1=''", "`stage1` must be the folder"),
        (Stage2Config, two, "phases=[]", "`photos` and `phases` must be given together"),
        (Stage2Config, two, "strengths=[20, 10]", r"strengths is \[20.0, 10.0\]"),
        (Stage2Config, two, "learning_rate", "wanted key=value"),
        (Stage2Config, two, "steps.x=1", "steps: Value .* could not be converted to Integer"),
        (Stage2Config, two, "optimizer=5", "int is not a subclass of OptimizerConfig"),
        (Stage2Config, two, "output={a", "wanted a key and a value in YAML"),
        (Stage2Config, two, "loop=null", "loop: field 'loop' is not Optional"),
        (Stage1Config, one, "phases=[{size_px: 96, batch: 1}]", r"key 'phases\[0\].steps' is missing"),
    ):
        with pytest.raises(InputError, match=words):
            config.load(kind, file, [change])
    assert config.load(Stage2Config, two, ["learning_rate=1e-4"]).learning_rate == 1e-4
    with pytest.raises(InputError, match="'output' is missing"):
        config.build(Stage1Config, {"phases": []}, "here")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "twice.yaml").write_text("output: a\noutput: b")
    (tmp_path / "list.yaml").write_text("- output")
    with pytest.raises(InputError, match="wanted keys and values"):
        config.load(Stage1Config, tmp_path / "list.yaml", [])
    for path in (tmp_path / f"{name}.yaml" for name in ("broken", "none", "twice")):
        with pytest.raises(InputError, match="cannot be read"):
            config.load(Stage1Config, path, [])


def test_a_section_that_sets_one_key_keeps_what_the_stage_has_there(tmp_path):
    """By file and by --set, for every section of both stages: one key moves and no other."""
    stages = {Stage1Config: {"output": "x", "phases": [{"size_px": 16, "batch": 1, "steps": 1, "learning_rate": 0.1}],
                             "photos": {"files": ["f"]}, "depth_model": "d"},
              Stage2Config: {"output": "x"}}  # fmt: skip
    changes = {"optimizer": {"grad_clip": 2.0}, "loop": {"log_every": 7}, "augment": {"gain": 0.5},
               "base": {"revision": "abc"}}  # fmt: skip
    for kind, least in stages.items():
        file = tmp_path / "least.yaml"
        file.write_text(yaml.safe_dump({**least, "pool": {"folder": "p"}}))
        plain = config.load(kind, file, [])
        for section, change in changes.items():
            (key, value), old = next(iter(change.items())), getattr(plain, section)
            wanted = replace(plain, **{section: replace(old, **change)})
            assert config.load(kind, file, [f"{section}.{key}={value}"]) == wanted
            assert config.load(kind, file, [f"{section}={{{key}: {value}}}"]) == wanted
            assert config.build(kind, {**least, "pool": {"folder": "p"}, section: change}, "here") == wanted
    assert (plain.optimizer.weight_decay, plain.optimizer.warmup) == (0.05, 50)
    assert (plain.loop.ema_decay, plain.loop.save_every) == (0.995, 100)
    debug = config.load(Stage2Config, CONFIGS / "stage2_debug.yaml", [])
    assert (debug.optimizer.weight_decay, debug.optimizer.warmup, debug.loop.ema_decay) == (0.05, 2, 0.995)
    # One phase of several, and numbers as YAML 1.2 reads them, in free arguments too.
    changed = config.load(Stage1Config, CONFIGS / "stage1_flux.yaml", ["phases.1.steps=7"])
    assert [phase.steps for phase in changed.phases] == [16000, 7]
    changed = config.load(Stage1Config, CONFIGS / "mini_stage1.yaml", ["base.transformer.quantile=4e-1"])
    assert changed.base.transformer["quantile"] == 0.4 and changed.base.transformer["num_single_layers"] == 3


def test_optimisers_by_name_and_what_is_not_installed(monkeypatch):
    groups = [[torch.nn.Parameter(torch.ones(3))], []]
    assert type(loop.build_optimizer(OptimizerConfig(), groups)) is torch.optim.AdamW
    assert len(loop.build_optimizer(OptimizerConfig(name="sgd"), groups).param_groups) == 1
    for name, library in (("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")):
        monkeypatch.setitem(__import__("sys").modules, library, None)
        with pytest.raises(InputError, match=f"needs {library}"):
            loop.build_optimizer(OptimizerConfig(name=name), groups)
    with pytest.raises(InputError, match="'mlflow'"):
        loop._trackers(["mlflow"])
    monkeypatch.setattr(loop, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="'wandb', which is not installed"):
        loop._trackers(["wandb"])
    assert loop._trackers(None) == []


def test_a_card_is_filled_from_the_run(root, mini, tmp_path):
    from bokehdepth.hub.folder import build_folder

    cfg = config.load(Stage1Config, root / "stage1.yaml", [])
    with pytest.raises(InputError, match="card is missing"):
        publish.check(cfg)
    cfg = config.build(Stage1Config, {**yaml.safe_load((root / "stage1.yaml").read_text()), "card": CARD}, "here")
    (tmp_path / "facts.yaml").write_text(
        yaml.safe_dump(publish.facts_of(cfg, "python -m train.stage1 --config x.yaml"))
    )
    folder = build_folder("pipeline", mini, tmp_path / "out", repository="user/name", facts=tmp_path / "facts.yaml")
    card = (folder / "README.md").read_text()
    for words in (
        "training loss up to step 3",
        "python -m train.stage1 --config x.yaml",
        "Four scenes.",
        "plain_attention: true",
    ):
        assert words in card


def test_level_weights_are_linear_between_levels():
    levels = torch.tensor([0.0, 0.1, 0.4])
    offsets = torch.tensor([0.0, 0.05, 0.1, 0.25, 0.4, 9.0]).view(1, 1, 1, 6)
    targets = level_weights(offsets, levels)[0, :, 0].T
    wanted = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]])
    torch.testing.assert_close(targets, wanted.float())


def test_depth_losses_by_hand():
    target = torch.rand(2, 8, 8) + 1
    assert losses.scale_invariant_log_loss(target * 2, target, 1.0) < 1e-3
    torch.testing.assert_close(losses.scale_invariant_log_loss(target * 2, target, 0.0), torch.tensor(2.0).log())
    torch.testing.assert_close(losses.scale_invariant_log_loss(target * 2, target), torch.tensor(2.0).log() * 0.5**0.5)
    assert losses.log_gradient_loss(target * 3, target) < 1e-6
    ramp = torch.exp(torch.arange(8.0)).expand(1, 8, 8)
    torch.testing.assert_close(losses.log_gradient_loss(ramp, torch.ones(1, 8, 8), scales=1), torch.tensor(1.0))


def test_depth_losses_skip_what_is_not_valid():
    """A masked loss is that of the valid pixels alone, whatever stands in the others."""
    target, prediction = torch.rand(2, 8, 8) + 1, torch.rand(2, 8, 8) + 1
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[:, :, 5:] = False
    holes = torch.where(valid, target, torch.tensor(float("nan")))
    for loss in (losses.scale_invariant_log_loss, lambda *a, **k: losses.log_gradient_loss(*a, scales=1, **k)):
        alone = loss(prediction[..., :5], target[..., :5])
        torch.testing.assert_close(loss(prediction, holes, valid=valid), alone)
    prediction.requires_grad_()
    losses.scale_invariant_log_loss(prediction, holes, valid=valid).backward()
    assert torch.isfinite(prediction.grad).all() and not prediction.grad[~valid].any()
    g = (prediction.detach().log() - target.log())[0].numpy()
    blocks = ndimage.uniform_filter(g, 2, origin=-1)[:-1:2, :-1:2]
    wanted = [np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=0)).mean() for x in (g, blocks)]
    got = losses.log_gradient_loss(prediction[:1].detach(), target[:1], scales=2).item()
    assert got == pytest.approx(sum(wanted) / 2, rel=1e-5)


def test_the_trained_parts_make_an_embedded_model(mini, tmp_path, monkeypatch):
    depth = train_runs.save_depth_model(tmp_path / "depth")
    arguments = ("--stage1", mini, "--stage2", depth, "--output", tmp_path / "mini", "--depth-area", 32 * 32)
    call(export_mini, monkeypatch, *arguments)
    pipe = load_pipeline(tmp_path / "mini")
    assert pipe.depth_estimator.config.area_px == 32 * 32
    out = pipe(torch.rand(3, 64, 64), (10.0, 20.0), output_type="np")
    assert out.depth_m.shape == (64, 64) and np.isfinite(out.depth_m).all()
    assert out.intrinsics.shape == (3, 3) and out.confidence is None
