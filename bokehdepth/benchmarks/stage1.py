"""`bokehdepth bench stage1`: what a bokeh stack costs, beside FLUX.1-Kontext called the documented way.

Two groups. *pass*: one pass of the transformer over all frames, where the adapter's own cost is seen. *stack*: a photo
to decoded frames. Everything has the true classes and random weights, so figures are of speed alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn

from bokehdepth.acceleration import bake_modulation, compile_blocks, restore_modulation, set_attention
from bokehdepth.benchmarks import gates, models, timing
from bokehdepth.benchmarks.gates import Contender, compare
from bokehdepth.errors import InputError
from bokehdepth.modeling_bokeh_adapter import BokehAttnProcessor
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline

PLAIN, TRAINED, FOLDED, BAKED = "Kontext, no adapter", "as trained", "folded", "folded, baked"
RELEASED = "released procedure"
ONE_BY_ONE, TOGETHER = "Kontext, a call for each K", "Kontext, one call"
SHORT, KEPT, FIRST, SECOND = "+ short prompt", "+ photo's keys kept", "one K, new photo", "one K, photo known"
ALONE = "one K, keys not kept"
COMPILED = "+ compiled"
_RELEASED_STEPS = 50
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


class _ReleasedProcessor(BokehAttnProcessor):
    """The same numbers with the arithmetic that the released code spends on them."""

    def _branch(self, query: torch.Tensor, bokeh_embeds: torch.Tensor) -> torch.Tensor:
        """Attention over the one key by a kernel, and the map of its logits, which the release keeps."""
        key, value = (
            project(bokeh_embeds).unflatten(-1, (-1, query.shape[-1])).transpose(1, 2)
            for project in (self.to_k_bokeh, self.to_v_bokeh)
        )
        query = query.transpose(1, 2)
        self.attention_map = query @ key.transpose(-1, -2)
        return fn.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def run(
    size_px: int = 160,
    frames: int = 3,
    steps: int = 6,
    device: str = "cpu",
    repeats: int = 3,
    true_size: bool = False,
    compiled: bool = False,
) -> dict[str, Any]:
    """Measure all contenders.

    Args:
        size_px: side of the square photo, a multiple of 16 from 64.
        frames: K of a stack, 2 or more.
        steps: denoising steps, 2 or more; the released procedure is also timed with its own 50.
        device: where they run: float32 on the CPU, bfloat16 elsewhere.
        repeats: rounds; the median counts.
        true_size: FLUX.1-Kontext's own size, 24 GB in bfloat16, in place of one that a CPU computes in seconds.
        compiled: also time compiled blocks, whose compilation takes a minute for each shape.

    Returns:
        `machine`, the arguments, and `groups`: "pass" and "stack", each with `rival` and `rows` as `gates.compare`
        gives them.

    Raises:
        InputError: a number is out of range.
    """
    for name, value, least in (("frames", frames, 2), ("steps", steps, 2), ("size_px", size_px, 64)):
        if value < least or (name == "size_px" and value % 16):
            raise InputError(f"{name} is {value}, wanted {least} or more{', a multiple of 16' * (name == 'size_px')}")
    place = torch.device(device)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    with gates.one_thread(place):
        bench = _Bench(size_px, frames, steps, place, dtype, true_size)
        groups = {"pass": bench.passes(repeats), "stack": bench.stacks(repeats)}
        if compiled:
            groups["compiled"] = bench.compiled(repeats)
    arguments = {"size_px": size_px, "frames": frames, "steps": steps, "device": device, "true_size": true_size}
    return {"machine": timing.machine(device), **arguments, "dtype": str(dtype), "groups": groups}


class _Bench:
    def __init__(
        self, size_px: int, frames: int, steps: int, device: torch.device, dtype: torch.dtype, true_size: bool
    ) -> None:
        self.steps, self.device, self.dtype, self.size_px = steps, device, dtype, size_px
        self.strengths = tuple(float(k) for k in np.linspace(30 / frames, 30, frames))
        self.photo = np.random.default_rng(0).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
        tokens = (size_px // 16) ** 2
        # At FLUX's size a prompt has 512 tokens, half of those of a picture of 512 px.
        self.long, self.short = (512, 64) if true_size else (max(8, tokens // 2), max(1, tokens // 16))
        self.pipe = models.pipeline(true_size, device, dtype, size_px, self.long)
        self.tolerance = _TOLERANCE[dtype]
        self.state: tuple[Any, bool, bool, bool] = (None, False, False, False)
        self.removed: dict[str, torch.nn.Module] = {}

    # ------------------------------------------------------------------ one pass

    def passes(self, repeats: int) -> dict[str, Any]:
        """The group "pass"."""
        pipe, count = self.pipe, len(self.strengths)
        base, adapter, place = pipe.transformer, pipe.bokeh_adapter, {"device": self.device, "dtype": self.dtype}
        generator = torch.Generator(self.device).manual_seed(0)
        side = self.size_px // 16
        ids = pipe._prepare_latent_image_ids(1, side, side, self.device, self.dtype)
        pooled = adapter.pooled_prompt_embeds.expand(count, -1)
        inputs = {
            "hidden_states": torch.randn(count, 2 * side**2, base.config.in_channels, generator=generator, **place),
            "encoder_hidden_states": adapter.prompt_embeds.expand(count, -1, -1),
            "timestep": (pipe.schedule(self.steps, side**2)[1][0] / 1000).expand(count).to(**place),
            "guidance": torch.full((count,), adapter.config.guidance_scale, **place),
            "img_ids": torch.cat([ids, ids]),
            "txt_ids": torch.zeros(self.long, 3, **place),
            "pooled_projections": pooled,
        }
        condition = adapter.attention_kwargs(self.strengths)
        constant = adapter.constant_branch(condition)

        def through(arguments: dict[str, Any] | None) -> Callable[[], torch.Tensor]:
            def run() -> torch.Tensor:
                with torch.no_grad():
                    return base(**inputs, joint_attention_kwargs=arguments, return_dict=False)[0]

            return run

        exact = (TRAINED, self.tolerance)
        contenders = {
            PLAIN: Contender(through(None), prepare=self._state(None)),
            TRAINED: Contender(through(condition), prepare=self._state()),
            RELEASED: Contender(through(condition), *exact, self._state(released=True)),
            FOLDED: Contender(through(constant), *exact, self._state(folded=True)),
            BAKED: Contender(through(constant), *exact, self._state(folded=True, baked=True)),
        }
        return {"rival": PLAIN, "rows": self._compare(contenders, PLAIN, repeats)}

    # ------------------------------------------------------------------ a stack

    def stacks(self, repeats: int) -> dict[str, Any]:
        """The group "stack"."""
        base, count = self.pipe.transformer, len(self.strengths)
        fixed = models.adapter(
            base, self.short, reference_attention="causal", reference_timestep=0.0, max_area=self.size_px**2
        )
        kept, own = _with_adapter(self.pipe, fixed), self.pipe.bokeh_adapter
        short = {
            "prompt_embeds": own.prompt_embeds[None, : self.short],
            "pooled_prompt_embeds": own.pooled_prompt_embeds[None],
        }
        folded, fast = self._state(folded=True), self._state(fixed, folded=True)
        fast()
        known = kept.remember_photo(self.photo, self.steps, generator=self._noise())
        self._ours(kept, self.strengths[:1], known)()  # what a first K leaves behind
        last, exact = self.strengths[-1:], (TRAINED, self.tolerance)

        def kontext(frames_a_call: int, calls: int) -> Callable[[], torch.Tensor]:
            return models.kontext(self.pipe, self.photo, frames_a_call, self.steps, calls)

        contenders = {
            ONE_BY_ONE: Contender(kontext(1, count), prepare=self._state(None)),
            TOGETHER: Contender(kontext(count, 1), ONE_BY_ONE, self.tolerance, self._state(None)),
            TRAINED: Contender(self._ours(), prepare=self._state()),
            RELEASED: Contender(self._ours(), *exact, self._state(released=True)),
            FOLDED: Contender(self._ours(), *exact, folded),
            BAKED: Contender(self._ours(), *exact, self._state(folded=True, baked=True)),
            SHORT: Contender(self._ours(**short), prepare=folded),
            KEPT: Contender(self._ours(kept), prepare=fast),
            ALONE: Contender(self._ours(strengths=last, **short), prepare=folded),
            FIRST: Contender(self._ours(kept, last), prepare=fast),
            SECOND: Contender(self._ours(kept, last, known), FIRST, self.tolerance, fast),
        }
        rows = self._compare(contenders, TOGETHER, repeats)
        name = f"{RELEASED}, {_RELEASED_STEPS} steps"
        long = Contender(self._ours(num_inference_steps=_RELEASED_STEPS), prepare=self._state(released=True))
        (extra,) = self._compare({name: long}, name, 1)
        by_name = {row["contender"]: row for row in rows}
        extra["time_over_rival"] = extra["seconds"] / by_name[TOGETHER]["seconds"]
        return {
            "rival": TOGETHER,
            "rows": [*rows, extra],
            "keys_kept_speedup": by_name[SHORT]["seconds"] / by_name[KEPT]["seconds"],
            "second_over_first": by_name[SECOND]["seconds"] / by_name[FIRST]["seconds"],
            "second_over_keys_not_kept": by_name[SECOND]["seconds"] / by_name[ALONE]["seconds"],
        }

    def compiled(self, repeats: int) -> dict[str, Any]:
        """The group "compiled": the last thing that is done with the weights."""
        (plain,) = self._compare({FOLDED: Contender(self._ours(), prepare=self._state(folded=True))}, FOLDED, repeats)
        self._state(folded=True)()
        before = self._ours()()
        set_attention(self.pipe)
        compile_blocks(self.pipe)
        kept = {FOLDED: Contender(lambda: before)}
        kept[COMPILED] = Contender(self._ours(), FOLDED, max(self.tolerance, 1e-3))
        found = compare(kept, COMPILED, repeats, self.device, self.dtype)[1]
        found["time_over_rival"] = found["seconds"] / plain["seconds"]
        return {"rival": FOLDED, "rows": [plain, found]}

    def _compare(self, contenders: dict[str, Contender], rival: str, repeats: int) -> list[dict[str, Any]]:
        found = compare(contenders, rival, repeats, self.device, self.dtype)
        self._state(None)()
        return found

    def _state(
        self, carried: Any = "own", folded: bool = False, baked: bool = False, released: bool = False
    ) -> Callable[[], None]:
        """Something that brings the one copy of the base's weights into the state that a row asks for."""
        own = self.pipe.bokeh_adapter
        adapter = own if carried == "own" else carried
        wanted = (adapter, folded, baked, released)

        def enter() -> None:
            if self.state == wanted:
                return
            transformer = self.pipe.transformer
            if self.removed:
                restore_modulation(transformer, self.removed)
                self.removed = {}
            if self.state[0] is not None:
                self.state[0].detach()
            for processor in own.blocks.values():
                processor.__class__ = _ReleasedProcessor if released else BokehAttnProcessor
            own.constant_branch = (lambda condition: condition) if released else type(own).constant_branch.__get__(own)
            if adapter is not None:
                # A stack would fold by itself.
                adapter.prepare = type(adapter).prepare.__get__(adapter) if folded else adapter.attach
                adapter.attach(transformer)
                if folded:
                    adapter.fold()
            if baked:
                self.removed = bake_modulation(self.pipe, self.strengths, self.steps)
            self.state = wanted

        return enter

    def _noise(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)

    def _ours(
        self,
        pipe: BokehDepthPipeline | None = None,
        strengths: Sequence[float] | None = None,
        memory: Any = None,
        **options: Any,
    ) -> Callable[[], torch.Tensor]:
        pipe, strengths = pipe or self.pipe, strengths or self.strengths

        def run() -> torch.Tensor:
            own = {"num_inference_steps": self.steps, "generator": self._noise()} if memory is None else {}
            return pipe.generate_stack(
                self.photo if memory is None else memory,
                strengths,
                restore=False,
                output_type="pt",
                **{**own, **options},
            ).images

        return run


def _with_adapter(pipe: BokehDepthPipeline, adapter: torch.nn.Module) -> BokehDepthPipeline:
    """Another pipeline on the same base."""
    other = BokehDepthPipeline(**{**pipe.components, "bokeh_adapter": adapter})
    other.set_progress_bar_config(disable=True)
    return other


def as_text(result: dict[str, Any]) -> str:
    """Lay a result of `run` out as tables, one for each group."""
    size = "FLUX's size" if result["true_size"] else "small size"
    described = f"{result['device']}, {size}, {result['size_px']} px, {result['frames']} K, {result['steps']} steps"
    return gates.as_text(result, described)
