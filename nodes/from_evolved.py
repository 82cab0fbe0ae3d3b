"""AnimateDiff-Evolved's nodes that none of ours matches one to one, for workflows made with them; replacements.py puts them in.

Deprecated from the start: they are found by old workflows, not in the node library. Each is a few lines around our own
functions; where these give something else than AnimateDiff-Evolved, the node that applies the motion model says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comfy_api.latest import io

from ..lora.patches import with_motion_loras
from ..motion.formats import Version
from ..motion.model_sampling import set_schedule
from ..motion.module import MotionModelHandle, load_motion_model
from ..motion.schedules import AUTO, SCHEDULES, USE_EXISTING
from ..motion.splice import NORM_EVERYWHERE, NORM_PER_FRAME, apply_motion_model
from ..motion.strength import MotionStrength
from . import folders, types
from .from_evolved_context import CATEGORY, ContextOptions, ContextOptionsSocket
from .from_evolved_noise import SampleSettings, SampleSettingsSocket
from .from_evolved_strength import KeyframesSocket, multival, strengths
from .motion import warn_on_node
from .preview import preview_moving
from .types import MotionLoraSocket, MotionModelSocket

MotionModelsSocket = io.Custom("M_MODELS")

AUTOSELECT = "autoselect"
BETA_SCHEDULES = [AUTOSELECT, USE_EXISTING, *SCHEDULES]
AUTOSELECTED = {Version.LCM: "lcm"}  # where it is not what we choose
# It takes every motion model without a middle block for a v1, v3 apart, and lets all group norms see whole clips there.
TAKEN_FOR_V1 = (Version.V1, Version.SDXL, Version.HOTSHOT)
WITH_MIDDLE = (Version.V2, Version.LCM)


@dataclass(frozen=True)
class Gen2Motion:
    """One of M_MODELS: a motion model, and how it is to be applied."""

    handle: MotionModelHandle
    strengths: tuple[MotionStrength, ...]
    start_percent: float = 0.0
    end_percent: float = 1.0


class EvolvedLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedLoader",
            display_name="AnimateDiff Loader (Gen1)",
            category=CATEGORY,
            description="AnimateDiff-Evolved's Gen1 loader, for workflows made with it: loads a motion model and applies it.",
            search_aliases=["animatediff loader gen1", "ade loader", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Model.Input("model", tooltip="A checkpoint of the motion model's family."),
                io.Combo.Input("model_name", options=folders.names(folders.MOTION_MODELS), tooltip="A file in models/animatediff_models."),
                _beta_schedule(),
                ContextOptionsSocket.Input("context_options", optional=True, tooltip="From Context Options."),
                MotionLoraSocket.Input("motion_lora", optional=True, tooltip="From Motion LoRA."),
                multival("scale_multival"),
                multival("effect_multival"),
                io.Float.Input(
                    "motion_scale", default=1.0, min=0.0, step=0.001, optional=True,
                    tooltip="A factor on the motion model's attention: more for larger, sharper movement.",
                ),
                io.Boolean.Input(
                    "apply_v2_models_properly", default=True, optional=True,
                    tooltip="Off: group norms see whole clips with v2 models too, as AnimateDiff-Evolved once had it.",
                ),
                _sample_settings(),
                _keyframes(),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, model_name, beta_schedule, context_options=None, motion_lora=None, scale_multival=None,
        effect_multival=None, motion_scale=1.0, apply_v2_models_properly=True, sample_settings=None, ad_keyframes=None,
    ) -> io.NodeOutput:  # fmt: skip
        handle = load_motion_model(folders.path_of(folders.MOTION_MODELS, model_name), model_name)
        factors = (*strengths(scale_multival, effect_multival, ad_keyframes), *strengths(float(motion_scale)))
        motion = Gen2Motion(with_motion_loras(handle, types.motion_loras(motion_lora)), factors)
        return io.NodeOutput(
            _sampled(
                model, [motion], beta_schedule, context_options, sample_settings, cls.hidden.unique_id, apply_v2_models_properly
            )
        )  # fmt: skip


class EvolvedApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedApply",
            display_name="Apply AnimateDiff Model (Gen2)",
            category=CATEGORY,
            description="AnimateDiff-Evolved's Gen2 apply node, for workflows made with it: says how a motion model is applied.",
            search_aliases=["apply animatediff model gen2", "m_models", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                MotionModelSocket.Input("motion_model", tooltip="From Load Motion Model."),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip="Part of the sampling after which the motion model sets in.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip="Part of the sampling after which the motion model stops.",
                ),
                MotionLoraSocket.Input("motion_lora", optional=True, tooltip="From Motion LoRA."),
                multival("scale_multival"),
                multival("effect_multival"),
                MotionModelsSocket.Input("prev_m_models", optional=True, tooltip="A motion model that works beside this one."),
                _keyframes(),
            ],
            outputs=[MotionModelsSocket.Output(display_name="m_models", tooltip="For Use Evolved Sampling.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, motion_model, start_percent, end_percent, motion_lora=None, scale_multival=None, effect_multival=None, prev_m_models=None,
        ad_keyframes=None,
    ) -> io.NodeOutput:  # fmt: skip
        handle = with_motion_loras(types.motion_model(motion_model), types.motion_loras(motion_lora))
        factors = strengths(scale_multival, effect_multival, ad_keyframes)
        motion = Gen2Motion(handle, factors, start_percent, end_percent)
        return io.NodeOutput((motion, *_motions("prev_m_models", prev_m_models)))


class EvolvedSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedSampling",
            display_name="Use Evolved Sampling (Gen2)",
            category=CATEGORY,
            description="AnimateDiff-Evolved's Gen2 sampling node, for workflows made with it: animates a checkpoint.",
            search_aliases=["use evolved sampling gen2", "m_models", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Model.Input("model", tooltip="A checkpoint of the motion model's family."),
                _beta_schedule(),
                MotionModelsSocket.Input("m_models", optional=True, tooltip="From Apply AnimateDiff Model (Gen2)."),
                ContextOptionsSocket.Input("context_options", optional=True, tooltip="From Context Options."),
                _sample_settings(),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, beta_schedule, m_models=None, context_options=None, sample_settings=None) -> io.NodeOutput:
        motions = _motions("m_models", m_models)
        return io.NodeOutput(
            _sampled(model, motions, beta_schedule, context_options, sample_settings, cls.hidden.unique_id)
        )


def _beta_schedule() -> io.Input:
    return io.Combo.Input(
        "beta_schedule", options=BETA_SCHEDULES, default=AUTOSELECT, tooltip="The noise schedule. autoselect: the one that AnimateDiff-Evolved selects.",
    )  # fmt: skip


def _sample_settings() -> io.Input:
    return SampleSettingsSocket.Input("sample_settings", optional=True, tooltip="From Sample Settings.")


def _keyframes() -> io.Input:
    return KeyframesSocket.Input("ad_keyframes", optional=True, tooltip="From AnimateDiff Keyframe.")


def _motions(name: str, value: object) -> tuple[Gen2Motion, ...]:
    return tuple(types.own(name, value, tuple, "Apply AnimateDiff Model (Gen2)") or ())


def _sampled(
    model, motions: Sequence[Gen2Motion], choice: str, context_options: object, sample_settings: object, node_id, v2_properly=True,
):  # fmt: skip
    """A clone of model with these motion models, the first of which decides on schedule and group norms, windows and noise."""
    context = types.own("context_options", context_options, ContextOptions, "Context Options") or ContextOptions()
    settings = types.own("sample_settings", sample_settings, SampleSettings, "Sample Settings") or SampleSettings()
    result, notes = model.clone(), [*context.differences(), *settings.differences()]
    if len(motions) > 1:
        notes.append(
            "Several motion models: their effects are added up; in AnimateDiff-Evolved each works on the last one's."
        )
    if not motions and choice in SCHEDULES:
        set_schedule(result, SCHEDULES[choice])
    for motion in motions:
        version = motions[0].handle.config.version
        everywhere = version in TAKEN_FOR_V1 or (version in WITH_MIDDLE and not v2_properly)
        result = apply_motion_model(
            result,
            motion.handle,
            beta_schedule=AUTOSELECTED.get(version, AUTO) if choice == AUTOSELECT else choice,
            start_percent=motion.start_percent,
            end_percent=motion.end_percent,
            group_norm=NORM_EVERYWHERE if everywhere else NORM_PER_FRAME,
            strengths=motion.strengths,
            warn=lambda message: warn_on_node(node_id)(" ".join(filter(None, (message, *notes)))),
        )
    result = settings.applied(context.applied(result), context.innermost)
    preview_moving(result)
    return result
