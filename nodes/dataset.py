"""The node that names what is trained on: Video Dataset."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainers.camera import CAMERAS, NONE
from ..trainers.contact_sheet import contact_sheet
from ..trainers.dataset import find_frames, find_videos, read_text
from ..trainers.presets import CUSTOM, PRESETS
from . import folders, types
from .types import MotionDatasetSocket


class VideoDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorVideoDataset",
            display_name="Video Dataset",
            category="DiffDirector/Training",
            description="What is trained on: a video, a folder of videos below input/ or frames, with captions. Shows the clips that are cut from it.",
            search_aliases=["training videos", "load videos", "motion dataset", "clips", "contact sheet"],
            is_output_node=True,
            is_input_list=True,  # a list of captions is for the videos of one dataset
            inputs=[
                io.String.Input(
                    "source", default="videos",
                    tooltip="A video or a folder of videos, below ComfyUI's input folder; with a camera move, of pictures, too.",
                ),
                io.String.Input(
                    "caption", default="", multiline=True, optional=True,
                    tooltip="What the videos show. A .txt file of the same name beside a video is used instead.",
                ),
                io.Int.Input("frames", default=16, min=1, max=256, optional=True, tooltip="Frames of a clip."),
                io.Int.Input(
                    "frame_step", default=1, min=1, max=60, optional=True,
                    tooltip="Take every n-th frame: 4 makes 16 frames span about 2 seconds of a 30 fps video.",
                ),
                io.Int.Input("width", default=256, min=64, max=2048, step=8, optional=True, tooltip="Width in pixels to train at."),
                io.Int.Input("height", default=256, min=64, max=2048, step=8, optional=True, tooltip="Height in pixels to train at."),
                MotionDatasetSocket.Input("chain", optional=True, tooltip="Another Video Dataset to train on as well."),
                io.Image.Input(
                    "images", optional=True,
                    tooltip="Frames of a video to train on instead of a file; source is then ignored. With a camera move, a single picture will do.",
                ),
                io.String.Input(
                    "captions", force_input=True, optional=True,
                    tooltip="A list of captions, or a text with one in each line: one for each video in the order of their names, or one for each clip.",
                ),
                io.String.Input(
                    "caption_file", default="", optional=True,
                    tooltip="A text file below input/ with a caption in each line, as captions takes them; captions is used instead where it is connected.",
                ),
                io.Int.Input("start", default=0, min=0, max=10000000, optional=True, tooltip="Frames to leave out at the start of each video."),
                io.Int.Input(
                    "chunks", default=1, min=0, max=10000, optional=True,
                    tooltip="Clips to cut from each video, one after the other; 0 is as many as there are.",
                ),
                io.Boolean.Input(
                    "aspect_buckets", default=False, optional=True,
                    tooltip="Keep the shape of each video: width and height then only say how many pixels a frame has.",
                ),
                io.Boolean.Input(
                    "hflip", default=False, optional=True,
                    tooltip="Train on each clip mirrored, too. Not for captions that speak of left and right.",
                ),
                io.Int.Input(
                    "repeats", default=1, min=1, max=1000, optional=True,
                    tooltip="How often each clip counts, to weigh one dataset against another.",
                ),
                io.Combo.Input(
                    "preset", options=[CUSTOM, *PRESETS], default=CUSTOM, optional=True,
                    tooltip="Sets width, height and aspect_buckets in place of those above: consumer is for 8 GB. Choose the same in Train MotionDirector.",
                ),
                io.Combo.Input(
                    "camera", options=list(CAMERAS), default=NONE, optional=True,
                    tooltip="A camera move over whatever is filmed, pictures (jpg, png, webp) included: what Train Motion LoRA makes a camera LoRA of.",
                ),
                io.Float.Input(
                    "camera_amount", default=0.4, min=0.05, max=1.0, step=0.05, optional=True,
                    tooltip="How far the camera moves in a clip: 0.4 zooms by 1.4, pans by 0.4 of the width, or rolls by 0.4 of a quarter turn.",
                ),
            ],
            outputs=[
                MotionDatasetSocket.Output(display_name="dataset", tooltip="Connect it to a training node."),
                io.Image.Output(display_name="contact_sheet", tooltip="Frames of up to 16 clips, a row for each, as training will see them."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, source, images=None, caption_file=(), **_) -> str:
        """Changes with the files. Values from other nodes are not known yet, they come as None."""
        names = [*(source if images is None else []), *caption_file]
        return folders.fingerprint([folders.below_input(name) for name in names if name])

    @classmethod
    def execute(cls, source, images=(), captions=(), caption_file=(), chain=(), **values) -> io.NodeOutput:
        settings = {key: _single(key, value) for key, value in values.items()}
        preset = settings.pop("preset", CUSTOM)
        if preset != CUSTOM:
            settings |= PRESETS[preset].dataset
        if not captions and any(caption_file):
            captions = [read_text(folders.below_input(_single("caption_file", caption_file)))]
        if images:
            clips = find_frames(images, captions=captions, **settings)
        else:
            clips = find_videos(folders.below_input(_single("source", source)), captions=captions, **settings)
        dataset = (*(clip for other in chain for clip in types.motion_dataset(other)), *clips)
        sheet = contact_sheet(dataset)[None]
        return io.NodeOutput(dataset, sheet, ui=ui.PreviewImage(sheet, cls=cls))


def _single(key: str, values: list[Any]) -> Any:
    if len(values) != 1:
        raise ValueError(
            f"{key}: expected one value, found a list of {len(values)}. Lists go into captions and images."
        )
    return values[0]
