"""Nodes that read files: Load Motion Model, Motion LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora.patches import MotionLora, load_lora
from ..motion.identify import FileKind
from ..motion.module import load_motion_model
from . import folders
from .types import CurveSocket, MotionLoraSocket, MotionModelSocket, curve, motion_loras


class LoadMotionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorLoadMotionModel",
            display_name="Load Motion Model",
            category="DiffDirector",
            description="Loads an AnimateDiff motion model: v1, v2, v3, SDXL-beta, HotShot-XL, AnimateLCM, Lightning, PIA, in any layout.",
            search_aliases=[
                "animatediff loader",
                "motion module",
                "load animatediff",
                "mm_sd",
                "hotshot",
                "animatelcm",
                "pia.ckpt",
            ],
            inputs=[
                io.Combo.Input(
                    "motion_model_name",
                    options=folders.names(folders.MOTION_MODELS),
                    tooltip="A file in models/animatediff_models. It is recognised by its content, not by its name.",
                )
            ],
            outputs=[
                MotionModelSocket.Output(display_name="motion_model", tooltip="Connect it to Apply Motion Model.")
            ],
        )

    @classmethod
    def execute(cls, motion_model_name: str) -> io.NodeOutput:
        path = folders.path_of(folders.MOTION_MODELS, motion_model_name)
        return io.NodeOutput(load_motion_model(path, motion_model_name))


class MotionLoraNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorMotionLora",
            display_name="Motion LoRA",
            category="DiffDirector",
            description="Adds a learned movement (a camera move, or one trained from a clip) to a motion model; several can be chained.",
            search_aliases=[
                "motion lora",
                "camera motion",
                "zoom",
                "pan",
                "tilt",
                "roll",
                "animatediff lora",
                "motiondirector",
            ],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=folders.names(folders.MOTION_LORAS),
                    tooltip="A file in models/animatediff_motion_lora. The official camera moves are made for v2 motion models.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the movement is applied. 0 is none; a negative value works against it (not exactly the opposite move).",
                ),
                MotionLoraSocket.Input(
                    "motion_lora", optional=True, tooltip="Another Motion LoRA to use at the same time."
                ),
                CurveSocket.Input(
                    "frames_curve",
                    optional=True,
                    tooltip="From Curve: a factor on strength for each frame of the clip. Takes a little more time than a constant strength.",
                ),
                CurveSocket.Input(
                    "steps_curve",
                    optional=True,
                    tooltip="From Curve: a factor on strength over the sampling, from 0% (all noise) to 100% (details).",
                ),
            ],
            outputs=[
                MotionLoraSocket.Output(
                    display_name="motion_lora", tooltip="Connect it to Apply Motion Model, or to a further Motion LoRA."
                )
            ],
        )

    @classmethod
    def execute(
        cls, lora_name: str, strength: float, motion_lora=None, frames_curve=None, steps_curve=None
    ) -> io.NodeOutput:
        layers = load_lora(folders.path_of(folders.MOTION_LORAS, lora_name), lora_name, FileKind.MOTION_LORA)
        own = MotionLora(lora_name, layers, strength, curve(frames_curve), curve(steps_curve))
        return io.NodeOutput((*motion_loras(motion_lora), own))
