"""The node that writes a clip to a file that plays: Save Animation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..trainers.animation import FORMATS, save_animation
from .looping import looping
from .progress import progress

PNG = "png sequence"
FASTEST_GIF = 50  # frames a second: browsers play shorter delays than two hundredths at a tenth of the speed


class SaveAnimation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorSaveAnimation",
            display_name="Save Animation",
            category="DiffDirector",
            description="Writes a clip as mp4, webm, animated WEBP, GIF or PNG frames into ComfyUI's output folder, and plays it in the node.",
            search_aliases=["save video", "video combine", "save gif", "export video", "mp4", "webm", "save webp", "png sequence"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The clip."),
                io.String.Input(
                    "filename_prefix", default="DiffDirector/clip",
                    tooltip="Name in ComfyUI's output folder, subfolders and %year% and the like allowed; a number is added and nothing is overwritten.",
                ),
                io.Float.Input(
                    "frame_rate", default=8.0, min=0.1, max=240.0, step=0.01,
                    tooltip="Frames per second. Motion models were trained at about 8; Load Footage has an output for its own.",
                ),
                io.Combo.Input(
                    "format", options=[*FORMATS, PNG], default="mp4",
                    tooltip="mp4 (H.264) plays everywhere, webm (VP9) is smaller, webp keeps transparency, gif has 256 colours, PNG frames lose nothing.",
                ),
                io.Int.Input(
                    "quality", default=80, min=0, max=100, optional=True,
                    tooltip="For mp4, webm and webp: higher looks better and is larger; webp loses nothing at 100.",
                ),
                io.Int.Input("loops", default=0, min=0, max=1000, optional=True, tooltip="For gif and webp: how often it is played. 0: for ever."),
                io.Audio.Input("audio", optional=True, tooltip="For mp4 and webm: what is heard; it is cut to the clip's length."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was saved; of PNG frames the first one.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, format: str | None = None, frame_rate: float | None = None) -> bool | str:
        """Before anything is sampled. None comes from another node."""
        if format == "gif" and frame_rate is not None and frame_rate > FASTEST_GIF:
            return f"frame_rate: a GIF plays at most {FASTEST_GIF} frames a second, found {frame_rate:g}. Lower it, or save as webp or mp4."
        return True

    @classmethod
    def execute(cls, images, filename_prefix, frame_rate, format, quality=80, loops=0, audio=None) -> io.NodeOutput:
        if format == PNG:
            if audio is not None:
                raise ValueError("PNG frames have no sound. Save as mp4 or webm, or disconnect the audio.")
            shown = ui.ImageSaveHelper.get_save_images_ui(images, filename_prefix, cls)
            first = shown.results[0]
            return io.NodeOutput(
                str(Path(folder_paths.get_output_directory(), first.subfolder, first.filename)), ui=shown
            )
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), images.shape[2], images.shape[1]
        )
        path = Path(folder) / f"{name}_{counter:05}_.{format}"
        sound = None if audio is None else (audio["waveform"][0], audio["sample_rate"])
        save_animation(path, images, frame_rate, quality, loops, sound, cls._metadata(), progress(len(images)))
        return io.NodeOutput(
            str(path), ui=_shown(images, frame_rate, ui.SavedResult(path.name, subfolder, io.FolderType.output))
        )

    @classmethod
    def _metadata(cls) -> dict[str, str]:
        """The graph as the host's own savers write it, for dropping the file on the canvas."""
        if args.disable_metadata:
            return {}
        values = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        return {key: json.dumps(value) for key, value in values.items() if value is not None}


def _shown(images: Any, frame_rate: float, saved: ui.SavedResult) -> dict[str, Any]:
    """The file, playing. A GIF is shown by an animated WEBP of it: the front end takes others that are animated for videos."""
    if saved.filename.endswith(".gif"):
        return looping(images, frame_rate) | {"gifs": [saved]}
    return ui.SavedImages([saved], is_animated=True).as_dict()
