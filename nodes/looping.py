"""What nodes that output frames show of them: the clip, playing again and again."""

from __future__ import annotations

from typing import Any

from comfy.utils import common_upscale
from comfy_api.latest import io, ui
from torch import Tensor

SIDE = 512  # px, of the longer one: it is only looked at
MOST_FRAMES = 256
FRAME_RATE = 8.0  # at which motion models were trained


def looping(images: Tensor, frame_rate: float = FRAME_RATE) -> dict[str, Any]:
    """The ui of a node: images [frames, height, width, 3 or 4] in [0, 1] as an animated WEBP in ComfyUI's temp folder. Long clips
    are thinned out evenly and keep their length in seconds; large ones are scaled down."""
    every = -(-len(images) // MOST_FRAMES)
    shown = images[::every]
    height, width = shown.shape[1:3]
    scale = SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        shown = common_upscale(shown.movedim(-1, 1), *size, "area", "disabled").movedim(1, -1)
    saved = ui.ImageSaveHelper.save_animated_webp(
        shown, "DiffDirector/preview", io.FolderType.temp, None, frame_rate / every, False, 90, 0
    )
    return ui.SavedImages([saved], is_animated=True).as_dict()
