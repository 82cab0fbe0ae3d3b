"""Nodes for numbers that change over a clip or over the sampling: Curve, Curve From List."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from comfy_api.latest import io, ui

from ..motion.curve_picture import curve_picture
from ..motion.curves import LINEAR, NUMBER_INTERPOLATIONS, Curve, parse_curve
from .types import CurveSocket, FloatsSocket

EXAMPLE = """0%: 0
50%: 1
100%: 0"""


def outputs() -> list[io.Output]:
    return [
        CurveSocket.Output(display_name="curve", tooltip="For strengths of DiffDirector's nodes."),
        io.Float.Output(display_name="values", is_output_list=True, tooltip="The value at each frame, one by one: what follows runs once for each."),
        FloatsSocket.Output(display_name="floats", tooltip="The values of all frames at once, for Create Hook Keyframes From Floats and for other packs."),
        io.Image.Output(display_name="picture", tooltip="The value at each frame."),
    ]  # fmt: skip


class CurveNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorCurve",
            display_name="Curve",
            category="DiffDirector/Curves",
            description="A number that changes over the frames of a clip or over the sampling steps, from keyframes in a text.",
            search_aliases=["value schedule", "batch value schedule", "keyframes", "float schedule", "strength over frames", "easing"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "curve", default=EXAMPLE, multiline=True,
                    tooltip="A frame and its number in each line: 0: 1. Also 50%: (of the clip or the sampling), -1: (the last frame), 8-15: (held), "
                    "# comments, JSON; or 0.8 alone; or a number for each frame: 1, 0.5, 0.2.",
                ),
                io.Combo.Input(
                    "interpolation", options=NUMBER_INTERPOLATIONS, default=LINEAR,
                    tooltip="Between keyframes: linear evenly, ease slowly at both ends, step not until the next one.",
                ),
                io.Int.Input(
                    "frames", default=16, min=1, max=10000,
                    tooltip="Frames for values, floats and picture. The curve itself is as long as the clip or the sampling that it is used for.",
                ),
            ],
            outputs=outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, curve, interpolation=LINEAR, frames=16) -> io.NodeOutput:
        return results(cls, parse_curve(curve, interpolation), frames)


class CurveFromList(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorCurveFromList",
            display_name="Curve From List",
            category="DiffDirector/Curves",
            description="A curve from numbers that other nodes give, one for each frame: audio, splines, lists.",
            search_aliases=["floats to curve", "float list", "value list", "audio reactive", "batch value schedule"],
            is_output_node=True,
            is_input_list=True,  # all the numbers are for one curve
            inputs=[
                io.MultiType.Input(
                    "values", types=[io.Float, io.Int, FloatsSocket, io.String],
                    tooltip="A number for each frame: a list of numbers, or a text that has them (1, 0.5, 0.2).",
                ),
                io.Combo.Input(
                    "interpolation", options=NUMBER_INTERPOLATIONS, default=LINEAR, optional=True,
                    tooltip="Between the numbers where they are spread over sampling steps: linear evenly, ease slowly at both ends, step jumps.",
                ),
                io.Int.Input(
                    "frames", default=0, min=0, max=10000, optional=True,
                    tooltip="Frames for values, floats and picture: the last number stays where there are fewer. 0: as many as there are numbers.",
                ),
            ],
            outputs=outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, values, interpolation=(LINEAR,), frames=(0,)) -> io.NodeOutput:
        found = tuple(numbers(values))
        if not found:
            raise ValueError("values: expected a number for each frame, found none.")
        curve = Curve(values=found, interpolation=interpolation[0])
        return results(cls, curve, frames[0] or len(curve.values))


def results(cls: type[io.ComfyNode], curve: Curve, frames: int) -> io.NodeOutput:
    """What the outputs above give."""
    over_frames, drawn = curve.over_frames(frames), curve_picture(curve, frames)[None]
    return io.NodeOutput(curve, over_frames, over_frames, drawn, ui=ui.PreviewImage(drawn, cls=cls))


def numbers(values: Iterable[Any]) -> Iterator[float]:
    """The numbers in lists of numbers, of lists and of texts. Raises ValueError for anything else."""
    for value in values:
        value = value.tolist() if hasattr(value, "tolist") else value  # of arrays and tensors
        if isinstance(value, str):
            curve = parse_curve(value)
            if curve.keyframes:
                raise ValueError(
                    'values: expected numbers (1, 0.5, 0.2), found keyframes. They go into the node "Curve".'
                )
            yield from curve.values
        elif isinstance(value, Iterable):
            yield from numbers(value)
        elif isinstance(value, (int, float)):
            yield float(value)
        else:
            raise ValueError(f"values: expected a number for each frame, found a {type(value).__name__}.")
