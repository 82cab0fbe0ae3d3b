"""A clip of images -> one file that plays: mp4, webm, gif or animated webp. No host import.

Files are written under a temporary name and renamed, so that a cancelled or failed one leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import BlockingIOError as NotYetError
from av.error import EOFError as EndOfFileError
from av.error import FFmpegError
from av.filter import Graph
from PIL import Image
from torch import Tensor

from .checkpoint import write_atomically

FORMATS = ("mp4", "webm", "webp", "gif")
WITH_SOUND = ("mp4", "webm")
Sound = tuple[Tensor, int]  # [channels, samples] in -1..1, samples per second
WEBP_MOST = 16383  # pixels on a side
BT709 = 1  # of ITU-T H.273: what players take a video for that is as large as most are
_CODECS = {"mp4": ("libx264", "aac"), "webm": ("libvpx-vp9", "libopus")}
_OPUS_RATE = 48000
_WEBP_PROMPT, _WEBP_OTHERS = 0x0110, 0x010F  # EXIF tags where ComfyUI looks for its graphs: Model, and Make downwards


def save_animation(
    path: Path, images: Tensor, frame_rate: float, quality: int = 80, loops: int = 0, sound: Sound | None = None,
    metadata: Mapping[str, str] | None = None, on_frame: Callable[[int], None] = lambda done: None,
) -> None:  # fmt: skip
    """Write images, [frames, height, width, 3 or 4] in 0..1, to path, whose suffix is the format.

    quality: 0..100; 100 is lossless as webp; a gif always has the best 256 colours of each frame. loops: how often a gif or webp is
    played, 0 for ever. Transparency is kept in webp alone. mp4 has even sizes: an odd one is a pixel larger, its edge
    repeated. metadata: texts by name, in every format but gif. on_frame: told how many frames are done; what it raises ends the writing.
    Raises ValueError where the format cannot hold the clip, SaveError where the file cannot be written.
    """
    kind = path.suffix[1:]
    if sound is not None and kind not in WITH_SOUND:
        raise ValueError(f"A {kind} has no sound. Save as {' or '.join(WITH_SOUND)}, or disconnect the audio.")
    if kind == "webp" and max(images.shape[1:3]) > WEBP_MOST:
        raise ValueError(
            f"A webp has at most {WEBP_MOST} pixels on a side, the clip has {images.shape[2]}x{images.shape[1]}. Choose another format."
        )
    rate = Fraction(frame_rate).limit_denominator(1001)

    def write(name: str) -> None:
        if kind == "webp":
            _write_webp(name, images, rate, quality, loops, metadata or {}, on_frame)
        elif kind == "gif":
            _write_gif(name, images, rate, loops, on_frame)
        else:
            _write_video(name, kind, images, rate, quality, sound, metadata or {}, on_frame)

    try:
        write_atomically(path, write)
    except FFmpegError as error:
        raise ValueError(
            f"{len(images)} frames of {images.shape[2]}x{images.shape[1]} at {frame_rate:g} a second cannot be written as {kind}: {error.strerror}."
        ) from error


def _write_video(name: str, kind: str, images: Tensor, rate: Fraction, quality: int, sound: Sound | None,
                 metadata: Mapping[str, str], on_frame: Callable[[int], None]) -> None:  # fmt: skip
    video_codec, audio_codec = _CODECS[kind]
    options = {"movflags": "use_metadata_tags+faststart"} if kind == "mp4" else {}
    with av.open(name, "w", format=kind, options=options) as container:
        container.metadata.update(metadata)
        stream: Any = container.add_stream(video_codec, rate=rate)
        height, width = images.shape[1:3]
        if kind == "mp4":
            height, width = height + height % 2, width + width % 2
            stream.options = {"crf": str(round(51 - 0.47 * quality))}
        else:
            stream.options = {"crf": str(round(63 - 0.58 * quality)), "row-mt": "1", "cpu-used": "4"}
            stream.bit_rate = 0
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        coded = stream.codec_context
        coded.colorspace = coded.color_primaries = coded.color_trc = BT709
        heard: Any = None
        if sound is not None:
            rate_of_sound = _OPUS_RATE if kind == "webm" else sound[1]
            heard = container.add_stream(audio_codec, rate=rate_of_sound, layout=_layout(sound[0]))
        for done, image in enumerate(images, 1):
            frame = av.VideoFrame.from_ndarray(_padded(_pixels(image[..., :3]), height, width), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
            on_frame(done)
        container.mux(stream.encode())
        if sound is not None:
            container.mux(heard.encode(_sound_frame(sound, len(images) / rate)))
            container.mux(heard.encode())


def _write_gif(name: str, images: Tensor, rate: Fraction, loops: int, on_frame: Callable[[int], None]) -> None:
    """With the best palette for each frame and error diffusion (FFmpeg's palettegen and paletteuse)."""
    height, width = images.shape[1:3]
    graph: Any = Graph()
    pictures = graph.add_buffer(width=width, height=height, format="rgb24", time_base=1 / rate)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    apply, sink = graph.add("paletteuse", "new=1:dither=sierra2_4a"), graph.add("buffersink")
    pictures.link_to(split)
    split.link_to(apply, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(apply, 0, 1)
    apply.link_to(sink)
    graph.configure()
    repeats = {0: 0, 1: -1}.get(loops, loops - 1)  # after the first time
    with av.open(name, "w", format="gif", options={"loop": str(repeats)}) as container:
        stream: Any = container.add_stream("gif", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        done = 0
        for number in range(len(images) + 1):
            if number < len(images):
                frame = av.VideoFrame.from_ndarray(_pixels(images[number, ..., :3]), format="rgb24")
                frame.pts, frame.time_base = number, 1 / rate
                pictures.push(frame)
            else:
                pictures.push(None)
            for ready in _pulled(sink):
                container.mux(stream.encode(ready))
                done += 1
                on_frame(done)
        container.mux(stream.encode())


def _pulled(sink: Any) -> Iterator[Any]:
    while True:
        try:
            yield sink.pull()
        except (EndOfFileError, NotYetError):
            return


def _write_webp(name: str, images: Tensor, rate: Fraction, quality: int, loops: int, metadata: Mapping[str, str],
                on_frame: Callable[[int], None]) -> None:  # fmt: skip
    exif = Image.Exif()
    others = [f"{key}:{text}" for key, text in metadata.items() if key != "prompt"]
    exif.update({_WEBP_OTHERS - number: text for number, text in enumerate(others)})
    if "prompt" in metadata:
        exif[_WEBP_PROMPT] = f"prompt:{metadata['prompt']}"
    ends = [round(1000 * count / rate) for count in range(len(images) + 1)]
    pictures = []
    for done, image in enumerate(images, 1):
        pictures.append(Image.fromarray(_pixels(image)))
        on_frame(done)
    pictures[0].save(
        name, "WEBP", save_all=True, append_images=pictures[1:], duration=[end - begin for begin, end in pairwise(ends)],
        loop=loops, quality=quality, lossless=quality == 100, exif=exif,
    )  # fmt: skip


def _pixels(image: Tensor) -> np.ndarray:
    return (image.float().clamp(0, 1) * 255).round().byte().cpu().contiguous().numpy()


def _padded(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)), mode="edge")


def _layout(waveform: Tensor) -> str:
    return "mono" if waveform.shape[0] == 1 else "stereo"


def _sound_frame(sound: Sound, seconds: Fraction) -> Any:
    """What there is to hear while the clip lasts, of the first two channels."""
    waveform, rate = sound
    heard = waveform[:2, : math.ceil(seconds * rate)].float().cpu().contiguous().numpy()
    frame = av.AudioFrame.from_ndarray(heard, format="fltp", layout=_layout(waveform))
    frame.sample_rate, frame.pts = rate, 0
    return frame
