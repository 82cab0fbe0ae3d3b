"""WebDataset shards: tars of videos with their captions, local or wherever fsspec reaches, encoded once. No host import.

Each tar becomes one file of latents and text in the cache, and training reads from these alone, clip by clip and memory-mapped. So
a clip is decoded once however many epochs there are, a run that was killed goes on with the tar it was at, and which clips a
step sees depends on (seed, step) alone, as for any other dataset. Several processes encode every n-th tar each.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from . import processes
from .checkpoint import save_tensors
from .config import ConfigError
from .dataset import Encoder, LatentClips
from .sources import VideoSource, check_number, digest
from .video import VIDEO_EXTENSIONS, DatasetError, left_out, nothing_usable

CAPTIONS = ("caption", "text")  # where a .json has it, as video2dataset and img2dataset write them
REASONS = 20  # kept of each shard
OPEN_FILES = 512
WINDOW = 77  # tokens that CLIP sees at once


@dataclass(frozen=True)
class Shard:
    """One tar. clip: how clips are cut from its videos, with the caption of those that have none; its path is no file's.
    chunks, hflip: as for find_videos."""

    url: str
    clip: VideoSource
    chunks: int = 1
    hflip: bool = False

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    def key(self) -> str:
        """Changes with the settings, and with a local tar; those elsewhere are taken to stay as they are."""
        fs, path = _fsspec().core.url_to_fs(self.url)
        content = ""
        if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
            status = Path(path).stat()
            content = f"{status.st_size} {status.st_mtime_ns}"
        return digest(f"{self.url} {content} {self.clip} {self.chunks} {self.hflip}")


def is_shards(source: str) -> bool:
    return source.endswith(".tar")


def find_shards(
    source: str, caption: str = "", *, chunks: int = 1, hflip: bool = False, **settings: Any
) -> list[Shard]:
    """The tars that source names: a path or a URL of fsspec's, with {00000..00011} for several.

    settings: the fields of ClipSource. Raises ConfigError where a library is missing, DatasetError where a local tar is.
    """
    fsspec, _ = _fsspec(), _webdataset()
    from braceexpand import braceexpand  # one of webdataset's own needs

    check_number("chunks", chunks, 0)
    clip = VideoSource(Path(), caption, **settings)
    shards = [Shard(url, clip, chunks, hflip) for url in braceexpand(source, escape=False)]
    for shard in shards:
        fs, path = fsspec.core.url_to_fs(shard.url)
        if not shard.url.startswith("http") and "://" not in shard.url and not fs.exists(path):
            raise DatasetError(
                f"dataset.source: expected the shard {shard.url}, found none. Shards are named as in shards/{{00000..00011}}.tar."
            )
    return shards


def encode_shards(
    shards: Sequence[Shard], encoder: Encoder, cache: Path, on_shard: Callable[[], object] = lambda: None
) -> LatentClips:
    """Their clips, read from the cache as they are needed. Samples that cannot be read are logged, counted and left out.

    on_shard is called after each one that this process encodes or finds in the cache. Raises DatasetError where nothing is left.
    """
    empty = encoder.text("")
    files = [cache / "shards" / f"{shard.key()}-{encoder.key}-{encoder.text_key}.safetensors" for shard in shards]
    for shard, path in list(zip(shards, files, strict=True))[processes.rank() :: processes.count()]:
        if not path.exists():
            _encode(shard, encoder, len(empty), path)
        on_shard()
    processes.wait()
    return _opened_together(files, empty)


def _encode(shard: Shard, encoder: Encoder, tokens: int, path: Path) -> None:
    """The file of one shard: latents of each shape [n, frames, c, h, w], for each clip its caption and its sample; text."""
    latents: dict[torch.Size, list[Tensor]] = {}
    numbers: dict[torch.Size, list[tuple[int, int]]] = {}
    captions: dict[str, int] = {}
    reasons: list[str] = []
    count = 0
    for read in _read_ahead(shard, _samples(shard, reasons)):
        count += 1
        with left_out(reasons):
            for text, pixels in read.result():
                encoded = encoder.latents(pixels).half()
                caption = captions.setdefault(text, len(captions))
                latents.setdefault(encoded.shape, []).append(encoded)
                numbers.setdefault(encoded.shape, []).append((caption, count))
    tensors = {}
    for kind, shape in enumerate(latents):
        tensors[f"latents.{kind}"] = torch.stack(latents[shape])
        tensors[f"numbers.{kind}"] = torch.tensor(numbers[shape], dtype=torch.int32)
    if captions:
        tensors["text"] = torch.stack([_cut(encoder.text(caption), tokens) for caption in captions]).half()
    about = {"samples": str(count), "left_out": str(len(reasons)), "reasons": json.dumps(reasons[:REASONS])}
    save_tensors(path, tensors, about)


def _read_ahead(shard: Shard, samples: Iterator[dict[str, Any]]) -> Iterator[Future[list[tuple[str, Tensor]]]]:
    """Each sample's clips, caption and pixels, in order; decoded by this process's share of the machine's cores meanwhile."""

    def read(sample: dict[str, Any]) -> list[tuple[str, Tensor]]:
        with TemporaryDirectory() as folder:
            return [(clip.caption, clip.read()) for clip in _clips(shard, sample, Path(folder))]

    workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[tuple[str, Tensor]]]] = deque()
        for sample in samples:
            ahead.append(pool.submit(read, sample))
            if len(ahead) > 2 * workers:
                yield ahead.popleft()
        yield from ahead


