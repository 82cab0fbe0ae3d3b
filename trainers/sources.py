"""What clips are cut from: a video file, or frames that are already decoded. No host import."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .video import DatasetError, bucket_size, cover, frame_times, read_frames

Source = TypeVar("Source", bound="ClipSource")


@dataclass(frozen=True, kw_only=True)
class ClipSource(ABC):
    """One clip and how it is cut from its footage.

    frame_step: every n-th frame is taken, from number start on. width, height: of the pixels; the picture is scaled to
    cover them and cut at the centre, never squashed. aspect_buckets: width x height says only how many pixels there
    are, their shape follows the footage. mirrored: left and right are exchanged.
    """

    frames: int = 16
    frame_step: int = 1
    start: int = 0
    width: int = 256
    height: int = 256
    aspect_buckets: bool = False
    mirrored: bool = False

    def __post_init__(self) -> None:
        for key, least, step in (("frames", 1, 1), ("frame_step", 1, 1), ("start", 0, 1), ("width", 8, 8), ("height", 8, 8)):  # fmt: skip
            check_number(key, getattr(self, key), least, step)

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
        """The wanted frames, each [3, h, w] in [0, 1]."""

    @property
    def wanted(self) -> range:
        """The numbers of the footage's frames that make the clip."""
        return range(self.start, self.start + self.frames * self.frame_step, self.frame_step)

    def key(self) -> str:
        """Identifies content and settings: footage that changes is encoded anew."""
        settings = {field.name: getattr(self, field.name) for field in fields(ClipSource)}
        return digest(f"{self.content()} {settings}")

    def read(self) -> Tensor:
        """The clip, [frames, 3, height, width] in [0, 1]. Raises DatasetError with the footage's name and the reason."""
        size, clip = (self.height, self.width), []
        for picture in self.pictures():
            if self.aspect_buckets and not clip:
                size = bucket_size(*picture.shape[1:], area=self.width * self.height)
            clip.append(cover(picture[None], *size))
        pixels = torch.cat(clip)
        return pixels.flip(-1) if self.mirrored else pixels

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
        return (picture.permute(2, 0, 1).float() / 255 for picture in read_frames(self.path, self.wanted))


@dataclass(frozen=True, eq=False)
class FrameSource(ClipSource):
    """A clip of images, [n, h, w, 3 or 4] in [0, 1]; what is transparent is composited on black. number: for messages."""

    images: Tensor
    caption: str
    number: int = 1

    @property
    def name(self) -> str:
        return f"images {self.number}"

    def length(self) -> int:
        return len(self.images)

    def content(self) -> str:
        return hashlib.sha256(self._chosen().contiguous().numpy().tobytes()).hexdigest()

    def pictures(self) -> Iterator[Tensor]:
        for image in self._chosen():
            yield (image[..., :3] * image[..., 3:] if image.shape[-1] == 4 else image).permute(2, 0, 1)

    def _chosen(self) -> Tensor:
        return self.images[list(self.wanted)].float().cpu()


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
