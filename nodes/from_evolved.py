"""AnimateDiff-Evolved's nodes that none of ours matches one to one, for workflows made with them; replacements.py puts them in.

Deprecated from the start: they are found by old workflows, not in the node library. Each is a few lines around our own
functions; where these give something else than AnimateDiff-Evolved, the node that applies the motion model says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from comfy_api.latest import io

from ..lora.patches import with_motion_loras
from ..motion.context import apply_context_windows
from ..motion.formats import Version
from ..motion.model_sampling import set_schedule
from ..motion.module import MotionModelHandle, load_motion_model
from ..motion.schedules import SCHEDULES, USE_EXISTING
from ..motion.splice import NORM_EVERYWHERE, NORM_PER_FRAME, apply_motion_model
from ..motion.strength import ATTENTION, EFFECT, MotionStrength
from ..motion.windows import FUSES, LOOPED, STATIC, UNIFORM, Windows
from . import folders, types
from .motion import warn_on_node
from .preview import preview_moving
from .types import MotionLoraSocket, MotionModelSocket

ContextOptionsSocket = io.Custom("CONTEXT_OPTIONS")
MotionModelsSocket = io.Custom("M_MODELS")
MultivalSocket = io.Custom("MULTIVAL")

AUTOSELECT = "autoselect"
BETA_SCHEDULES = [AUTOSELECT, USE_EXISTING, *SCHEDULES]
AUTOSELECTED = {
    Version.V1: "sqrt_linear (AnimateDiff)",
    Version.V2: "sqrt_linear (AnimateDiff)",
    Version.V3: "sqrt_linear (AnimateDiff)",
    Version.SDXL: "linear (AnimateDiff-SDXL)",
    Version.HOTSHOT: "linear (HotshotXL/default)",
    Version.LCM: "lcm",
    Version.PIA: "sqrt_linear (AnimateDiff)",
}
# It takes every motion model without a middle block for a v1, v3 apart, and lets all group norms see whole clips there.
TAKEN_FOR_V1 = (Version.V1, Version.SDXL, Version.HOTSHOT)
WITH_MIDDLE = (Version.V2, Version.LCM)

Own = TypeVar("Own")


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
            category="DiffDirector/From AnimateDiff-Evolved",
            description="AnimateDiff-Evolved's Gen1 loader, for workflows made with it: loads a motion model and applies it.",
            search_aliases=["animatediff loader gen1", "ade loader", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Model.Input("model", tooltip="A checkpoint of the motion model's family."),
                io.Combo.Input("model_name", options=folders.names(folders.MOTION_MODELS), tooltip="A file in models/animatediff_models."),
                _beta_schedule(),
                ContextOptionsSocket.Input("context_options", optional=True, tooltip="From Context Options."),
                MotionLoraSocket.Input("motion_lora", optional=True, tooltip="From Motion LoRA."),
                _multival("scale_multival"),
                _multival("effect_multival"),
                io.Float.Input(
                    "motion_scale", default=1.0, min=0.0, step=0.001, optional=True,
                    tooltip="A factor on the motion model's attention: more for larger, sharper movement.",
                ),
                io.Boolean.Input(
                    "apply_v2_models_properly", default=True, optional=True,
                    tooltip="Off: group norms see whole clips with v2 models too, as AnimateDiff-Evolved once had it.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, model_name, beta_schedule, context_options=None, motion_lora=None, scale_multival=None,
        effect_multival=None, motion_scale=1.0, apply_v2_models_properly=True,
    ) -> io.NodeOutput:  # fmt: skip
        handle = load_motion_model(folders.path_of(folders.MOTION_MODELS, model_name), model_name)
        strengths = (*_strengths(scale_multival, effect_multival), *_strengths(float(motion_scale)))
        motion = Gen2Motion(with_motion_loras(handle, types.motion_loras(motion_lora)), strengths)
        return io.NodeOutput(
            _sampled(model, [motion], beta_schedule, context_options, cls.hidden.unique_id, apply_v2_models_properly)
        )


class EvolvedApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedApply",
            display_name="Apply AnimateDiff Model (Gen2)",
            category="DiffDirector/From AnimateDiff-Evolved",
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
                _multival("scale_multival"),
                _multival("effect_multival"),
                MotionModelsSocket.Input("prev_m_models", optional=True, tooltip="A motion model that works beside this one."),
            ],
            outputs=[MotionModelsSocket.Output(display_name="m_models", tooltip="For Use Evolved Sampling.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, motion_model, start_percent, end_percent, motion_lora=None, scale_multival=None, effect_multival=None, prev_m_models=None,
    ) -> io.NodeOutput:  # fmt: skip
        handle = with_motion_loras(types.motion_model(motion_model), types.motion_loras(motion_lora))
        motion = Gen2Motion(handle, _strengths(scale_multival, effect_multival), start_percent, end_percent)
        return io.NodeOutput((motion, *_motions("prev_m_models", prev_m_models)))


class EvolvedSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedSampling",
            display_name="Use Evolved Sampling (Gen2)",
            category="DiffDirector/From AnimateDiff-Evolved",
            description="AnimateDiff-Evolved's Gen2 sampling node, for workflows made with it: animates a checkpoint.",
            search_aliases=["use evolved sampling gen2", "m_models", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Model.Input("model", tooltip="A checkpoint of the motion model's family."),
                _beta_schedule(),
                MotionModelsSocket.Input("m_models", optional=True, tooltip="From Apply AnimateDiff Model (Gen2)."),
                ContextOptionsSocket.Input("context_options", optional=True, tooltip="From Context Options."),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, beta_schedule, m_models=None, context_options=None) -> io.NodeOutput:
        motions = _motions("m_models", m_models)
        return io.NodeOutput(_sampled(model, motions, beta_schedule, context_options, cls.hidden.unique_id))


class EvolvedContextOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedContextOptions",
            display_name="Context Options",
            category="DiffDirector/From AnimateDiff-Evolved",
            description="AnimateDiff-Evolved's context options, for workflows made with it; in new ones, Context Windows.",
            search_aliases=["context options", "looped uniform context", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Int.Input("context_length", default=16, min=1, max=128, tooltip="Frames per window."),
                io.Int.Input("context_overlap", default=4, min=0, max=128, tooltip="Frames that neighbouring windows share."),
                io.Int.Input("context_stride", default=1, min=1, max=32, optional=True, tooltip="Levels of windows that skip frames."),
                io.Combo.Input(
                    "context_schedule", options=[STATIC, UNIFORM, LOOPED], default=STATIC, optional=True,
                    tooltip="static: the same windows at every step. uniform: they move with the steps.",
                ),
                io.Boolean.Input("closed_loop", default=False, optional=True, tooltip="With looped_uniform: the last frame leads back to the first."),
                io.Combo.Input("fuse_method", options=FUSES, default="pyramid", optional=True, tooltip="How much a window counts for its frames."),
                ContextOptionsSocket.Input(
                    "prev_context", optional=True, tooltip="Not possible here: other windows for a part of the sampling. Is refused.",
                ),
            ],
            outputs=[ContextOptionsSocket.Output(display_name="context_opts", tooltip="For the AnimateDiff nodes of Gen1 and Gen2.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, context_length, context_overlap, context_stride=1, context_schedule=STATIC, closed_loop=False,
        fuse_method="pyramid", prev_context=None,
    ) -> io.NodeOutput:  # fmt: skip
        if prev_context is not None:
            raise ValueError(
                "prev_context: expected nothing, found other context options. Windows that change during the sampling have no "
                "counterpart in DiffDirector; disconnect it, and these options hold for all steps."
            )
        return io.NodeOutput(
            Windows(context_length, context_overlap, context_stride, context_schedule, fuse_method, closed_loop)
        )


class EvolvedMultival(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedMultival",
            display_name="Multival",
            category="DiffDirector/From AnimateDiff-Evolved",
            description="AnimateDiff-Evolved's number for motion models, for workflows made with it; in new ones, Motion Strength.",
            search_aliases=["multival dynamic", "motion scale", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Float.Input("float_val", default=1.0, min=0.0, step=0.001, tooltip="For all frames and places."),
                io.Mask.Input(
                    "mask_optional", optional=True, tooltip="Not possible here: masks go into Motion Strength, which scales them otherwise. Is refused.",
                ),
            ],
            outputs=[MultivalSocket.Output(display_name="multival", tooltip="For scale_multival or effect_multival.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, float_val, mask_optional=None) -> io.NodeOutput:
        if mask_optional is not None:
            raise ValueError(
                "mask_optional: expected nothing, found a mask. DiffDirector fits masks to the network in another way: "
                "connect it to Motion Strength, and that to Apply Motion Model."
            )
        return io.NodeOutput(float(float_val))


def _beta_schedule() -> io.Input:
    return io.Combo.Input(
        "beta_schedule", options=BETA_SCHEDULES, default=AUTOSELECT, tooltip="The noise schedule. autoselect: the one that AnimateDiff-Evolved selects.",
    )  # fmt: skip


def _multival(name: str) -> io.Input:
    what = "the motion model's attention" if name == "scale_multival" else "what the motion model adds"
    return MultivalSocket.Input(name, optional=True, tooltip=f"From Multival: a factor on {what}.")


def _strengths(scale: object = None, effect: object = None) -> tuple[MotionStrength, ...]:
    """As AnimateDiff-Evolved understands its multivals."""
    given = {
        ATTENTION: _own("scale_multival", scale, float, "Multival"),
        EFFECT: _own("effect_multival", effect, float, "Multival"),
    }
    return tuple(MotionStrength(kind, amount) for kind, amount in given.items() if amount not in (None, 1.0))


def _own(name: str, value: Any, kind: type[Own], source: str) -> Own | None:
    """value as ours, or None; other packs use the same socket names for objects of their own."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(
            f"{name}: expected the output of DiffDirector's {source}, found a {type(value).__name__} of another pack."
        )
    return value