def _cut(text: Tensor, tokens: int) -> Tensor:
    """What the text encoder's first window sees of a caption, as in the original's trainer: all texts are of one length.

    SDXL's has a row more at the end (host.py)."""
    pooled = tokens % WINDOW
    return text if len(text) <= tokens else torch.cat([text[: tokens - pooled], text[len(text) - pooled :]])


def _samples(shard: Shard, reasons: list[str]) -> Iterator[dict[str, Any]]:
    """What the tar holds, by the suffixes of each sample's files; what comes after damage is lost."""
    tars = _webdataset()

    def damaged(error: Exception) -> bool:
        with left_out(reasons):
            raise DatasetError(f"the rest of {shard.name}, which is damaged: {error.args[0] if error.args else error}")
        return True

    try:
        with _fsspec().open(shard.url, "rb") as stream:
            files = tars.tar_file_expander([{"url": shard.url, "stream": stream}], handler=damaged)
            yield from tars.group_by_keys(files, handler=damaged)
    except OSError as error:
        raise DatasetError(
            f"{shard.url}: expected a shard, found none that can be read: {error}. What is encoded is kept."
        ) from None


def _clips(shard: Shard, sample: dict[str, Any], folder: Path) -> list[VideoSource]:
    """The clips of a sample, whose video is written into folder: decoders seek."""
    key = sample["__key__"]
    suffix = next((name for name in sample if f".{name}" in VIDEO_EXTENSIONS), None)
    if suffix is None:
        raise DatasetError(
            f"{shard.name}, {key}: expected a video ({', '.join(sorted(VIDEO_EXTENSIONS))}), found none."
        )
    path = folder / f"{PurePosixPath(key).name}.{suffix}"
    path.write_bytes(sample[suffix])
    try:
        source = replace(shard.clip, path=path, caption=_caption(sample) or shard.clip.caption)
        clips = source.chunks(shard.chunks)
    except DatasetError as error:
        raise DatasetError(f"{shard.name}, {error}") from None
    return [side for clip in clips for side in ((clip, replace(clip, mirrored=True)) if shard.hflip else (clip,))]


def _caption(sample: dict[str, Any]) -> str:
    try:
        if "txt" in sample:
            return sample["txt"].decode("utf-8-sig").strip()
        told = json.loads(sample.get("json", b"{}"))
        return next((str(told[name]).strip() for name in CAPTIONS if told.get(name)), "")
    except (ValueError, AttributeError) as error:
        raise DatasetError(
            f"{sample['__key__']}: expected a caption in UTF-8 or JSON, found something else: {error}"
        ) from None


