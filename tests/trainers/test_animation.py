"""Clips written to files and read again, by other readers than the writers."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageSequence
from torch import Tensor

from diffdirector.trainers.animation import FORMATS, save_animation


def colours(frames: int = 9, height: int = 48, width: int = 64) -> Tensor:
    """A clip in which every channel, direction and frame differs."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    times = torch.linspace(0, 1, frames)
    return torch.stack([torch.stack([0.1 + 0.8 * x, 0.5 * y + 0.4 * t, 0.9 * (1 - x) * t], -1) for t in times])


def read(path: Path) -> tuple[Tensor, list[float]]:
    """(frames [f, h, w, 3], seconds at which each is shown, and the last one's end where the file says it)"""
    if path.suffix == ".webp":
        with Image.open(path) as file:
            frames, times = [], [0.0]
            for frame in ImageSequence.Iterator(file):
                frames.append(np.asarray(frame.convert("RGB")))
                times.append(times[-1] + frame.info["duration"] / 1000)
    else:
        with av.open(str(path)) as file:
            decoded = list(file.decode(video=0))
            frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
            times = [float(frame.pts * frame.time_base) for frame in decoded]
    return torch.from_numpy(np.stack(frames)).float() / 255, times


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of what the eye sees from afar: a GIF's dithering averages out."""
    return float(-10 * torch.log10(F.avg_pool2d((a - b).movedim(-1, 1), 3).square().mean()))


