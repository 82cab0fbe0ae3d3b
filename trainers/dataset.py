"""Videos and frames -> clips of latents with their text embeddings, computed once and cached on disk. No host import.

Latents and embeddings come from functions that the host binding gives; the cache is keyed by content, settings and those
functions' own keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from .camera import NONE
from .checkpoint import save_tensors
from .listing import read_listing
from .processes import share
from .sources import PICTURE_EXTENSIONS, Clip, FrameSource, PictureSource, VideoSource, check_number, digest
from .video import VIDEO_EXTENSIONS, DatasetError, left_out, nothing_usable

AnyClip = TypeVar("AnyClip", VideoSource, FrameSource)


def find_videos(
    source: Path,
    caption: str = "",
    *,
    videos: str | Path = "",
    captions: Sequence[str] = (),
    chunks: int = 1,
    hflip: bool = False,
    repeats: int = 1,
    **settings: Any,
) -> list[VideoSource]:
    """Clips of the video at source, or of all videos below it in the order of their names; with a camera move among the
    settings, of pictures, too. With videos, a folder: of those in it that the table at source lists (see read_listing).

    A video's caption is its own in captions, else a .txt of its name beside it or the table's, else caption. captions, chunks, hflip,
    repeats and settings are those of find_frames. What cannot be read or is too short is logged and left out. Raises
    DatasetError where no clip is left, with every reason, and where captions and videos do not match.
    """

    def caption_of(path: Path) -> str:
        text = path.with_suffix(".txt")
        return read_text(text).strip() if text.exists() else caption

    if videos:
        found = [(path, own or caption) for path, own in read_listing(source, Path(videos))]
    else:
        suffixes = VIDEO_EXTENSIONS | (PICTURE_EXTENSIONS if settings.get("camera", NONE) != NONE else set())
        found = [(path, caption_of(path)) for path in _videos_at(source, suffixes)]
    sources = [_kind(path)(path, text, **settings) for path, text in found]
    return _clips(sources, captions, chunks, hflip, repeats)


def find_frames(
    images: Sequence[Tensor],
    caption: str = "",
    *,
    captions: Sequence[str] = (),
    chunks: int = 1,
    hflip: bool = False,
    repeats: int = 1,
    **settings: Any,
) -> list[FrameSource]:
    """Clips of frames that are already decoded: each of images, [n, h, w, 3 or 4] in [0, 1], is a video.

    captions: one for each video or one for each clip, as a list or as the lines of a single text; an empty one counts
    as none. chunks: clips per video, following one another; 0: as many as fit. hflip: each clip once more, mirrored.
    repeats: every clip counts so often. settings: the fields of ClipSource. Raises DatasetError as find_videos does.
    """
    videos = [FrameSource(frames, caption, number, **settings) for number, frames in enumerate(images, 1)]
    return _clips(videos, captions, chunks, hflip, repeats)


def read_text(path: Path) -> str:
    """A text of captions. Raises DatasetError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path}: expected a text file, found none that can be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: expected text in UTF-8, found another encoding. Save it as UTF-8.") from None


def check_captions(sources: Sequence[Clip]) -> None:
    """Raise DatasetError where nothing is said about any clip: then its subject is learnt as part of the motion."""
    if not any(source.caption.strip() for source in sources):
        raise DatasetError(
            "Expected a caption for the clips, found none. Say what they show, subject and motion, in caption or in a .txt file beside each video."
        )


@dataclass(frozen=True)
class Encoder:
    """pixels [f, 3, h, w] in [0, 1] -> latents as the UNet takes them [f, c, h/8, w/8]; captions -> [n, tokens, dim].

    key, text_key: change when the VAE, or the text encoder, gives something else.
    """

    latents: Callable[[Tensor], Tensor]
    text: Callable[[str], Tensor]
    key: str
    text_key: str


class ClipId(NamedTuple):
    """Tells clips apart: what is filmed, whether left and right are exchanged, and what is said about it."""

    footage: str
    mirrored: bool
    caption: str


