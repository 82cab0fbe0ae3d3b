"""The node for how much a motion model does where and when: Motion Strength."""

from __future__ import annotations

from comfy_api.latest import io

from ..motion.strength import EFFECT, KINDS, MotionStrength, parse_blocks
from .types import CurveSocket, MotionStrengthSocket, curve, motion_strengths


class MotionStrengthNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorMotionStrength",
            display_name="Motion Strength",
            category="DiffDirector/Curves",
            description="How much a motion model does over the frames, over the sampling, over the picture and block by block.",
            search_aliases=["multival", "effect multival", "scale multival", "motion scale", "ad keyframe", "per block", "motion mask"],
            inputs=[
                io.Combo.Input(
                    "kind", options=KINDS, default=EFFECT,
                    tooltip="effect: how much of the motion model is added. attention scale: more than 1 for larger, sharper movement, less for calmer.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=10.0, step=0.01,
                    tooltip="Everywhere and all the time; all that is connected below is multiplied with it.",
                ),
                CurveSocket.Input("frames_curve", optional=True, tooltip="From Curve: a strength for each frame of the clip."),
                CurveSocket.Input(
                    "steps_curve", optional=True,
                    tooltip="From Curve: over the sampling, from 0% (all noise, where movement is decided) to 100% (details).",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where in the picture: white as strength says, black not at all. One mask, or one for each frame.",
                ),
                io.String.Input(
                    "blocks", default="", optional=True, advanced=True,
                    tooltip="Strengths of parts of the network, such as: down.0: 0.5, mid: 0, up: 1.2. Also down.1.0, a single motion module.",
                ),
                MotionStrengthSocket.Input("motion_strength", optional=True, tooltip="Another Motion Strength to multiply with."),
            ],
            outputs=[MotionStrengthSocket.Output(display_name="motion_strength", tooltip="Connect it to Apply Motion Model, or to a further Motion Strength.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, kind, strength, frames_curve=None, steps_curve=None, mask=None, blocks="", motion_strength=None
    ) -> io.NodeOutput:
        own = MotionStrength(
            kind, strength, curve(frames_curve), curve(steps_curve), _one_for_each_frame(mask), parse_blocks(blocks)
        )
        return io.NodeOutput((*motion_strengths(motion_strength), own))


def _one_for_each_frame(mask):
    """mask as [n, h, w]."""
    return mask if mask is None else mask.reshape(-1, *mask.shape[-2:])
