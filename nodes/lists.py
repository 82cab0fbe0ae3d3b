"""The node that makes a list of a text: List from Text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker


class ListFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorListFromText",
            display_name="List from Text",
            category="DiffDirector",
            description="A list with an entry for each line, of texts or of numbers: what it is connected to runs once for each.",
            search_aliases=["text list", "prompt list", "seed list", "number list", "lines to list", "split text", "batch prompts", "for each"],
            inputs=[
                io.String.Input("text", default="", multiline=True, tooltip="A prompt, a seed or another number in each line. Empty lines are left out."),
                io.Int.Input(
                    "each", default=1, min=1, max=1000, optional=True,
                    tooltip="How often each entry comes before the next: for the rows of a grid, its number of columns.",
                ),
                io.Int.Input(
                    "times", default=1, min=1, max=1000, optional=True,
                    tooltip="How often the whole list comes: for the columns of a grid, its number of rows.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="texts", is_output_list=True, tooltip="The lines."),
                io.Int.Output(display_name="integers", is_output_list=True, tooltip="The lines as whole numbers, such as seeds and steps."),
                io.Float.Output(display_name="numbers", is_output_list=True, tooltip="The lines as numbers, such as CFG and strengths."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, text, each=1, times=1) -> io.NodeOutput:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise ValueError("text: expected a line for each entry of the list, found nothing.")
        lines = [line for line in lines for _ in range(each)] * times
        return io.NodeOutput(lines, _numbers(lines, int, "a whole number"), _numbers(lines, float, "a number"))


def _numbers(lines: Sequence[str], kind: Callable[[str], Any], expected: str) -> Any:
    """lines as numbers; where one is none, what stops those who use them, and only those."""
    numbers = []
    for line in lines:
        try:
            numbers.append(kind(line))
        except ValueError:
            return ExecutionBlocker(f"List from Text: expected {expected} in each line, found {line!r}.")
    return numbers
