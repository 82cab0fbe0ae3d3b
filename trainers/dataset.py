"""Video files -> clips of latents with their text embeddings, computed once and cached on disk. No host import.

Decoded with PyAV, which ComfyUI brings; frames that are not needed are never converted. Latents and embeddings come from functions that the host binding
gives; the cache is keyed by the file's content, the settings and those functions' own keys.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from av.error import FFmpegError
from safetensors.torch import load_file
from torch import Generator, Tensor

from .checkpoint import save_tensors

VIDEO_EXTENSIONS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}


class DatasetError(ValueError):
    """Nothing to train on; the message says what was looked for and what was wrong with each file."""


@dataclass(frozen=True)
class VideoSource:
    """One video file with its caption, and how clips are cut from it.

    frame_step: every n-th frame is taken. width, height: of the pixels; the picture is scaled to cover them and cut at
    the centre, never squashed.
    """

    path: Path
    caption: str
    frames: int = 16
    frame_step: int = 1
    start: int = 0
    width: int = 256
    height: int = 256

    def key(self) -> str:
        """Identifies content and settings: a file that changes is encoded anew."""
        content = hashlib.sha256(self.path.read_bytes()).hexdigest()
        settings = replace(self, path=Path(), caption="")
        return _digest(f"{content} {settings}")


@dataclass(frozen=True)
class Encoder:
    """pixels [f, 3, h, w] in [0, 1] -> latents as the UNet takes them [f, c, h/8, w/8]; captions -> [n, tokens, dim].

    key, text_key: change when the VAE, or the text encoder, gives something else.
    """

    latents: Callable[[Tensor], Tensor]
    text: Callable[[str], Tensor]
    key: str
    text_key: str


@dataclass(frozen=True)
class LatentClips:
    """latents: [clips, frames, c, h, w]; text: [captions + 1, tokens, dim], the last one of the empty caption;
    caption_of: for each clip, its row in text."""

    latents: Tensor
    text: Tensor
    caption_of: Tensor

    def sample(self, generator: Generator, count: int, caption_dropout: float) -> tuple[Tensor, Tensor]:
        """count random clips, [count, frames, c, h, w], and their text, [count, tokens, dim], now and then the empty one."""
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        dropped = torch.rand(count, generator=generator) < caption_dropout
        rows = torch.where(dropped, len(self.text) - 1, self.caption_of[chosen])
        return self.latents[chosen], self.text[rows]


def find_videos(source: Path, caption: str = "", **settings: int) -> list[VideoSource]:
    """The video at source, or all videos below it, sorted. A .txt beside a video gives its caption; caption otherwise."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in VIDEO_EXTENSIONS)
    else:
        paths = [source] if source.is_file() else []
    if not paths:
        raise DatasetError(
            f"{source}: expected a video or a folder with {', '.join(sorted(VIDEO_EXTENSIONS))} files, found none."
        )

    def caption_for(path: Path) -> str:
        text = path.with_suffix(".txt")
        return text.read_text(encoding="utf-8").strip() if text.exists() else caption

    return [VideoSource(path, caption_for(path), **settings) for path in paths]


def read_clip(source: VideoSource) -> Tensor:
    """Decode one clip: [frames, 3, height, width] in [0, 1]. Raises DatasetError naming the file and the reason."""
    wanted = range(source.start, source.start + source.frames * source.frame_step, source.frame_step)
    pictures = []
    try:
        with av.open(str(source.path)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    pictures.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                if len(pictures) == len(wanted):
                    break
    except (FFmpegError, IndexError) as error:
        raise DatasetError(f"{source.path.name} cannot be decoded: {error}") from None
    if len(pictures) < len(wanted):
        raise DatasetError(
            f"{source.path.name}: {source.frames} frames at a step of {source.frame_step} from {source.start} on need "
            f"{wanted[-1] + 1} frames, it has fewer. Lower frames or frame_step."
        )
    return _cover(torch.stack(pictures).permute(0, 3, 1, 2).float() / 255, source.height, source.width)


def encode_clips(
    sources: Sequence[VideoSource], encoder: Encoder, cache: Path, on_clip: Callable[[int, int], object]
) -> LatentClips:
    """Latents and text of every readable source; what cannot be read is logged with its reason and left out.

    cache: the folder in which both are kept. on_clip(done, total) is called after each video. Raises DatasetError when nothing is left.
    """
    latents, captions, reasons = [], [], []
    for index, source in enumerate(sources):
        path = cache / "latents" / f"{source.key()}-{encoder.key}.safetensors"
        try:
            latents.append(_cached(path, lambda source=source: encoder.latents(read_clip(source))))
            captions.append(source.caption)
        except DatasetError as error:
            reasons.append(str(error))
            logging.warning("DiffDirector: left out %s", error)
        on_clip(index + 1, len(sources))
    if not latents:
        raise DatasetError("None of the videos can be used:\n" + "\n".join(reasons))
    distinct = sorted(set(captions))
    text = [
        _cached(cache / "text" / f"{_digest(caption)}-{encoder.text_key}.safetensors", partial(encoder.text, caption))
        for caption in [*distinct, ""]
    ]
    return LatentClips(
        torch.stack(latents), torch.stack(text), torch.tensor([distinct.index(caption) for caption in captions])
    )


def _cached(path: Path, make: Callable[[], Tensor]) -> Tensor:
    if not path.exists():
        save_tensors(path, {"value": make()}, {})
    (value,) = load_file(path).values()
    return value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _cover(pixels: Tensor, height: int, width: int) -> Tensor:
    scale = max(height / pixels.shape[2], width / pixels.shape[3])
    if scale != 1:
        size = [
            max(target, round(side * scale)) for side, target in zip(pixels.shape[2:], (height, width), strict=True)
        ]
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    return pixels[:, :, top : top + height, left : left + width].contiguous()
