"""Nodes for what sampling starts from and how it goes: FreeInit, Clip Noise, Few-Step Settings."""

from __future__ import annotations

from typing import cast

import comfy.samplers
from comfy_api.latest import io

from ..motion.few_steps import PRESETS, SCHEDULER
from ..motion.initial_noise import apply_clip_noise, apply_free_init
from ..motion.model_sampling import set_schedule
from ..motion.noise import FILTERS, KINDS, ClipNoise, FreeInit, parse_seeds

FREE_INIT, NOISE = FreeInit(), ClipNoise()
# KSampler's inputs are lists of names, and the host links them to the same lists only, not to COMBO.
SamplerName = io.Custom(cast(str, comfy.samplers.KSampler.SAMPLERS))
SchedulerName = io.Custom(cast(str, comfy.samplers.KSampler.SCHEDULERS))


class FreeInitNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorFreeInit",
            display_name="FreeInit",
            category="DiffDirector",
            description="Steadier clips for more time: samples the clip several times, each from noise that holds the last clip's outlines.",
            search_aliases=["free init", "iteration options", "noise reinitialization", "temporal consistency", "flicker"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a motion model, before or after Apply Motion Model and Context Windows."),
                io.Int.Input(
                    "iterations", default=FREE_INIT.iterations, min=1, max=20,
                    tooltip="How often the whole clip is sampled, and so how many times the time it takes. 1: as without this node.",
                ),
                io.Combo.Input(
                    "filter", options=FILTERS, default=FREE_INIT.filter, optional=True,
                    tooltip="How low frequencies, which are kept, are told from high ones, which are drawn anew. box and ideal cut sharply.",
                ),
                io.Float.Input(
                    "d_s", default=FREE_INIT.d_s, min=0.01, max=1.0, step=0.01, optional=True,
                    tooltip="Where the filter cuts off in space. Higher keeps more of the last clip's shapes.",
                ),
                io.Float.Input(
                    "d_t", default=FREE_INIT.d_t, min=0.01, max=1.0, step=0.01, optional=True,
                    tooltip="Where the filter cuts off in time. Higher keeps more of the last clip's movement; lower makes it calmer.",
                ),
                io.Int.Input(
                    "order", default=FREE_INIT.order, min=1, max=64, optional=True,
                    tooltip="With butterworth: how steeply the filter falls.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler that adds noise and runs to its last step.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, iterations, filter=FREE_INIT.filter, d_s=FREE_INIT.d_s, d_t=FREE_INIT.d_t, order=FREE_INIT.order
    ) -> io.NodeOutput:
        return io.NodeOutput(apply_free_init(model, FreeInit(iterations, filter, d_s, d_t, order)))


class ClipNoiseNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorClipNoise",
            display_name="Clip Noise",
            category="DiffDirector",
            description="What the starting noise of a clip's frames has in common: all, a period, a window, or the way from seed to seed.",
            search_aliases=["sample settings", "noise type", "seed travel", "freenoise", "constant noise", "repeated context", "seed per frame"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a motion model, before or after Apply Motion Model and Context Windows."),
                io.Combo.Input(
                    "kind", options=KINDS, default=NOISE.kind,
                    tooltip="default: each frame its own. constant: one for all. repeated: again after each period. FreeNoise: the first frames' "
                    "in another order. seed travel: smoothly to the noise of to_seed (and back).",
                ),
                io.Int.Input(
                    "period", default=NOISE.period, min=1, max=1024, optional=True,
                    tooltip="repeated: after how many frames the noise comes again. FreeNoise: frames per window, as in Context Windows.",
                ),
                io.Int.Input(
                    "overlap", default=NOISE.overlap, min=0, max=1023, optional=True,
                    tooltip="FreeNoise: frames that neighbouring windows share, as in Context Windows.",
                ),
                io.String.Input(
                    "seeds", default="", optional=True,
                    tooltip='A seed for each frame, as "5, 6, 10-13"; fewer than frames start again. Empty: all from the sampler\'s seed.',
                ),
                io.Int.Input(
                    "to_seed", default=NOISE.to_seed, min=0, max=0xFFFFFFFFFFFFFFFF, optional=True,
                    tooltip="seed travel: where it leads to, from the sampler's seed or from the first of seeds.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler. Where the sampler adds no noise, none is added.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, kind, period=NOISE.period, overlap=NOISE.overlap, seeds="", to_seed=NOISE.to_seed
    ) -> io.NodeOutput:
        return io.NodeOutput(apply_clip_noise(model, ClipNoise(kind, period, overlap, parse_seeds(seeds), to_seed)))


class FewSteps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorFewSteps",
            display_name="Few-Step Settings",
            category="DiffDirector",
            description="The sampler settings that AnimateLCM and AnimateDiff-Lightning were made for, to plug into any sampler.",
            search_aliases=["lcm", "animatelcm", "animatediff lightning", "few steps", "fast sampling", "distilled"],
            inputs=[
                io.Model.Input("model", tooltip="From Apply Motion Model, with the motion model that the preset names."),
                io.Combo.Input(
                    "preset", options=list(PRESETS), default="AnimateLCM, 6 steps",
                    tooltip="The motion model and its number of steps. Each Lightning file is made for its own.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the preset's noise schedule."),
                io.Int.Output(display_name="steps", tooltip="For KSampler's steps."),
                io.Float.Output(display_name="cfg", tooltip="For KSampler's cfg, or that of a guider."),
                SamplerName.Output(display_name="sampler_name", tooltip="For KSampler's sampler_name."),
                SchedulerName.Output(display_name="scheduler", tooltip="For KSampler's scheduler."),
                io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced."),
                io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustomAdvanced."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, preset) -> io.NodeOutput:
        settings, result = PRESETS[preset], model.clone()
        set_schedule(result, settings.schedule)
        sigmas = comfy.samplers.calculate_sigmas(result.get_model_object("model_sampling"), SCHEDULER, settings.steps)
        sampler = comfy.samplers.sampler_object(settings.sampler)
        return io.NodeOutput(
            result, settings.steps, settings.cfg, settings.sampler, SCHEDULER, sampler, sigmas
        )  # fmt: skip
