"""The node for clips of any length: Context Windows."""

from __future__ import annotations

from comfy_api.latest import io

from ..motion.context import apply_context_windows, apply_views
from ..motion.plan_picture import first_plans, picture
from ..motion.windows import FUSES, SCHEDULES, Windows

DEFAULTS = Windows()


class ContextWindows(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorContextWindows",
            display_name="Context Windows",
            category="DiffDirector",
            description="Animations of any length at the memory of one window: overlapping windows of frames are sampled together.",
            search_aliases=["context options", "sliding window", "long animation", "infinite length", "looped uniform", "freenoise"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a motion model, before or after Apply Motion Model."),
                io.Int.Input(
                    "context_length", default=DEFAULTS.length, min=1, max=1024,
                    tooltip="Frames per window: what the motion model was trained on, mostly 16, and never more than it can take.",
                ),
                io.Int.Input(
                    "overlap", default=DEFAULTS.overlap, min=0, max=1023,
                    tooltip="Frames that neighbouring windows share. More hides seams better and takes longer.",
                ),
                io.Int.Input(
                    "stride", default=DEFAULTS.stride, min=1, max=8, optional=True,
                    tooltip="With uniform schedules: 2 adds windows of every second frame, 3 also of every fourth, to hold long clips together.",
                ),
                io.Combo.Input(
                    "schedule", options=SCHEDULES, default=DEFAULTS.schedule, optional=True,
                    tooltip="static: the same windows at every step. uniform: they move with the steps, looped over the end. batched: no overlap.",
                ),
                io.Combo.Input(
                    "fuse", options=FUSES, default=DEFAULTS.fuse, optional=True,
                    tooltip="How much a window counts for its frames: pyramid, relative and smooth more in its middle, overlap-linear less in the overlap.",
                ),
                io.Boolean.Input(
                    "closed_loop", default=DEFAULTS.closed_loop, optional=True,
                    tooltip="With looped_uniform: the last frame leads back to the first, also in clips that fit into one window.",
                ),
                io.Boolean.Input(
                    "freenoise", default=False, optional=True,
                    tooltip="Later windows start from the first one's noise in another order, which holds long clips together.",
                ),
                io.Int.Input(
                    "plan_frames", default=48, min=1, max=1024, optional=True, advanced=True,
                    tooltip="For how many frames the plan is drawn. What is sampled is as long as the batch of latents.",
                ),
                io.Boolean.Input(
                    "views", default=False, optional=True, advanced=True,
                    tooltip="Windows for the motion model alone: the image model sees the whole clip at once. Steadier, in the memory of the whole clip.",
                ),
                io.Int.Input(
                    "windows_at_once", default=1, min=1, max=64, optional=True, advanced=True,
                    tooltip="Windows computed together where memory allows: faster for small pictures on a large GPU.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For any sampler, with a batch of as many latents as you like."),
                io.Image.Output(display_name="plan", tooltip="A row for each window, a column for each frame; several blocks are several steps."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, context_length, overlap, stride=1, schedule=DEFAULTS.schedule, fuse=DEFAULTS.fuse, closed_loop=False,
        freenoise=False, plan_frames=48, views=False, windows_at_once=1,
    ) -> io.NodeOutput:  # fmt: skip
        settings = Windows(context_length, overlap, stride, schedule, fuse, closed_loop)
        if not views:
            result = apply_context_windows(model, settings, freenoise=freenoise, at_once=windows_at_once)
        elif freenoise:
            raise ValueError(
                "freenoise and views: expected one of them, found both. Views see the clip's own noise; turn freenoise off."
            )
        else:
            result = apply_views(model, settings)
        return io.NodeOutput(result, picture(first_plans(settings, plan_frames)).unsqueeze(0))