@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_written_is_read_again(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    clip, path = colours(9, *size), tmp_path / f"clip.{kind}"
    save_animation(path, clip, 12)
    found, times = read(path)
    if kind == "mp4" and size == (33, 47):
        assert found.shape == (9, 34, 48, 3)
        assert (found[:, -1] - found[:, -2]).abs().mean() < 0.02  # its edge again
    found = found[:, : size[0], : size[1]]
    assert psnr(found, clip) > 40
    assert psnr(found[..., [2, 1, 0]], clip) < 15
    assert psnr(found.roll(1, 0), clip) < 26
    rounding = {"gif": 0.0051, "webp": 0.00051, "webm": 0.00051}.get(kind, 1e-6)
    assert times[:9] == pytest.approx([index / 12 for index in range(9)], abs=rounding)


@pytest.mark.parametrize("kind", ["mp4", "webm", "webp"])
def test_quality_decides_between_looks_and_size(tmp_path: Path, kind: str) -> None:
    clip = (colours() + 0.1 * torch.rand(9, 48, 64, 1, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    sizes, looks = [], []
    for quality in (10, 60, 100):
        path = tmp_path / f"{quality}.{kind}"
        save_animation(path, clip, 8, quality)
        sizes.append(path.stat().st_size)
        looks.append(psnr(read(path)[0], clip))
    assert sizes == sorted(sizes) and looks[0] + 3 < looks[1] < looks[2] - 1
    if kind == "webp":
        assert looks[2] > 55  # lossless but for the rounding to 8 bits


def test_transparency_is_kept_in_webp_and_left_out_elsewhere(tmp_path: Path) -> None:
    clip = torch.cat([colours(3), torch.zeros(3, 48, 64, 1)], -1)
    clip[:, :, 32:, 3] = 1
    for kind in FORMATS:
        save_animation(tmp_path / f"clip.{kind}", clip, 8, quality=100)
    with Image.open(tmp_path / "clip.webp") as file:
        alpha = np.asarray(file.convert("RGBA"))[..., 3]
    assert alpha[:, :32].max() == 0 and alpha[:, 32:].min() == 255
    assert psnr(read(tmp_path / "clip.mp4")[0], clip[..., :3]) > 38


@pytest.mark.parametrize(("loops", "gif"), [(0, b"\x00\x00"), (1, None), (5, b"\x04\x00")])
def test_loops(tmp_path: Path, loops: int, gif: bytes | None) -> None:
    for kind in ("gif", "webp"):
        save_animation(tmp_path / f"clip.{kind}", colours(3), 8, loops=loops)
    with Image.open(tmp_path / "clip.webp") as file:
        assert file.info["loop"] == loops
    content = (tmp_path / "clip.gif").read_bytes()
    at = content.find(b"NETSCAPE2.0\x03\x01")  # how often it is repeated after the first time
    assert (content[at + 13 : at + 15] if at > 0 else None) == gif


def test_a_gif_has_the_colours_of_every_frame(tmp_path: Path) -> None:
    """The last frame's, too, of which the first frames have none."""
    clip = torch.zeros(6, 32, 32, 3)
    clip[:3, ..., 0] = torch.linspace(0, 1, 32)
    clip[3:, ..., 2] = torch.linspace(0, 1, 32)
    save_animation(tmp_path / "clip.gif", clip, 8)
    found, _ = read(tmp_path / "clip.gif")
    assert psnr(found[0], clip[0]) > 30 and psnr(found[5], clip[5]) > 30


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_sound_is_heard_as_long_as_the_clip_lasts(tmp_path: Path, kind: str, channels: int) -> None:
    tone = 0.5 * torch.sin(torch.arange(44100 * 4) * 2 * torch.pi * 440 / 44100).expand(channels, -1)
    save_animation(tmp_path / f"clip.{kind}", colours(16), 8, sound=(tone, 44100))
    with av.open(str(tmp_path / f"clip.{kind}")) as file:
        stream = file.streams.audio[0]
        heard = np.concatenate([frame.to_ndarray() for frame in file.decode(stream)], 1)
        rate = stream.rate
    assert heard.shape[0] == min(channels, 2)
    assert heard.shape[1] / rate == pytest.approx(2, abs=0.1)
    spectrum = np.abs(np.fft.rfft(heard[0, : 2 * rate]))
    assert spectrum.argmax() / (min(heard.shape[1], 2 * rate) / rate) == pytest.approx(440, abs=2)
    assert len(read(tmp_path / f"clip.{kind}")[0]) == 16


def test_texts_of_the_graph_are_where_the_front_end_looks(tmp_path: Path) -> None:
    graph = {"prompt": '{"1": "e"}', "workflow": '{"nodes": []}', "more": "1"}
    for kind in ("mp4", "webm", "webp"):
        save_animation(tmp_path / f"clip.{kind}", colours(2), 8, metadata=graph)
    for kind in ("mp4", "webm"):
        with av.open(str(tmp_path / f"clip.{kind}")) as file:
            found = {key.lower(): text for key, text in file.metadata.items()}
        assert found | graph == found
    with Image.open(tmp_path / "clip.webp") as file:
        exif = file.getexif()
    assert exif[0x0110] == 'prompt:{"1": "e"}' and exif[0x010F] == 'workflow:{"nodes": []}' and exif[0x010E] == "more:1"


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_cancelled_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    class CancelError(Exception):
        pass

    def cancel(done: int) -> None:
        if done == 5:
            raise CancelError

    with pytest.raises(CancelError):
        save_animation(tmp_path / f"clip.{kind}", colours(), 8, on_frame=cancel)
    assert list(tmp_path.iterdir()) == []
    done: list[int] = []
    save_animation(tmp_path / f"clip.{kind}", colours(), 8, on_frame=done.append)
    assert done == list(range(1, 10))


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A gif has no sound. Save as mp4 or webm, or disconnect the audio"):
        save_animation(tmp_path / "clip.gif", colours(2), 8, sound=(torch.zeros(1, 100), 44100))
    wide = torch.zeros(1, 2, 20000, 3)
    for kind, message in (
        ("mp4", "1 frames of 20000x2 at 8 a second cannot be written as mp4"),
        ("webp", "16383 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            save_animation(tmp_path / f"clip.{kind}", wide, 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_one_frame_is_a_clip(tmp_path: Path, kind: str) -> None:
    save_animation(tmp_path / f"clip.{kind}", colours(1), 8)
    assert read(tmp_path / f"clip.{kind}")[0].shape == (1, 48, 64, 3)
