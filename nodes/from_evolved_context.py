"""AnimateDiff-Evolved's context and view options, for workflows made with it; replacements.py puts ours in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..motion.context import apply_context_windows, apply_views
from ..motion.windows import BATCHED, FUSES, LOOPED, SCHEDULES, STATIC, UNIFORM, Windows
from . import types

ContextOptionsSocket = io.Custom("CONTEXT_OPTIONS")
ViewOptionsSocket = io.Custom("VIEW_OPTS")

VIEWS_ALONE = "view_as_context"
CATEGORY = "DiffDirector/From AnimateDiff-Evolved"


@dataclass(frozen=True)
class ContextOptions:
    """CONTEXT_OPTIONS: context windows, views inside of them, or one of both."""

    windows: Windows | None = None
    views: Windows | None = None

    @property
    def innermost(self) -> Windows | None:
        return self.views or self.windows

    def applied(self, model: Any) -> Any:
        result = model
        if self.windows is not None:
            result = apply_context_windows(result, self.windows)
        if self.views is not None:
            result = apply_views(result, self.views)
        return result

    def differences(self) -> list[str]:
        """What is alike but not the same as in AnimateDiff-Evolved, in words for the user."""
        notes = []
        for windows in filter(None, (self.windows, self.views)):
            if windows.schedule in (UNIFORM, LOOPED):
                notes.append(f"{windows.schedule}: the windows lie elsewhere than in AnimateDiff-Evolved.")
            if windows.schedule == BATCHED:
                notes.append("batched: where the last window would be shorter, AnimateDiff-Evolved leaves it so.")
            if windows.fuse == "overlap-linear":
                notes.append("overlap-linear: its ramps are a little steeper in AnimateDiff-Evolved.")
        if self.views is not None:
            notes.append(
                "Views: what they add is averaged; AnimateDiff-Evolved averages before a motion module's last layers."
            )
        return notes


class EvolvedContextOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedContextOptions",
            display_name="Context Options",
            category=CATEGORY,
            description="AnimateDiff-Evolved's context options, for workflows made with it; in new ones, Context Windows.",
            search_aliases=["context options", "looped uniform context", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Int.Input("context_length", default=16, min=1, max=128, tooltip="Frames per window."),
                io.Int.Input("context_overlap", default=4, min=0, max=128, tooltip="Frames that neighbouring windows share."),
                io.Int.Input("context_stride", default=1, min=1, max=32, optional=True, tooltip="Levels of windows that skip frames."),
                io.Combo.Input(
                    "context_schedule", options=[*SCHEDULES, VIEWS_ALONE], default=STATIC, optional=True,
                    tooltip="static: the same windows at every step. uniform: they move with the steps. batched: no overlap. "
                    "view_as_context: none, views alone.",
                ),
                io.Boolean.Input("closed_loop", default=False, optional=True, tooltip="With looped_uniform: the last frame leads back to the first."),
                io.Combo.Input("fuse_method", options=FUSES, default="pyramid", optional=True, tooltip="How much a window counts for its frames."),
                ContextOptionsSocket.Input(
                    "prev_context", optional=True, tooltip="Not possible here: other windows for a part of the sampling. Is refused.",
                ),
                ViewOptionsSocket.Input("view_opts", optional=True, tooltip="From View Options: windows for the motion model alone, inside of these."),
            ],
            outputs=[ContextOptionsSocket.Output(display_name="context_opts", tooltip="For the AnimateDiff nodes of Gen1 and Gen2.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, context_length, context_overlap, context_stride=1, context_schedule=STATIC, closed_loop=False,
        fuse_method="pyramid", prev_context=None, view_opts=None,
    ) -> io.NodeOutput:  # fmt: skip
        if prev_context is not None:
            raise ValueError(
                "prev_context: expected nothing, found other context options. Windows that change during the sampling have no "
                "counterpart in DiffDirector; disconnect it, and these options hold for all steps."
            )
        views = types.own("view_opts", view_opts, Windows, "View Options")
        if context_schedule == VIEWS_ALONE:
            return io.NodeOutput(ContextOptions(None, views))
        windows = Windows(context_length, context_overlap, context_stride, context_schedule, fuse_method, closed_loop)
        return io.NodeOutput(ContextOptions(windows, views))


class EvolvedViewOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorEvolvedViewOptions",
            display_name="View Options",
            category=CATEGORY,
            description="AnimateDiff-Evolved's view options, for workflows made with it; in new ones, Context Windows with views.",
            search_aliases=["view options", "views only", "animatediff evolved"],
            is_deprecated=True,
            inputs=[
                io.Int.Input("view_length", default=16, min=1, max=128, tooltip="Frames per view."),
                io.Int.Input("view_overlap", default=4, min=0, max=128, tooltip="Frames that neighbouring views share."),
                io.Int.Input("view_stride", default=1, min=1, max=32, optional=True, tooltip="Levels of views that skip frames."),
                io.Combo.Input(
                    "view_schedule", options=[STATIC, UNIFORM, LOOPED], default=STATIC, optional=True,
                    tooltip="static: the same views at every step. uniform: they move with the steps.",
                ),
                io.Boolean.Input("closed_loop", default=False, optional=True, tooltip="With looped_uniform: the last frame leads back to the first."),
                io.Combo.Input("fuse_method", options=FUSES, default="flat", optional=True, tooltip="How much a view counts for its frames."),
            ],
            outputs=[ViewOptionsSocket.Output(display_name="view_opts", tooltip="For Context Options.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, view_length, view_overlap, view_stride=1, view_schedule=STATIC, closed_loop=False, fuse_method="flat"
    ) -> io.NodeOutput:
        return io.NodeOutput(Windows(view_length, view_overlap, view_stride, view_schedule, fuse_method, closed_loop))
