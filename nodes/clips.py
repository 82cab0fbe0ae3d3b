"""The nodes for finished clips: Loop Clip and Clip Grid."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..motion.grid import ENDINGS, HOLD, clip_grid
from ..motion.loops import CROSSFADE, METHODS, crossfade, ping_pong
from .looping import looping


class LoopClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorLoopClip",
            display_name="Loop Clip",
            category="DiffDirector",
            description="Makes a finished clip lead back to its beginning, by blending its end into it or by playing it back again.",
            search_aliases=["seamless loop", "ping pong", "pingpong", "boomerang", "crossfade", "loop video"],
            inputs=[
                io.Image.Input("images", tooltip="The clip."),
                io.Combo.Input(
                    "method", options=METHODS, default=CROSSFADE,
                    tooltip="crossfade: the last frames blend into the first ones. ping-pong: forth and back, neither end twice.",
                ),
                io.Int.Input(
                    "frames", default=4, min=1, max=4096,
                    tooltip="With crossfade: how many frames blend, at most half of them. The clip gets so much shorter.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The clip, to be played again and again.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, method, frames) -> io.NodeOutput:
        clip = crossfade(images, frames) if method == CROSSFADE else ping_pong(images)
        return io.NodeOutput(clip, ui=looping(clip))


class ClipGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorClipGrid",
            display_name="Clip Grid",
            category="DiffDirector",
            description="Clips side by side in one clip, with labels: to compare prompts, seeds, CFG or motion models.",
            search_aliases=["xy plot", "xyz plot", "comparison grid", "video grid", "image grid", "contact sheet"],
            is_input_list=True,  # one clip for each seed or prompt of a list
            inputs=[
                io.Image.Input("images", tooltip="A list of clips: connect a list of seeds, prompts or models to the nodes before. Row by row."),
                io.Int.Input(
                    "columns", default=0, min=0, max=64,
                    tooltip="Clips in a row. 0: as many as there are column_labels, or as row_labels ask for, or about as many as rows.",
                ),
                io.String.Input("row_labels", default="", multiline=True, tooltip="A label for each row, one in each line, or a list. Empty: none."),
                io.String.Input("column_labels", default="", multiline=True, tooltip="A label for each column, one in each line, or a list. Empty: none."),
                io.Int.Input("label_size", default=20, min=8, max=200, optional=True, tooltip="Size of the letters in pixels."),
                io.Combo.Input("shorter_clips", options=ENDINGS, default=HOLD, optional=True, tooltip="What clips do that end before the longest one."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The grid, as one clip.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images, columns, row_labels, column_labels, label_size=(20,), shorter_clips=(HOLD,)
    ) -> io.NodeOutput:
        rows, labels = _labels(row_labels), _labels(column_labels)
        grid = clip_grid(images, columns[0], rows, labels, label_size[0], shorter_clips[0])
        return io.NodeOutput(grid, ui=looping(grid))


def _labels(values: list[Any]) -> list[str]:
    """A list as it is, numbers too; of a single text its lines."""
    if len(values) == 1 and isinstance(values[0], str):
        return [line.strip() for line in values[0].strip().splitlines()]
    return [str(value) for value in values]
