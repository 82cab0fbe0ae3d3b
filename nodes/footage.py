"""The node that reads frames of a video: Load Footage."""

from __future__ import annotations

from typing import Any

import torch
from comfy import model_management
from comfy_api.latest import io

from ..trainers.footage import find_footage
from ..trainers.video import VIDEO_EXTENSIONS
from . import folders
from .progress import progress

GIB = 1 << 30


class LoadFootage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorLoadFootage",
            display_name="Load Footage",
            category="DiffDirector",
            description="Reads frames of a video at an even rate and one size, and decodes only those: for VAE Encode, ControlNets and anchors.",
            search_aliases=["load video", "video to video", "vid2vid", "load video frames", "video to images", "footage"],
            inputs=[
                io.Combo.Input(
                    "video", options=folders.input_videos(VIDEO_EXTENSIONS), upload=io.UploadType.video,
                    tooltip="A video in ComfyUI's input folder, or in a folder in it.",
                ),
                io.Float.Input(
                    "frame_rate", default=8.0, min=0.0, max=240.0, step=0.01,
                    tooltip="Frames per second to read; motion models were trained at about 8. 0: every picture of the file, once.",
                ),
                io.Float.Input("start", default=0.0, min=0.0, max=1000000.0, step=0.01, tooltip="Seconds of the video to leave out at its start."),
                io.Int.Input("frames", default=16, min=0, max=1000000, tooltip="Frames to read. 0: all there are."),
                io.Int.Input(
                    "width", default=512, min=0, max=16384, step=8,
                    tooltip="In pixels. Pictures are scaled to cover the size and cut at the centre. 0: as the height asks, or the video's own.",
                ),
                io.Int.Input(
                    "height", default=512, min=0, max=16384, step=8,
                    tooltip="In pixels. 0: as the width asks, so that nothing is cut; both 0: the video's own size.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames."),
                io.Int.Output(display_name="frame_count", tooltip="How many they are."),
                io.Float.Output(display_name="frame_rate", tooltip="How many of them are a second: for Save Animation."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, video: str | None) -> bool | str:
        """In place of the host's check that the list has the name: files may lie deeper. None comes from another node."""
        if video is None or folders.below_input(video).is_file():
            return True
        return (
            f"video: {video!r} is not in ComfyUI's input folder. Upload it with the node's button, or choose another."
        )

    @classmethod
    def fingerprint_inputs(cls, video: str | None, **_) -> str:
        return folders.fingerprint([folders.below_input(video)] if video else [])

    @classmethod
    def execute(cls, video, frame_rate, start, frames, width, height) -> io.NodeOutput:
        footage = find_footage(folders.below_input(video), frame_rate, start, frames, width, height)
        free: Any = model_management.get_free_memory(torch.device("cpu"))
        if footage.bytes > free:
            raise ValueError(
                f"{video}: {len(footage.numbers)} frames of {footage.width}x{footage.height} take {footage.bytes / GIB:.1f} GB of memory, "
                f"{free / GIB:.1f} GB are free. Ask for fewer frames, a lower frame_rate or a smaller width and height."
            )
        images = footage.read(progress(len(footage.numbers)))
        return io.NodeOutput(images, len(images), footage.rate)