def _opened_together(files: Sequence[Path], empty: Tensor) -> LatentClips:
    shapes: dict[torch.Size, int] = {}
    rows, texts, captions, samples, left, reasons = [], [], 0, 0, 0, list[str]()
    for number, path in enumerate(files):
        file = _file(path)
        about = file.metadata()
        left += int(about["left_out"])
        reasons += json.loads(about["reasons"])
        names = set(file.keys())
        for kind in range(sum(name.startswith("latents.") for name in names)):
            shape = torch.Size(file.get_slice(f"latents.{kind}").get_shape()[1:])
            caption, sample = file.get_tensor(f"numbers.{kind}").unbind(1)
            place = torch.tensor([[number, kind, shapes.setdefault(shape, len(shapes))]]).expand(len(caption), 3)
            rows.append(
                torch.column_stack([place, torch.arange(len(caption)), caption + captions, sample + samples]).int()
            )
        if "text" in names:
            known = file.get_slice("text").get_shape()[0]
            texts.append(torch.column_stack([torch.full((known,), number), torch.arange(known)]).int())
            captions += known
        samples += int(about["samples"])
    if not rows:
        raise nothing_usable(reasons)
    if left and processes.is_first():
        logging.warning("DiffDirector: %d of the %d samples in the shards were left out.", left, samples)
    index = torch.cat(rows)
    text = cast(Any, _Text(tuple(files), torch.cat(texts), empty))
    return ShardClips(_Latents(tuple(files), index), text, index[:, 4].long(), shapes=tuple(shapes))


@dataclass(frozen=True)
class _Latents(Sequence[Tensor]):
    """index: for each clip the numbers of its file, its tensor there, its shape, its row, its caption and its sample."""

    files: tuple[Path, ...]
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, clip: Any) -> Any:
        file, kind, _, row = self.index[clip, :4].tolist()
        return _file(self.files[file]).get_slice(f"latents.{kind}")[row : row + 1][0].float()


@dataclass(frozen=True)
class _Text:
    """index: for each caption its file and its row there. After them all comes the empty one."""

    files: tuple[Path, ...]
    index: Tensor
    empty: Tensor

    def __len__(self) -> int:
        return len(self.index) + 1

    def __getitem__(self, captions: Tensor) -> Tensor:
        return torch.stack([self._one(number) for number in captions.tolist()])

    def _one(self, number: int) -> Tensor:
        if number == len(self.index):
            return self.empty
        file, row = self.index[number].tolist()
        return _file(self.files[file]).get_slice("text")[row : row + 1][0].to(self.empty)


@dataclass(frozen=True)
class ShardClips(LatentClips):
    """Clips that stay on disk. shapes: that their latents have."""

    shapes: tuple[torch.Size, ...] = ()

    @property
    def longest(self) -> int:
        return max(shape[0] for shape in self.shapes)

    @property
    def digest(self) -> str:
        return digest(f"{[path.name for path in self._latents.files]} {len(self)}")[:16]

    def held_out(self, count: int) -> tuple[LatentClips, LatentClips]:
        """(what is left to train on, the first clip of each of the last count samples); DatasetError where nothing would be left."""
        sample = self._latents.index[:, 5]
        last = torch.unique(sample)
        if count >= len(last):
            raise DatasetError(
                f"Holding {count} samples out for validation leaves nothing to train on: there are {len(last)}. Hold out fewer."
            )
        first = [int((sample == number).nonzero()[0]) for number in last[-count:]]
        return self._only((sample < last[-count]).nonzero()[:, 0]), self._only(torch.tensor(first))

    @cached_property
    def _buckets(self) -> dict[torch.Size, Tensor]:
        kind = self._latents.index[:, 2]
        found = {shape: (kind == number).nonzero()[:, 0] for number, shape in enumerate(self.shapes)}
        return {shape: clips for shape, clips in found.items() if len(clips)}

    @property
    def _latents(self) -> _Latents:
        assert isinstance(self.latents, _Latents)
        return self.latents

    def _only(self, chosen: Any) -> ShardClips:
        kept = replace(self._latents, index=self._latents.index[chosen])
        return replace(self, latents=kept, caption_of=self.caption_of[chosen])


@lru_cache(maxsize=OPEN_FILES)
def _file(path: Path) -> Any:
    return safe_open(path, "pt")


def _fsspec() -> Any:
    try:
        import fsspec
    except ImportError:
        raise _missing("fsspec") from None
    return fsspec


def _webdataset() -> Any:
    try:
        from webdataset import tariterators
    except ImportError:
        raise _missing("webdataset") from None
    return tariterators


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"dataset.source: shards are read with {package}, which is not installed. Install it into ComfyUI's Python with "
        '"pip install webdataset fsspec".'
    )
