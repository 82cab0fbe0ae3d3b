"""What clips are cut from: a video file, a still picture, or frames that are already decoded. No host import."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .camera import CAMERAS, NONE, film
from .video import DatasetError, bucket_size, cover, frame_times, read_frames, unit

Source = TypeVar("Source", bound="ClipSource")

PICTURE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True, kw_only=True)
class ClipSource(ABC):
    """One clip and how it is cut from its footage.

    frame_step: every n-th frame is taken, from number start on. width, height: of the pixels; the picture is scaled to
    cover them and cut at the centre, never squashed. aspect_buckets: width x height says only how many pixels there
    are, their shape follows the footage. mirrored: left and right of the footage are exchanged. camera: one of CAMERAS, that
    moves over the footage so far as camera_amount says, see film; each frame is then cut from the whole picture.
    """

    frames: int = 16
    frame_step: int = 1
    start: int = 0
    width: int = 256
    height: int = 256
    aspect_buckets: bool = False
    mirrored: bool = False
    camera: str = NONE
    camera_amount: float = 0.4

    def __post_init__(self) -> None:
        for key, least, step in (("frames", 1, 1), ("frame_step", 1, 1), ("start", 0, 1), ("width", 8, 8), ("height", 8, 8)):  # fmt: skip
            check_number(key, getattr(self, key), least, step)
        if self.camera not in CAMERAS:
            raise DatasetError(f"camera: expected one of {', '.join(CAMERAS)}; found {self.camera!r}")
        if not 0 < self.camera_amount <= 1:
            raise DatasetError(f"camera_amount: expected more than 0 and at most 1, found {self.camera_amount!r}")

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call the footage."""

    @abstractmethod
    def length(self) -> int:
        """Frames of the whole footage."""

    @abstractmethod
    def content(self) -> str:
        """Changes when what is on the frames does."""

    @abstractmethod
    def pictures(self) -> Iterator[Tensor]:
        """The wanted frames, each [3, h, w], in [0, 1] or uint8."""

    @property
    def wanted(self) -> range:
        """The numbers of the footage's frames that make the clip."""
        return range(self.start, self.start + self.frames * self.frame_step, self.frame_step)

    def key(self) -> str:
        """Identifies content and settings: footage that changes is encoded anew."""
        settings = {field.name: getattr(self, field.name) for field in fields(ClipSource)}
        if self.camera == NONE:  # the keys of clips from before there were camera moves
            del settings["camera"], settings["camera_amount"]
        return digest(f"{self.content()} {settings}")

    def read(self) -> Tensor:
        """The clip, [frames, 3, height, width] in [0, 1]. Raises DatasetError with the footage's name and the reason."""
        size, clip = (self.height, self.width), []
        for picture in self.pictures():
            if self.aspect_buckets and not clip:
                size = bucket_size(*picture.shape[1:], area=self.width * self.height)
            clip.append(self._seen(picture, len(clip) / max(1, self.frames - 1), *size))
        return torch.stack(clip)

    def _seen(self, picture: Tensor, time: float, height: int, width: int) -> Tensor:
        """picture as a frame of the clip, at a time from 0 to 1 of it."""
        if self.camera == NONE:
            frame = cover(picture[None], height, width)[0]
            return frame.flip(-1) if self.mirrored else frame
        # not the frame: a camera that pans left would pan right
        picture = picture.flip(-1) if self.mirrored else picture
        return film(unit(picture), self.camera, self.camera_amount, time, height, width)

    def chunks(self: Source, count: int) -> list[Source]:
        """The first count clips that follow one another from start on, fewer where the footage ends; 0: all of them.

        Raises DatasetError where there is not even one.
        """
        length, reach = self.length(), self.wanted[-1] - self.start
        starts = range(self.start, length - reach, self.frames * self.frame_step)
        if not starts:
            raise DatasetError(
                f"{self.name}: {self.frames} frames at a step of {self.frame_step} from {self.start} on need "
                f"{self.wanted[-1] + 1} frames, it has {length}. Lower frames, frame_step or start."
            )
        return [replace(self, start=start) for start in starts[: count or None]]


@dataclass(frozen=True)
class VideoSource(ClipSource):
    """A clip of the video file at path."""

    path: Path
    caption: str

    @property
    def name(self) -> str:
        return self.path.name

    def length(self) -> int:
        return len(frame_times(self.path))

    def content(self) -> str:
        try:
            status = self.path.stat()
            return _file_digest(self.path, status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise DatasetError(f"{self.name} cannot be read: {error.strerror}") from None

    def pictures(self) -> Iterator[Tensor]:
        return (picture.permute(2, 0, 1) for picture in read_frames(self.path, self.wanted))


@dataclass(frozen=True)
class PictureSource(VideoSource):
    """A clip of the picture file at path, over which a camera moves: every frame of the footage is the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.camera == NONE:
            raise DatasetError(
                f"{self.name}: expected a video, found a picture, which does not move. Choose a camera move (camera), such as zoom_in, "
                "or a video."
            )

    def length(self) -> int:
        return self.wanted[-1] + 1  # one clip

    def pictures(self) -> Iterator[Tensor]:
        try:
            with Image.open(self.path) as image:
                upright = ImageOps.exif_transpose(image).convert("RGBA")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DatasetError(f"{self.name} cannot be decoded: {error}") from None
        on_black = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright).convert("RGB")
        # photographs are large, and each frame is cut from the whole; a zoom or a pan needs twice the frame at most
        spare = int(min(upright.width / self.width, upright.height / self.height) / 2)
        return repeat(torch.from_numpy(np.array(on_black.reduce(max(1, spare)))).permute(2, 0, 1), self.frames)


@dataclass(frozen=True, eq=False)
class FrameSource(ClipSource):
    """A clip of images, [n, h, w, 3 or 4] in [0, 1]; what is transparent is composited on black. number: for messages.

    A single image over which a camera moves is every frame of the footage.
    """

    images: Tensor
    caption: str
    number: int = 1

    @property
    def name(self) -> str:
        return f"images {self.number}"

    def length(self) -> int:
        return self.wanted[-1] + 1 if self._still else len(self.images)

    def content(self) -> str:
        return hashlib.sha256(self._chosen().contiguous().numpy().tobytes()).hexdigest()

    def pictures(self) -> Iterator[Tensor]:
        for image in self._chosen():
            yield (image[..., :3] * image[..., 3:] if image.shape[-1] == 4 else image).permute(2, 0, 1)

    def _chosen(self) -> Tensor:
        numbers = [0] * self.frames if self._still else list(self.wanted)
        return self.images[numbers].float().cpu()

    @property
    def _still(self) -> bool:
        return len(self.images) == 1 and self.camera != NONE


Clip = VideoSource | FrameSource


def check_number(key: str, value: object, least: int, step: int = 1) -> None:
    """Raises DatasetError unless value is a whole number of at least least and a multiple of step."""
    if type(value) is not int or value < least or value % step:
        multiple = "" if step == 1 else f", a multiple of {step}"
        raise DatasetError(f"{key}: expected a whole number of at least {least}{multiple}, found {value!r}")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, changed: int) -> str:
    """Of the file's content; size and changed only tell when it must be read again."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()
