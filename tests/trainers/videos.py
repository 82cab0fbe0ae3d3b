"""Real video files, written for the tests: which frame it is can be read off its grey."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from torch import Tensor


def write_video(
    path: Path,
    frames: int = 12,
    width: int = 48,
    height: int = 32,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    aspect: Fraction | None = None,
    metadata: dict[str, str] | None = None,
    **options: Any,
) -> None:
    """Frame i is grey(i), with a white left half. times: when each is shown, in eighths of a second.

    With a pix_fmt that has alpha, the lower half is transparent.
    """
    transparent = pix_fmt in ("argb", "rgba", "yuva420p")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.options = ({"crf": "4"} if codec == "libx264" else {}) | {
            key.replace("_", "-"): str(value) for key, value in options.items()
        }
        stream.metadata.update(metadata or {})
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for index in range(frames):
            picture = np.full((height, width, 4 if transparent else 3), grey(index), np.uint8)
            picture[:, : width // 2] = 255
            if transparent:
                picture[..., 3] = 255
                picture[height // 2 :, :, 3] = 0
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if transparent else "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def grey(index: int) -> int:
    return 16 + 18 * (index % 12)


def greys(clip: Tensor) -> list[int]:
    """The numbers (modulo 12) of the frames of clip, [f, 3, h, w] in [0, 1], read at their right."""
    right = clip[:, :, : clip.shape[2] // 4, -clip.shape[3] // 4 :].mean((1, 2, 3)) * 255
    return [round((float(value) - 16) / 18) for value in right]


def turn(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write a display matrix into the mp4 at path: x' = a x + c y, y' = b x + d y."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # version 0
    one = 1 << 16
    content[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