@dataclass(frozen=True)
class LatentClips:
    """latents: of each clip, [frames, c, h, w]; a tensor of all of them where they are of one size and length;
    text: [captions + 1, tokens, dim], the last one of the empty caption; caption_of: for each clip, its row in text;
    ids: for each clip; where there are none, all clips are different."""

    latents: Sequence[Tensor] | Tensor
    text: Tensor
    caption_of: Tensor
    ids: Sequence[ClipId] = ()

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def frames(self) -> int:
        """Of the first clip; so are width and height, in px."""
        return self.latents[0].shape[0]

    @property
    def width(self) -> int:
        return 8 * self.latents[0].shape[-1]

    @property
    def height(self) -> int:
        return 8 * self.latents[0].shape[-2]

    @property
    def longest(self) -> int:
        """Frames of the longest clip."""
        return max(len(latents) for latents in self.latents)

    def sample(self, generator: Generator, count: int, caption_dropout: float) -> tuple[Tensor, Tensor]:
        """count random clips, [count, frames, c, h, w], and their text, [count, tokens, dim], now and then the empty one.

        All are of one size and length; each size comes up as often as it has clips. Of several processes each gets its share.
        """
        bucket = next(iter(self._buckets.values()))
        if len(self._buckets) > 1:
            bucket = self._buckets[self.latents[int(torch.randint(len(self), (), generator=generator))].shape]
        chosen = bucket[torch.randint(len(bucket), (count,), generator=generator)]
        dropped = torch.rand(count, generator=generator) < caption_dropout
        chosen, dropped = share(chosen), share(dropped)
        rows = torch.where(dropped, len(self.text) - 1, self.caption_of[chosen])
        return torch.stack([self.latents[index] for index in chosen.tolist()]), self.text[rows]

    @property
    def digest(self) -> str:
        """Short, and another one for other clips or captions."""
        return digest(repr([tuple(clip) for clip in self._ids]))[:16]

    def held_out(self, count: int) -> tuple[LatentClips, LatentClips]:
        """(what is left to train on, the last count different clips, each once) with nothing of the one in the other.

        Raises DatasetError where nothing would be left.
        """
        first = {clip.footage: index for index, clip in reversed(list(enumerate(self._ids)))}
        footage = sorted(first, key=first.__getitem__)
        if count >= len(footage):
            raise DatasetError(
                f"Holding {count} clips out for validation leaves nothing to train on: there are {len(footage)} different ones. "
                "Hold out fewer, or add videos or chunks."
            )
        held = dict.fromkeys(footage[len(footage) - count :])
        kept = [index for index, clip in enumerate(self._ids) if clip.footage not in held]
        return self._only(kept), self._only([first[name] for name in held])

    @cached_property
    def _buckets(self) -> dict[torch.Size, Tensor]:
        """Shape of latents -> the numbers of the clips that have it."""
        shapes = [latents.shape for latents in self.latents]
        return {
            shape: torch.tensor([index for index, other in enumerate(shapes) if other == shape])
            for shape in dict.fromkeys(shapes)
        }

    @property
    def _ids(self) -> Sequence[ClipId]:
        return self.ids or [ClipId(str(index), False, "") for index in range(len(self))]

    def _only(self, chosen: list[int]) -> LatentClips:
        ids = self._ids
        latents = [self.latents[index] for index in chosen]
        return LatentClips(latents, self.text, self.caption_of[chosen], [ids[index] for index in chosen])


