"""Video files -> the frames that are asked for, upright, opaque and in the order they are shown. No host import.

Decoded with PyAV, which ComfyUI brings: it starts at the key frame before the first frame that is needed, stops after
the last, and turns no other frame into pixels.
"""

from __future__ import annotations

import logging
import math
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import torch
import torch.nn.functional as F
from av.error import FFmpegError
from torch import Tensor

VIDEO_EXTENSIONS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}
UNKNOWN_RATE = 25  # frames per second, of a file that does not say
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave the alpha out
LEAD_IN = 16  # frames right after a key frame may lean on the ones before it, so a seek aims this much earlier


class DatasetError(ValueError):
    """Nothing to train on; the message says what was looked for and what was wrong with each file."""


@contextmanager
def left_out(reasons: list[str]) -> Iterator[None]:
    """Where a DatasetError is raised inside, its message is logged and added to reasons, and the rest goes on."""
    try:
        yield
    except DatasetError as error:
        reasons.append(str(error))
        logging.warning("DiffDirector: left out %s", error)


def nothing_usable(reasons: Sequence[str]) -> DatasetError:
    return DatasetError("None of the videos can be used:\n" + "\n".join(dict.fromkeys(reasons)))


def frame_times(path: Path) -> Sequence[int]:
    """When each frame is shown, in the file's ticks, first to last; a range of numbers for a file that does not say.

    Nothing is decoded unless the file has no times. Raises DatasetError with the file's name and the reason.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetError(f"{path.name} cannot be read: {error.strerror}") from None
    return _frame_times(path, status.st_size, status.st_mtime_ns)


def timing(path: Path) -> tuple[Fraction, Fraction]:
    """(seconds that a tick of frame_times lasts, frames per second). Nothing is decoded unless the file has no times.

    The rate is the one the file names, unless its frames say otherwise (variable frame rate): then their average.
    Raises DatasetError as frame_times does.
    """
    times = frame_times(path)
    with _opened(path) as (_, stream):
        rate = Fraction(stream.average_rate or stream.guessed_rate or UNKNOWN_RATE)
        if isinstance(times, range):
            return 1 / rate, rate
        tick = Fraction(stream.time_base)
    if len(times) > 1:
        measured = (len(times) - 1) / ((times[-1] - times[0]) * tick)
        rate = rate if abs(measured / rate - 1) < 0.01 else measured
    return tick, rate


def read_frames(path: Path, wanted: Sequence[int], seek: bool = True) -> Iterator[Tensor]:
    """The frames with the numbers in wanted, which grow, each [h, w, 3], uint8.

    Frames are counted as they are shown, each as one whatever its duration: in a file of variable frame rate, too, n
    is the n-th picture. They are turned as the file's display matrix says (phones film sideways), widened where pixels
    are not square, and composited on black where they are transparent. seek False decodes from the start of the file.
    Raises DatasetError where the file cannot be decoded or ends too early.
    """
    times = frame_times(path)
    if wanted[-1] >= len(times):
        raise DatasetError(f"{path.name} has {len(times)} frames, frame {wanted[-1]} was asked for.")
    numbered = isinstance(times, range)
    due = deque(times[index] for index in wanted)
    late = False
    with _opened(path) as (container, stream):
        seek = seek and not numbered and wanted[0] > LEAD_IN
        if seek:
            container.seek(times[wanted[0] - LEAD_IN], stream=stream)
        for number, frame in enumerate(_decoded(container, stream)):
            time = number if numbered else frame.pts
            if time is None:
                continue
            late = seek and number == 0 and time > due[0]
            if late:
                break
            if time >= due[0]:
                due.popleft()
                yield _picture(frame, float(stream.sample_aspect_ratio or 1))
            if not due:
                return
    if not late:
        raise DatasetError(f"{path.name} cannot be decoded: it ends {len(due)} frames too early.")
    yield from read_frames(path, wanted, seek=False)


def cover(pixels: Tensor, height: int, width: int) -> Tensor:
    """pixels [n, 3, h, w], in [0, 1] or uint8, scaled to cover height x width and cut at the centre, never squashed, in [0, 1].

    uint8 is scaled as Pillow does, rounded between the two directions: ten times as fast where it lies in memory as video
    frames do, [n, h, w, 3].
    """
    scale = max(height / pixels.shape[2], width / pixels.shape[3])
    if scale != 1:
        size = [
            max(target, round(side * scale)) for side, target in zip(pixels.shape[2:], (height, width), strict=True)
        ]
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    return unit(pixels[:, :, top : top + height, left : left + width]).clamp(0, 1).contiguous()


def unit(pixels: Tensor) -> Tensor:
    """uint8 pixels in [0, 1]; others as they are."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def bucket_size(height: int, width: int, area: int) -> tuple[int, int]:
    """(height, width) of about area pixels in nearly the shape of height x width, so that little is cut off.

    Multiples of 64, of 8 where area is below 256 x 256: few different sizes, and those that UNets like.
    """
    step = 64 if area >= 256 * 256 else 8
    tall, wide = math.sqrt(area * height / width), math.sqrt(area * width / height)
    heights, widths = (
        {max(1, rounded(side / step)) * step for rounded in (math.floor, math.ceil)} for side in (tall, wide)
    )

    def distance(size: tuple[int, int]) -> tuple[float, int, int]:
        taller, wider = math.log(size[0] / tall), math.log(size[1] / wide)
        return abs(taller - wider) + abs(taller + wider), *size  # in shape, in area

    return min(((height, width) for height in heights for width in widths), key=distance)


@lru_cache(maxsize=64)
def _frame_times(path: Path, size: int, changed: int) -> Sequence[int]:
    times = []
    with _opened(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    times.append(packet.pts)
        except FFmpegError:
            if not times:
                raise  # otherwise a download that broke off: what is there can be used
    if None not in times:
        return sorted(set(times))
    with _opened(path) as (container, stream):
        return range(sum(1 for _ in _decoded(container, stream)))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise DatasetError(f"{path.name} cannot be decoded: expected a video stream, found none we can decode.")
            yield container, stream
    except FFmpegError as error:
        raise DatasetError(f"{path.name} cannot be decoded: {error.strerror}") from None


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames in the order they are shown, from where the container stands."""
    decoder: Any = stream.codec_context
    transparent = any(key.lower() == "alpha_mode" for key in stream.metadata)
    if transparent and WITH_ALPHA.get(decoder.name) in av.codecs_available:
        decoder = av.CodecContext.create(WITH_ALPHA[decoder.name], "r")
    decoder.thread_type = "AUTO"
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _picture(frame: Any, pixel_aspect: float) -> Tensor:
    transparent = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    converted = frame.reformat(width=round(frame.width * pixel_aspect), format="rgba" if transparent else "rgb24")
    picture = torch.from_numpy(converted.to_ndarray())
    if transparent:
        picture = (picture[..., :3].float() * (picture[..., 3:].float() / 255)).round().byte()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return picture if matrix is None else _upright(picture, *struct.unpack("=9i", bytes(matrix))[:5])


def _upright(picture: Tensor, a: int, b: int, _: int, c: int, d: int) -> Tensor:
    """picture [h, w, 3] as a display matrix shows it: x' = a x + c y, y' = b x + d y, quarter turns and mirrors."""
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(0, 1), c, b
    return picture.flip([axis for axis, sign in ((0, d), (1, a)) if sign < 0])
