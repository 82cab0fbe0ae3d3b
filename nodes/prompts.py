"""The node for prompts that change over a clip: Prompt Travel."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..motion.curve_picture import travel_picture
from ..motion.curves import LINEAR, PROMPT_INTERPOLATIONS
from ..motion.travel import encode_travel, plan_travel

EXAMPLE = """0: a forest in spring, blossoms
50%: the same forest in autumn, red leaves
-1: the same forest in winter, deep snow"""


class PromptTravel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorPromptTravel",
            display_name="Prompt Travel",
            category="DiffDirector",
            description="Prompts that change over the clip: a prompt at each keyframe, and every frame sees what lies between them.",
            search_aliases=["prompt schedule", "batch prompt schedule", "prompt scheduling", "keyframes", "animated prompt", "clip text encode"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the checkpoint, with its LoRAs and hooks."),
                io.String.Input(
                    "prompts", default=EXAMPLE, multiline=True,
                    tooltip="A frame and its prompt in each line: 0: a forest. Also -1: (the last frame), 50%: (of the clip), 8-15: (held), "
                    "head: and tail: (around every prompt), # comments, JSON.",
                ),
                io.Int.Input(
                    "frames", default=16, min=1, max=10000,
                    tooltip="Frames of the clip: the same number as batch_size of the empty latent.",
                ),
                io.String.Input(
                    "prefix", default="", optional=True,
                    tooltip="Put before every prompt, with a space between, in front of what head: says.",
                ),
                io.String.Input(
                    "suffix", default="", optional=True,
                    tooltip="Put behind every prompt, with a space between, behind what tail: says.",
                ),
                io.Combo.Input(
                    "interpolation", options=PROMPT_INTERPOLATIONS, default=LINEAR, optional=True,
                    tooltip="Between keyframes: linear evenly, slerp turning instead of fading, ease slowly at both ends, step not until the next one.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="For positive or negative of any sampler: a row for each frame."),
                io.Image.Output(display_name="plan", tooltip="A row for each prompt, a column for each frame, the brighter the more the frame sees of it."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip, prompts, frames, prefix="", suffix="", interpolation=LINEAR) -> io.NodeOutput:
        travel = plan_travel(prompts, frames, prefix, suffix, interpolation)
        drawn = travel_picture(travel)[None]
        return io.NodeOutput(encode_travel(clip, travel), drawn, ui=ui.PreviewImage(drawn, cls=cls))