def encode_clips(
    sources: Sequence[Clip], encoder: Encoder, cache: Path, on_clip: Callable[[int, int], object]
) -> LatentClips:
    """Latents and text of every readable source; what cannot be read is logged with its reason and left out.

    cache: the folder in which both are kept. on_clip(done, total) is called after each source. Raises DatasetError when
    nothing is left.
    """
    encoded: dict[int, tuple[Tensor, ClipId] | None] = {}  # by identity: repeated clips are one and the same
    reasons: list[str] = []
    for done, source in enumerate(sources, 1):
        if id(source) not in encoded:
            encoded[id(source)] = None
            with left_out(reasons):
                path = cache / "latents" / f"{source.key()}-{encoder.key}.safetensors"
                latents = _cached(path, lambda source=source: encoder.latents(source.read()))
                footage = replace(source, mirrored=False).key()
                encoded[id(source)] = latents, ClipId(footage, source.mirrored, source.caption)
        on_clip(done, len(sources))
    usable = [clip for source in sources if (clip := encoded[id(source)]) is not None]
    if not usable:
        raise nothing_usable(reasons)
    latents, ids = zip(*usable, strict=True)
    captions = sorted({clip.caption for clip in ids})
    text = [
        _cached(cache / "text" / f"{digest(caption)}-{encoder.text_key}.safetensors", partial(encoder.text, caption))
        for caption in [*captions, ""]
    ]
    return LatentClips(latents, torch.stack(text), torch.tensor([captions.index(clip.caption) for clip in ids]), ids)


def _clips(videos: Sequence[AnyClip], captions: Sequence[str], chunks: int, hflip: bool, repeats: int) -> list[AnyClip]:
    check_number("chunks", chunks, 0)
    check_number("repeats", repeats, 1)
    cut: list[list[AnyClip]] = []
    reasons: list[str] = []
    for video in videos:
        cut.append([])
        with left_out(reasons):
            cut[-1] = video.chunks(chunks)
    if not any(cut):
        raise nothing_usable(reasons)
    clips = _captioned(cut, captions) if captions else [clip for video in cut for clip in video]
    if hflip:
        clips = [side for clip in clips for side in (clip, replace(clip, mirrored=True))]
    return clips * repeats


def _captioned(cut: Sequence[Sequence[AnyClip]], captions: Sequence[str]) -> list[AnyClip]:
    """The clips of every video with their captions, one per video or one per clip."""
    given_as = [captions]  # last: a single text of several lines may also be the caption of a single video
    if len(captions) == 1:
        given_as = [captions[0].splitlines(), captions[0].rstrip().splitlines(), captions]
    count = sum(len(video) for video in cut)
    for given in given_as:
        if len(given) == len(cut):
            given = [text for text, video in zip(given, cut, strict=True) for _ in video]
        if len(given) == count:
            clips = [clip for video in cut for clip in video]
            return [
                replace(clip, caption=text.strip() or clip.caption) for clip, text in zip(clips, given, strict=True)
            ]
    raise DatasetError(
        f"captions: expected {len(cut)}, one for each video, or {count}, one for each clip; found {len(given_as[0])}."
    )


def _kind(path: Path) -> type[VideoSource]:
    return PictureSource if path.suffix.lower() in PICTURE_EXTENSIONS else VideoSource


def _videos_at(source: Path, extensions: AbstractSet[str]) -> list[Path]:
    if source.is_file():
        return [source]
    found = _files_in(source.rglob("*"), extensions)
    if found:
        return found
    expected = f"{source}: expected a video or a folder with {', '.join(sorted(extensions))} files, found"
    if source.is_dir():
        pictures = _files_in(source.rglob("*"), PICTURE_EXTENSIONS)
        if pictures:
            raise DatasetError(
                f"{expected} {len(pictures)} pictures, which do not move. Choose a camera move (camera), such as zoom_in, or another folder."
            )
        raise DatasetError(f"{expected} none.")
    names = [path.name for path in _files_in(source.parent.glob("*"), extensions)]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise DatasetError(
        f"{expected} nothing of that name. Videos in {source.parent}: {', '.join(names[:20]) or 'none'}{more}."
    )


def _files_in(paths: Iterable[Path], extensions: AbstractSet[str]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in extensions and not path.name.startswith("."))


def _cached(path: Path, make: Callable[[], Tensor]) -> Tensor:
    if not path.exists():
        save_tensors(path, {"value": make()}, {})
    (value,) = load_file(path).values()
    return value
