"""Nodes that make one MotionLoRA of several, and a file of it: Merge Motion LoRA, Save Motion LoRA."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import torch
from comfy_api.latest import io

from ..lora.formats import ANIMATEDIFF, DIALECTS, motion_lora_state
from ..lora.patches import merge_motion_loras
from ..lora.version import VERSION
from ..trainers.checkpoint import save_tensors
from . import folders, types
from .types import MotionLoraSocket

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


class MergeMotionLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorMergeMotionLora",
            display_name="Merge Motion LoRA",
            category="DiffDirector",
            description="Makes one Motion LoRA of two: their weighted sum. It moves as both do when they are chained.",
            search_aliases=["merge motion lora", "combine motion lora", "mix motion", "resize motion lora", "lora rank", "svd"],
            inputs=[
                MotionLoraSocket.Input(
                    "motion_lora_1",
                    tooltip="One or a chain of them. To use them here chaining is enough; merge to keep several trained motions as one file, "
                    "for software that takes only one, or to reduce the rank.",
                ),
                MotionLoraSocket.Input("motion_lora_2", tooltip="The other one, or another chain. Strengths set there count."),
                io.Float.Input(
                    "weight_1", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="How much of the first. It multiplies the strength that was set there; 0 leaves it out, a negative value takes it away.",
                ),
                io.Float.Input("weight_2", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="The same for the second."),
                io.Int.Input(
                    "rank", default=0, min=0, max=1024, optional=True,
                    tooltip="0 is exact: ranks add up. Another number reduces every layer to that rank, which makes it smaller and loses a little.",
                ),
            ],
            outputs=[MotionLoraSocket.Output(display_name="motion_lora", tooltip="Connect it to Apply Motion Model or Save Motion LoRA.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, motion_lora_1: object, motion_lora_2: object, weight_1: float, weight_2: float, rank: int = 0
    ) -> io.NodeOutput:
        weighted = [
            replace(lora, strength=lora.strength * weight)
            for chain, weight in ((motion_lora_1, weight_1), (motion_lora_2, weight_2))
            for lora in types.motion_loras(chain)
        ]
        return io.NodeOutput((merge_motion_loras(weighted, rank),))


class SaveMotionLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorSaveMotionLora",
            display_name="Save Motion LoRA",
            category="DiffDirector",
            description="Writes a Motion LoRA, a chain of them included, as one file in the layout that other AnimateDiff software reads.",
            search_aliases=["save motion lora", "convert motion lora", "export motion lora", "diffusers motion lora", "resize motion lora"],
            is_output_node=True,
            inputs=[
                MotionLoraSocket.Input("motion_lora", tooltip="What to save. Of a chain, strengths go into the file: load it with strength 1."),
                io.String.Input(
                    "filename_prefix", default="my-motion",
                    tooltip="Name in models/animatediff_motion_lora, subfolders allowed; a number is added and nothing is overwritten.",
                ),
                io.Combo.Input(
                    "dialect", options=list(DIALECTS), default=ANIMATEDIFF, optional=True,
                    tooltip="AnimateDiff: for AnimateDiff-Evolved, sd-webui-animatediff and the original. diffusers: for AnimateDiffPipeline. "
                    "Motion LoRA reads both.",
                ),
                io.Combo.Input(
                    "precision", options=list(_PRECISIONS), default="fp32", optional=True,
                    tooltip="fp32 keeps every bit, as the official MotionLoRAs do; fp16 is half the size and rounds to about 3 digits.",
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=1024, optional=True,
                    tooltip="0 keeps it, and the ranks of a chain add up. Another number reduces every layer to that rank: a smaller file that loses a little.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was saved.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, motion_lora: object, filename_prefix: str, dialect: str = ANIMATEDIFF, precision: str = "fp32", rank: int = 0
    ) -> io.NodeOutput:  # fmt: skip
        loras = types.motion_loras(motion_lora)
        layers = merge_motion_loras(loras, rank).layers
        state = motion_lora_state(layers, dialect, _PRECISIONS[precision])
        metadata = {
            "model_type": "motion_lora",
            "diffdirector": VERSION,
            "dialect": dialect,
            "rank": str(max(layer.rank for layer in layers.values())),
            "sources": json.dumps([{"name": lora.name, "strength": lora.strength} for lora in loras]),
        }
        path = folders.next_path(folders.MOTION_LORAS, filename_prefix)
        save_tensors(path, state, metadata)
        logging.info("DiffDirector: saved %s", path)
        return io.NodeOutput(str(path))
