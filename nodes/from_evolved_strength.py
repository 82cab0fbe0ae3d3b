"""AnimateDiff-Evolved's multivals and keyframes, for workflows made with it; replacements.py puts ours in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..motion.curves import STEP, Curve, parse_curve
from ..motion.strength import ATTENTION, EFFECT, MotionStrength
from . import types
from .from_evolved_context import CATEGORY

MultivalSocket = io.Custom("MULTIVAL")
KeyframesSocket = io.Custom("AD_KEYFRAMES")


@dataclass(frozen=True)
class StrengthKeyframe:
    """One of AD_KEYFRAMES: factors from a part of the sampling on; None as before, or 1 where nothing is kept."""

    start_percent: float
    factors: dict[str, float | None]
    keep: bool


class EvolvedMultival(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedMultival",
            display_name="Multival",
            category=CATEGORY,
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


class EvolvedKeyframe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedKeyframe",
            display_name="AnimateDiff Keyframe",
            category=CATEGORY,
            description="AnimateDiff-Evolved's keyframe of a motion model, for workflows made with it; in new ones, Motion Strength.",
            search_aliases=["animatediff keyframe", "ad keyframes", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip="Part of the sampling from which it holds."),
                KeyframesSocket.Input("prev_ad_keyframes", optional=True, tooltip="Other keyframes."),
                multival("scale_multival"),
                multival("effect_multival"),
                io.Boolean.Input("inherit_missing", default=True, optional=True, tooltip="What is not connected stays as it was; off: is 1."),
                io.Int.Input(
                    "guarantee_steps", default=1, min=0, max=10000, optional=True, tooltip="Not possible here: more than 1 is refused.",
                ),
            ],
            outputs=[KeyframesSocket.Output(display_name="ad_keyframes", tooltip="For the AnimateDiff nodes of Gen1 and Gen2.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, start_percent, prev_ad_keyframes=None, scale_multival=None, effect_multival=None, inherit_missing=True, guarantee_steps=1,
    ) -> io.NodeOutput:  # fmt: skip
        if guarantee_steps > 1:
            raise ValueError(
                f"guarantee_steps: expected 1 or 0, found {guarantee_steps}. Keyframes hold from start_percent on here, however many steps that are: "
                "set it to 1, and the start_percent of the next keyframe to where this one is to end."
            )
        keyframe = StrengthKeyframe(start_percent, _factors(scale_multival, effect_multival), inherit_missing)
        before = types.own("prev_ad_keyframes", prev_ad_keyframes, tuple, "AnimateDiff Keyframe") or ()
        return io.NodeOutput((*before, keyframe))


def multival(name: str) -> io.Input:
    what = "the motion model's attention" if name == "scale_multival" else "what the motion model adds"
    return MultivalSocket.Input(name, optional=True, tooltip=f"From Multival: a factor on {what}.")


def strengths(scale: object = None, effect: object = None, keyframes: object = None) -> tuple[MotionStrength, ...]:
    """As AnimateDiff-Evolved understands its multivals and keyframes: their product."""
    found = [MotionStrength(kind, amount) for kind, amount in _factors(scale, effect).items() if amount not in (None, 1.0)]  # fmt: skip
    own = types.own("ad_keyframes", keyframes, tuple, "AnimateDiff Keyframe") or ()
    for kind in (ATTENTION, EFFECT):
        if any(keyframe.factors[kind] is not None for keyframe in own):
            found.append(MotionStrength(kind, over_steps=_over_steps(own, kind)))
    return tuple(found)


def _factors(scale: Any, effect: Any) -> dict[str, float | None]:
    return {
        ATTENTION: types.own("scale_multival", scale, float, "Multival"),
        EFFECT: types.own("effect_multival", effect, float, "Multival"),
    }


def _over_steps(keyframes: tuple[StrengthKeyframe, ...], kind: str) -> Curve:
    values = {0.0: 1.0}
    for keyframe in sorted(keyframes, key=lambda keyframe: keyframe.start_percent):
        factor = keyframe.factors[kind]
        if factor is None:
            factor = list(values.values())[-1] if keyframe.keep else 1.0
        values[keyframe.start_percent] = factor
    return parse_curve("\n".join(f"{100 * start:.4f}%: {value:.6f}" for start, value in values.items()), STEP)
