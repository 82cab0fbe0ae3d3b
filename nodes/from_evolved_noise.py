"""AnimateDiff-Evolved's sample settings and iterations, for workflows made with it; replacements.py puts ours in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from comfy_api.latest import io

from ..motion.initial_noise import apply_clip_noise, apply_free_init
from ..motion.noise import CONSTANT, DEFAULT, FILTERS, FREENOISE, REPEATED, ClipNoise, Drawing, FreeInit
from ..motion.windows import Windows
from . import types
from .from_evolved_context import CATEGORY

SampleSettingsSocket = io.Custom("SAMPLE_SETTINGS")
IterationsSocket = io.Custom("ITERATION_OPTS")

EMPTY, REPEATED_CONTEXT = "empty", "repeated_context"
NOISE_TYPES = {DEFAULT: DEFAULT, CONSTANT: CONSTANT, EMPTY: EMPTY, REPEATED_CONTEXT: REPEATED, FREENOISE: FREENOISE}
AT_ONCE, EACH = "comfy", "auto1111"
SEED_GENERATORS = [AT_ONCE, f"{AT_ONCE} [gpu]", EACH, f"{EACH} [gpu]"]
AGAIN, DINK_INIT = "again", "DinkInit_v1"
FREE_INITS = ["FreeInit [sampler sigma]", "FreeInit [model sigma]"]  # the same, there too
SAMPLERS_OWN, ONCE = ClipNoise(), FreeInit(1)
FURTHEST = 2**53


@dataclass(frozen=True)
class SampleSettings:
    """SAMPLE_SETTINGS: what a sampling starts from, and how often it is done."""

    noise: ClipNoise = SAMPLERS_OWN
    free_init: FreeInit = ONCE

    def applied(self, model: Any, windows: Windows | None) -> Any:
        """windows: those that repeated noise and FreeNoise follow; without any, noise is as it comes."""
        noise = self.noise
        if windows is not None:
            noise = replace(noise, period=windows.length, overlap=windows.overlap)
        elif noise.kind in (REPEATED, FREENOISE):
            noise = replace(noise, kind=DEFAULT)
        return model if self == SampleSettings() else apply_free_init(apply_clip_noise(model, noise), self.free_init)

    def differences(self) -> list[str]:
        """What is alike but not the same as in AnimateDiff-Evolved, in words for the user."""
        notes, count = [], self.free_init.iterations
        if count > 1 and self.free_init.filter in ("ideal", "box"):
            notes.append(f"{self.free_init.filter}: its edges lie elsewhere in AnimateDiff-Evolved.")
        if count > 2:
            notes.append(
                "FreeInit: its first noise is kept for all iterations; AnimateDiff-Evolved goes on from the last one's."
            )
        return notes


class EvolvedSampleSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedSampleSettings",
            display_name="Sample Settings",
            category=CATEGORY,
            description="AnimateDiff-Evolved's sample settings, for workflows made with it; in new ones, Clip Noise and FreeInit.",
            search_aliases=["sample settings", "sampling settings", "noise type", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Int.Input("batch_offset", default=0, min=0, max=100000, tooltip="Frames of the seed's noise that are left out before the first."),
                io.Combo.Input(
                    "noise_type", options=list(NOISE_TYPES), default=DEFAULT,
                    tooltip="What frames have in common: nothing, all, the first window's noise again, or in another order. empty is refused.",
                ),
                io.Combo.Input(
                    "seed_gen", options=SEED_GENERATORS, default=AT_ONCE,
                    tooltip="comfy: all frames from one seed. auto1111: each frame's seed is one more than the last one's. On a GPU: is refused.",
                ),
                io.Int.Input("seed_offset", default=0, min=-FURTHEST, max=FURTHEST, tooltip="Added to the sampler's seed."),
                IterationsSocket.Input("iteration_opts", optional=True, tooltip="From Iteration Options."),
                io.Int.Input(
                    "seed_override", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, optional=True, force_input=True,
                    tooltip="A seed in place of the sampler's, or a list of them, one for each frame.",
                ),
            ],
            outputs=[SampleSettingsSocket.Output(display_name="settings", tooltip="For the AnimateDiff nodes of Gen1 and Gen2.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, batch_offset, noise_type, seed_gen, seed_offset, iteration_opts=None, seed_override=None
    ) -> io.NodeOutput:
        if noise_type == EMPTY:
            raise ValueError(
                "noise_type: expected another one, found empty. Without noise: KSampler (Advanced) with add_noise off."
            )
        if seed_gen not in (AT_ONCE, EACH):
            raise ValueError(
                f"seed_gen: expected {AT_ONCE} or {EACH}, found {seed_gen}. Noise of a GPU is another on each kind; choose one of both."
            )
        free_init = types.own("iteration_opts", iteration_opts, FreeInit, "Iteration Options") or ONCE
        if isinstance(seed_override, Iterable):  # the noise type counts for nothing then
            noise = ClipNoise(seeds=tuple(seed + seed_offset for seed in seed_override))
        else:
            drawing = Drawing(seed_override, seed_offset, batch_offset, seed_gen == EACH)
            noise = ClipNoise(NOISE_TYPES[noise_type], drawing=None if drawing == Drawing() else drawing)
        return io.NodeOutput(SampleSettings(noise, free_init))


class EvolvedIterations(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedIterations",
            display_name="Iteration Options",
            category=CATEGORY,
            description="AnimateDiff-Evolved's iteration options, for workflows made with it; in new ones, FreeInit.",
            search_aliases=["iteration options", "freeinit iteration options", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Int.Input("iterations", default=2, min=1, max=20, tooltip="How often the whole clip is sampled."),
                io.Combo.Input(
                    "init_type", options=[*FREE_INITS, DINK_INIT, AGAIN], default=FREE_INITS[0], optional=True,
                    tooltip="What an iteration takes from the last one. DinkInit_v1 is refused, and so is sampling again without FreeInit.",
                ),
                io.Combo.Input("filter", options=FILTERS, default="gaussian", optional=True, tooltip="How low frequencies are told from high ones."),
                io.Float.Input("d_s", default=0.25, min=0.0, max=1.0, step=0.001, optional=True, tooltip="Where the filter cuts off in space."),
                io.Float.Input("d_t", default=0.25, min=0.0, max=1.0, step=0.001, optional=True, tooltip="Where the filter cuts off in time."),
                io.Int.Input("n_butterworth", default=4, min=1, max=100, optional=True, tooltip="With butterworth: how steeply it falls."),
                io.Int.Input("sigma_step", default=999, min=1, max=999, optional=True, tooltip="Not possible here: anything but 999 is refused."),
                io.Boolean.Input("apply_to_1st_iter", default=False, optional=True, tooltip="Not possible here: is refused."),
                io.Int.Input("iter_batch_offset", default=0, min=0, max=100000, optional=True, tooltip="Not possible here: anything but 0 is refused."),
                io.Int.Input(
                    "iter_seed_offset", default=1, min=-FURTHEST, max=FURTHEST, optional=True, tooltip="From one iteration's seed to the next one's.",
                ),
            ],
            outputs=[IterationsSocket.Output(display_name="iteration_opts", tooltip="For Sample Settings.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, iterations, init_type=FREE_INITS[0], filter="gaussian", d_s=0.25, d_t=0.25, n_butterworth=4, sigma_step=999,
        apply_to_1st_iter=False, iter_batch_offset=0, iter_seed_offset=1,
    ) -> io.NodeOutput:  # fmt: skip
        if iterations == 1:
            return io.NodeOutput(ONCE)
        given = {"init_type": init_type, "sigma_step": sigma_step, "apply_to_1st_iter": apply_to_1st_iter, "iter_batch_offset": iter_batch_offset}  # fmt: skip
        possible = {
            "init_type": FREE_INITS,
            "sigma_step": [999],
            "apply_to_1st_iter": [False],
            "iter_batch_offset": [0],
        }
        for name, value in given.items():
            if value not in possible[name]:
                raise ValueError(
                    f"{name}: expected {' or '.join(map(str, possible[name]))}, found {value}. DiffDirector has FreeInit as its authors made it, and no "
                    "other iterations: set it so, or set iterations to 1."
                )
        return io.NodeOutput(FreeInit(iterations, filter, d_s, d_t, n_butterworth, iter_seed_offset))
