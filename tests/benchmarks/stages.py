"""Cost of both stages with random weights, beside diffusers' Kontext and transformers' Depth Anything.

    python tests/benchmarks/stages.py stage1|stage2|pipeline|training [--true-size --device cuda]

Classes are the true ones, small by default and on one CPU thread. Every variant that has to give another's result is
compared with it; exit code 1 if one does not.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FluxKontextPipeline

import random_models as models
from bokehdepth.hub import load_pipeline
from bokehdepth.modeling_bokehdepth import DividedSpaceFocusAttention
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.sampling_bokehdepth import encode_reference
from bokehdepth.speed import bake_modulation, restore_modulation
from measure import TOLERANCE, Contender, compare, relative_difference, seconds

PATCH_PX = 14
FIXED = {"reference_attention": "causal", "reference_timestep": 0.0}  # the photo's keys hold for all steps and K


def random_photo(side_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


def strengths_of(frames: int) -> tuple[float, ...]:
    return tuple(float(k) for k in np.linspace(30 / frames, 30, frames))


def prompt_lengths(true_size: bool, size_px: int) -> tuple[int, int]:
    """Tokens of a long and a short prompt: at FLUX's size 512 are half of those of a picture of 512 px."""
    tokens = (size_px // 16) ** 2
    return (512, 64) if true_size else (max(8, tokens // 2), max(1, tokens // 16))


def kontext(pipe: BokehDepthPipeline, photo: np.ndarray, frames: int, steps: int, calls: int = 1) -> Callable:
    """`FluxKontextPipeline` on a pipeline's base as its documentation calls it; prompts are given encoded."""
    parts = {name: getattr(pipe, name) for name in ("scheduler", "vae", "transformer")}
    stock = FluxKontextPipeline(**parts, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None)
    stock.set_progress_bar_config(disable=True)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    adapter, side_px = pipe.bokeh_adapter, len(photo)

    def call() -> torch.Tensor:
        return stock(
            image=image.expand(frames, -1, -1, -1),
            height=side_px,
            width=side_px,
            max_area=side_px**2,
            _auto_resize=False,
            num_inference_steps=steps,
            guidance_scale=adapter.config.guidance_scale,
            generator=[torch.Generator(pipe.transformer.device).manual_seed(0) for _ in range(frames)],
            prompt_embeds=adapter.prompt_embeds[None].expand(frames, -1, -1),
            pooled_prompt_embeds=adapter.pooled_prompt_embeds[None].expand(frames, -1),
            output_type="pt",
        ).images

    return lambda: torch.cat([call() for _ in range(calls)])


def stack(pipe: BokehDepthPipeline, photo: Any, strengths: Sequence[float], **options: Any) -> Callable:
    """A stack's frames of a photo, which may be one that is remembered with its noise."""

    def run() -> torch.Tensor:
        noise = {"generator": torch.Generator(pipe.device).manual_seed(0)} if isinstance(photo, np.ndarray) else {}
        call = {"restore": False, "output_type": "pt"} | noise | options
        return pipe.generate_stack(photo, strengths, **call).images

    return run


def stage1(options: argparse.Namespace, place: dict) -> bool:
    """One pass of the transformer, then a photo to decoded frames."""
    size_px, steps, repeats = options.size, options.steps, options.repeats
    strengths, photo = strengths_of(options.frames), random_photo(size_px)
    long, short = prompt_lengths(options.true_size, size_px)
    pipe = models.pipeline(options.true_size, *place.values(), size_px, long)
    base, own, tolerance = pipe.transformer, pipe.bokeh_adapter, TOLERANCE[place["dtype"]]
    fixed = models.adapter(base, short, max_area=size_px**2, **FIXED)
    keeping = BokehDepthPipeline(**{**pipe.components, "bokeh_adapter": fixed})
    keeping.set_progress_bar_config(disable=True)
    removed: dict[str, torch.nn.Module] = {}

    def state(adapter: Any = None, folded: bool = False, baked: bool = False) -> Callable[[], None]:
        """Brings the one copy of the base's weights into the state that a row asks for."""

        def enter() -> None:
            restore_modulation(base, removed)
            removed.clear()
            for carried in (own, fixed):
                carried.detach()
            if adapter is not None:
                adapter.attach(base)
                adapter.fold() if folded else None
            if baked:
                removed.update(bake_modulation(pipe, strengths, steps))

        return enter

    bare, folded, baked, fast = state(), state(own, True), state(own, True, True), state(fixed, True)
    side, count = size_px // 16, len(strengths)
    ids = pipe._prepare_latent_image_ids(1, side, side, *place.values())
    inputs = {
        "hidden_states": torch.randn(count, 2 * side**2, base.config.in_channels, **place),
        "encoder_hidden_states": own.prompt_embeds.expand(count, -1, -1),
        "timestep": (pipe.schedule(steps, side**2)[1][0] / 1000).expand(count).to(**place),
        "guidance": torch.full((count,), own.config.guidance_scale, **place),
        "img_ids": torch.cat([ids, ids]),
        "txt_ids": torch.zeros(long, 3, **place),
        "pooled_projections": own.pooled_prompt_embeds.expand(count, -1),
    }
    condition = own.attention_kwargs(strengths)
    constant = own.constant_branch(condition)

    def one_pass(arguments: dict[str, Any] | None) -> Callable:
        return torch.no_grad()(lambda: base(**inputs, joint_attention_kwargs=arguments, return_dict=False)[0])

    rows = {
        "Kontext, no adapter": Contender(one_pass(None), bare),
        "as trained": Contender(one_pass(condition), state(own)),
        "folded": Contender(one_pass(constant), folded, "as trained"),
        "folded, baked": Contender(one_pass(constant), baked, "as trained"),
    }
    passed = compare("one pass of the transformer", rows, repeats, tolerance, place)

    fast()
    known = keeping.remember_photo(photo, steps, generator=torch.Generator(pipe.device).manual_seed(0))
    stack(keeping, known, strengths[:1])()  # what a first K leaves behind
    call = {"num_inference_steps": steps}
    brief = call | {
        "prompt_embeds": own.prompt_embeds[None, :short],
        "pooled_prompt_embeds": own.pooled_prompt_embeds[None],
    }
    separate, together = "Kontext, a call for each K", "Kontext, one call"
    rows = {
        together: Contender(kontext(pipe, photo, count, steps), bare),
        separate: Contender(kontext(pipe, photo, 1, steps, count), bare, together),
        "folded": Contender(stack(pipe, photo, strengths, **call), folded),
        "folded, baked": Contender(stack(pipe, photo, strengths, **call), baked, "folded"),
        "folded, short prompt": Contender(stack(pipe, photo, strengths, **brief), folded),
        "and the photo's keys kept": Contender(stack(keeping, photo, strengths, **call), fast),
        "one K, keys not kept": Contender(stack(pipe, photo, strengths[-1:], **brief), folded),
        "one K, new photo": Contender(stack(keeping, photo, strengths[-1:], **call), fast),
        "one K, photo known": Contender(stack(keeping, known, strengths[-1:]), fast, "one K, new photo"),
    }
    passed &= compare(f"a stack, {count} K in {steps} steps", rows, repeats, tolerance, place)
    if options.compile:
        folded()
        eager, frames = Contender(stack(pipe, photo, strengths, **call)), stack(pipe, photo, strengths, **call)()
        before = seconds({"": eager}, repeats, place["device"])[""]
        torch._dynamo.config.allow_unspec_int_on_nn_module = True
        base.compile_repeated_blocks()
        difference = relative_difference(eager.run(), frames)
        ratio = seconds({"": eager}, repeats, place["device"])[""] / before
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        print(f"\nfolded, compiled into {graphs} graphs: {ratio:.3g} of the time, difference {difference:.1e}")
        passed &= graphs > 0 and difference <= max(tolerance, 1e-3)
    return passed


def stage2(options: argparse.Namespace, place: dict) -> bool:
    """The step across frames of one DSFA block, then photo and stack to depth."""
    base, frames, side = models.depth_anything(options.true_size, *place.values()), options.frames + 1, options.size
    pixels = torch.randn(1, frames, 3, side, side, **place)
    strengths = torch.tensor([[0.0, *strengths_of(options.frames)]])
    tolerance, last = TOLERANCE[place["dtype"]], len(base.config.neck_hidden_sizes) - 1
    width = base.config.reassemble_hidden_size
    block = DividedSpaceFocusAttention(width, 8 if width % 8 == 0 else 3, layerscale_init=0.1, use_space=False)
    block = models.randomize(block.to(**place), 0)
    tokens = torch.randn(1, frames, (side // PATCH_PX) ** 2, width, **place)

    def across(reference_only: bool) -> Callable:
        return torch.no_grad()(lambda: block(tokens, strengths, None, reference_only)[:, :1])

    rows = {
        "all frames queried": Contender(across(False)),
        "reference queried": Contender(across(True), like="all frames queried"),
    }
    passed = compare("the step across frames", rows, options.repeats, tolerance, place)

    def depth(levels: tuple[int, ...], scale: float = 1.0, whole: bool = False) -> Callable:
        model = models.with_dsfa(base, levels, scale)
        # Asked for all layers' states the backbone runs all frames to its end.
        return torch.no_grad()(lambda: model(pixels, strengths, output_hidden_states=whole).predicted_depth)

    def released() -> Callable:
        """The released procedure: each frame by itself through the backbone, all frames queried."""
        model = models.with_dsfa(base, (last - 1, last))

        @torch.no_grad()
        def run() -> torch.Tensor:
            each = [model.backbone(frame).feature_maps for frame in pixels[0].split(1)]
            maps = [torch.cat(level)[None] for level in zip(*each, strict=True)]
            fused = [level[:, 0] for level in maps]
            for level, block in model.dsfa.items():
                tokens = maps[int(level)]
                fused[int(level)] = torch.cat([tokens[:, 0, :1], block(tokens[:, :, 1:], strengths)[:, 0]], dim=1)
            grid = 2 * (side // PATCH_PX,)
            return model.head(model.neck(fused, *grid), *grid)

        return run

    deep, early, one = "two deepest maps (default)", "two shallowest, the stack stops there", "the shallowest alone"
    rows = {
        "Depth Anything, photo alone": Contender(torch.no_grad()(lambda: base(pixels[:, 0]).predicted_depth)),
        deep: Contender(depth((last - 1, last))),
        "released procedure, restated": Contender(released(), like=deep),
        early: Contender(depth((0, 1))),
        "two shallowest, the stack goes on": Contender(depth((0, 1), whole=True), like=early),
        one: Contender(depth((0,))),
        "two deepest, stack at half size": Contender(depth((last - 1, last), 0.5), like=deep, is_exact=False),
        "the shallowest alone, stack at half size": Contender(depth((0,), 0.5), like=one, is_exact=False),
    }
    return passed & compare(f"depth from {frames} frames", rows, options.repeats, tolerance, place)


def pipeline(options: argparse.Namespace, place: dict) -> bool:
    """Both stages whole: random weights beside Kontext and Depth Anything, then the embedded model."""
    size_px, steps, strengths = options.size, options.steps, strengths_of(options.frames)
    long, _ = prompt_lengths(options.true_size, size_px)
    pipe = models.pipeline(options.true_size, *place.values(), size_px, long, **FIXED)
    depth = models.with_dsfa(models.depth_anything(options.true_size, *place.values()), (0, 1))
    depth.config.processing_resolution = PATCH_PX * max(2, round(size_px / PATCH_PX))
    pipe.register_modules(depth_estimator=depth)
    photo, tolerance = random_photo(size_px), TOLERANCE[place["dtype"]]
    memory = pipe.remember_photo(photo, steps, generator=torch.Generator(pipe.device).manual_seed(0))
    frames = kontext(pipe, photo, len(strengths), steps)

    def rival() -> torch.Tensor:
        return torch.cat([frames().flatten(), pipe.estimate_depth(photo, output_type="pt").depth_m.flatten()])

    def both(image: Any, **call: Any) -> Callable:
        def run() -> torch.Tensor:
            noise = {"generator": torch.Generator(pipe.device).manual_seed(0)} if image is photo else {}
            out = pipe(image, strengths, output_type="pt", **noise, **call)
            return torch.cat([out.images.flatten(), out.depth_m.flatten()])

        return run

    rows = {
        "Kontext, then Depth Anything": Contender(rival),
        "both stages": Contender(both(photo, num_inference_steps=steps)),
        "both stages, photo known": Contender(both(memory), like="both stages"),
    }
    passed = compare(f"random weights, {len(strengths)} K in {steps} steps", rows, options.repeats, tolerance, place)

    embedded = load_pipeline("embedded", device=place["device"])
    embedded.set_progress_bar_config(disable=True)
    photo = random_photo(options.photo)
    known = embedded.remember_photo(photo, generator=torch.Generator(embedded.device).manual_seed(0))
    frames = stack(embedded, photo, strengths, restore=True)()
    stack(embedded, known, strengths[:1])()  # what a first K leaves behind
    last = strengths[-1:]
    rows = {
        "one K, new photo": Contender(stack(embedded, photo, last, restore=True)),
        "one K, photo known": Contender(stack(embedded, known, last, restore=True), like="one K, new photo"),
        "stack": Contender(stack(embedded, photo, strengths, restore=True)),
        "depth": Contender(lambda: embedded.estimate_depth(photo, frames, strengths, output_type="pt").depth_m),
        "depth of the photo alone": Contender(lambda: embedded.estimate_depth(photo, output_type="pt").depth_m),
    }
    return passed & compare(f"embedded model, {options.photo} px", rows, options.repeats, tolerance, place)


def training(options: argparse.Namespace, place: dict) -> bool:
    """A step of adapter training, forward, backward and AdamW, the base frozen; gradients are compared."""
    batch, side, repeats = options.frames, options.size // 16, options.repeats
    long, short = prompt_lengths(options.true_size, options.size)
    base = models.transformer(options.true_size, *place.values()).requires_grad_(False)
    full, fixed = models.adapter(base, long), models.adapter(base, long, **FIXED)
    noisy, photo, velocity = (torch.randn(batch, side**2, base.config.in_channels, **place) for _ in range(3))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    grids = [torch.stack([torch.full_like(rows, stream), rows, columns], -1).flatten(0, 1) for stream in (0, 1)]
    ids, count = torch.cat(grids).to(**place), side**2
    sigma, guidance = torch.full((batch,), 0.5, **place), torch.full((batch,), 3.5, **place)

    def state(adapter: torch.nn.Module, checkpointing: bool) -> Callable[[], None]:
        def enter() -> None:
            full.detach()
            fixed.detach()
            adapter.attach(base)
            adapter.requires_grad_(True)
            base.enable_gradient_checkpointing() if checkpointing else base.disable_gradient_checkpointing()

        return enter

    def step(adapter: torch.nn.Module, prompt_tokens: int) -> Callable:
        def run() -> torch.Tensor:
            optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.0)  # the same work, and the weights stay
            pooled, condition = adapter.pooled_prompt_embeds.expand(batch, -1), adapter.attention_kwargs(strengths)
            sequence, sequence_ids = torch.cat([noisy, photo], dim=1), ids
            if adapter.config.reference_timestep is not None:
                condition |= encode_reference(base, adapter, photo, ids[count:], pooled, guidance)
                sequence, sequence_ids = noisy, ids[:count]
            predicted = base(
                hidden_states=sequence,
                encoder_hidden_states=adapter.prompt_embeds[:prompt_tokens].expand(batch, -1, -1),
                pooled_projections=pooled,
                timestep=sigma,
                guidance=guidance,
                img_ids=sequence_ids,
                txt_ids=ids.new_zeros(prompt_tokens, 3),
                joint_attention_kwargs=condition,
                return_dict=False,
            )[0][:, :count]
            (predicted - velocity).float().square().mean().backward()
            gradients = torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
            return gradients

        return run

    strengths, apart = strengths_of(batch), "photo's keys apart"
    contenders = {
        "plain step": Contender(step(full, long), state(full, False)),
        "gradient checkpointing": Contender(step(full, long), state(full, True), "plain step"),
        "short prompt": Contender(step(full, short), state(full, False)),
        apart: Contender(step(fixed, long), state(fixed, False)),
        f"{apart}, checkpointing": Contender(step(fixed, long), state(fixed, True), apart),
    }
    passed = compare(f"a training step of {batch} photos", contenders, repeats, TOLERANCE[place["dtype"]], place)
    weights = [*base.parameters(), *full.parameters()]
    print(f"beside {sum(weight.nbytes for weight in weights) / 1e9:.3g} GB of weights")
    return passed


BENCHES = {"stage1": (stage1, 160), "stage2": (stage2, 196), "pipeline": (pipeline, 128), "training": (training, 160)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--size", type=int, metavar="PX", help="side at work, a multiple of 16 (of 14 for stage2)")
    parser.add_argument("--photo", type=int, default=512, metavar="PX", help="side of the embedded model's photo")
    parser.add_argument("--frames", type=int, default=3, help="K of a stack; photos of a training step (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help="denoising steps (default: 6)")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the median counts (default: 3)")
    parser.add_argument("--device", default="cpu", help="float32 on the CPU, bfloat16 elsewhere (default: cpu)")
    parser.add_argument("--true-size", action="store_true", help="FLUX.1-Kontext and ViT-L at their own size")
    parser.add_argument("--compile", action="store_true", help="stage1: also compiled blocks, a minute more")
    options = parser.parse_args(arguments)
    bench, size_px = BENCHES[options.bench]
    options.size = options.size or size_px
    device = torch.device(options.device)
    place = {"device": device, "dtype": torch.float32 if device.type == "cpu" else torch.bfloat16}
    torch.manual_seed(0)
    if device.type == "cpu":
        torch.set_num_threads(1)
    return 0 if bench(options, place) else 1


if __name__ == "__main__":
    raise SystemExit(main())