def _motions(name: str, value: object) -> tuple[Gen2Motion, ...]:
    return tuple(_own(name, value, tuple, "Apply AnimateDiff Model (Gen2)") or ())


def _sampled(model, motions: Sequence[Gen2Motion], choice: str, context_options: object, node_id, v2_properly=True):
    """A clone of model with these motion models, the first of which decides on schedule and group norms, and windows."""
    windows = _own("context_options", context_options, Windows, "Context Options")
    result, notes = model.clone(), _differences(motions, windows)
    if not motions and choice in SCHEDULES:
        set_schedule(result, SCHEDULES[choice])
    for motion in motions:
        version = motions[0].handle.config.version
        everywhere = version in TAKEN_FOR_V1 or (version in WITH_MIDDLE and not v2_properly)
        result = apply_motion_model(
            result,
            motion.handle,
            beta_schedule=AUTOSELECTED[version] if choice == AUTOSELECT else choice,
            start_percent=motion.start_percent,
            end_percent=motion.end_percent,
            group_norm=NORM_EVERYWHERE if everywhere else NORM_PER_FRAME,
            strengths=motion.strengths,
            warn=lambda message: warn_on_node(node_id)(" ".join(filter(None, (message, *notes)))),
        )
    if windows is not None:
        result = apply_context_windows(result, windows)
    preview_moving(result)
    return result


def _differences(motions: Sequence[Gen2Motion], windows: Windows | None) -> list[str]:
    """What is alike but not the same as in AnimateDiff-Evolved, in words for the user."""
    notes = []
    if len(motions) > 1:
        notes.append(
            "Several motion models: their effects are added up; in AnimateDiff-Evolved each works on the last one's."
        )
    if windows is not None and windows.schedule != STATIC:
        notes.append(f"{windows.schedule}: the windows lie elsewhere than in AnimateDiff-Evolved.")
    if windows is not None and windows.fuse == "overlap-linear":
        notes.append("overlap-linear: its ramps are a little steeper in AnimateDiff-Evolved.")
    return notes
