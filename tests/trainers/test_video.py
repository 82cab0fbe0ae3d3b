"""Real video files through the real decoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from diffdirector.tests.trainers.videos import greys, turn, write_video
from diffdirector.trainers import video
from diffdirector.trainers.dataset import find_videos
from diffdirector.trainers.video import DatasetError, bucket_size, cover, frame_times, read_frames

WHOLE = {"frames": 4, "width": 48, "height": 32}


def read(path: Path, **settings) -> torch.Tensor:
    (source,) = find_videos(path, **settings)
    return source.read()


def frames(path: Path, *wanted: int) -> list[np.ndarray]:
    return [frame.numpy() for frame in read_frames(path, range(*wanted))]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many frames were decoded, and how many turned into pixels."""
    count = {"decoded": 0, "converted": 0}
    decoded, picture = video._decoded, video._picture

    def counting_decoder(*arguments):
        for frame in decoded(*arguments):
            count["decoded"] += 1
            yield frame

    def counting_converter(*arguments):
        count["converted"] += 1
        return picture(*arguments)

    monkeypatch.setattr(video, "_decoded", counting_decoder)
    monkeypatch.setattr(video, "_picture", counting_converter)
    return count


def test_only_the_frames_asked_for_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    clip = read(tmp_path / "a.mp4", frames=4, frame_step=2, start=1, width=48, height=32)
    assert clip.shape == (4, 3, 32, 48)
    exact = clip[:, :, :, 30:].mean((1, 2, 3)) * 255
    assert np.allclose(exact, [16 + 18 * i for i in (1, 3, 5, 7)], atol=3)


def test_pictures_are_covered_and_cut_never_squashed(tmp_path: Path) -> None:
    write_video(tmp_path / "wide.mp4", width=96, height=32)
    clip = read(tmp_path / "wide.mp4", frames=4, width=32, height=32)
    assert clip.shape == (4, 3, 32, 32)
    white = (clip[0, 0] > 0.8).float().mean(0)
    assert white[:15].min() == 1
    assert white[17:].max() == 0


def test_frames_are_scaled_as_pillow_does(tmp_path: Path) -> None:
    picture = Image.effect_noise((97, 65), 60).filter(ImageFilter.GaussianBlur(1)).convert("RGB")
    frame = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    scaled = cover(frame, 32, 48)
    expected = np.asarray(picture.resize((48, 32), Image.Resampling.BICUBIC)) / 255
    assert np.abs(scaled[0].permute(1, 2, 0).numpy() - expected).max() <= 1 / 255 + 1e-6
    assert (scaled - cover(frame.float() / 255, 32, 48)).abs().max() <= 2 / 255


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mp4", "libx264", {"bf": 3, "g": 6, "x264-params": "open-gop=1"}),
        ("a.mkv", "libx264", {"bf": 2}),
        ("a.mov", "mpeg4", {"qscale": 1}),
        ("a.avi", "mpeg4", {"bf": 2, "g": 12, "b": "5M"}),
        ("a.webm", "libvpx", {"auto_alt_ref": 1, "lag_in_frames": 16, "b": "2M"}),
        ("a.webm", "libvpx-vp9", {"auto_alt_ref": 1, "lag_in_frames": 16, "b": "2M"}),
        ("a.m4v", "libx264", {}),
        ("a.gif", "gif", {"pix_fmt": "rgb8"}),
    ],
)
def test_a_seek_gives_what_decoding_from_the_start_gives(tmp_path: Path, name: str, codec: str, options: dict) -> None:
    write_video(tmp_path / name, 60, codec=codec, **options)
    assert len(frame_times(tmp_path / name)) == 60
    everything = frames(tmp_path / name, 60)
    for start in (0, 17, 29, 41, 58):
        assert all(map(np.array_equal, frames(tmp_path / name, start, 60), everything[start:])), start
    assert greys(read(tmp_path / name, frames=4, frame_step=3, start=41, width=48, height=32)) == [5, 8, 11, 2]


def test_of_a_long_video_little_is_decoded(tmp_path: Path, counted: dict[str, int]) -> None:
    write_video(tmp_path / "long.mp4", frames=3000, g=25)
    clip = read(tmp_path / "long.mp4", start=2500, **WHOLE)
    assert greys(clip) == [(2500 + index) % 12 for index in range(4)]
    assert counted["decoded"] < 80
    assert counted["converted"] == 4


def test_a_file_without_times_is_counted_by_decoding(tmp_path: Path, counted: dict[str, int]) -> None:
    write_video(tmp_path / "raw.h264", frames=40, bf=2)
    (tmp_path / "raw.h264").rename(tmp_path / "raw.avi")
    assert frame_times(tmp_path / "raw.avi") == range(40)
    assert greys(read(tmp_path / "raw.avi", start=25, **WHOLE)) == [1, 2, 3, 4]
    assert counted["converted"] == 4


def test_variable_frame_rate_is_read_in_the_order_shown(tmp_path: Path) -> None:
    write_video(tmp_path / "uneven.mp4", times=[0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61, 100], bf=3)
    assert greys(read(tmp_path / "uneven.mp4", frames=6, frame_step=2, width=48, height=32)) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("matrix", "size", "white"),
    [
        ((0, 1, -1, 0), (48, 32), "top"),  # a phone held upright
        ((-1, 0, 0, -1), (32, 48), "right"),
        ((0, -1, 1, 0), (48, 32), "bottom"),
        ((-1, 0, 0, 1), (32, 48), "right"),  # mirrored, as front cameras do
    ],
)
def test_videos_are_turned_as_they_say(tmp_path: Path, matrix: tuple, size: tuple, white: str) -> None:
    write_video(tmp_path / "turned.mp4")
    turn(tmp_path / "turned.mp4", *matrix)
    (picture,) = frames(tmp_path / "turned.mp4", 1)
    assert picture.shape == (*size, 3)
    middle = {"top": (4, 16), "bottom": (-4, 16), "right": (16, -4)}[white]
    opposite = {"top": (-4, 16), "bottom": (4, 16), "right": (16, 4)}[white]
    assert picture[middle].min() > 240 and picture[opposite].max() < 40


def test_pixels_that_are_not_square_are_widened(tmp_path: Path) -> None:
    write_video(tmp_path / "anamorphic.mp4", aspect=Fraction(2, 1))
    assert frames(tmp_path / "anamorphic.mp4", 1)[0].shape == (32, 96, 3)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("odd.mp4", "libx264", "yuv444p"), ("odd.mkv", "ffv1", "yuv420p"), ("odd.webm", "libvpx-vp9", "yuv420p")],
)
def test_odd_sizes(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    write_video(tmp_path / name, width=47, height=33, codec=codec, pix_fmt=pix_fmt)
    assert frames(tmp_path / name, 1)[0].shape == (33, 47, 3)
    assert greys(read(tmp_path / name, frames=4, width=40, height=32)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "metadata"),
    [
        ("a.mov", "qtrle", "argb", {}),
        ("a.mov", "png", "rgba", {}),
        ("a.webm", "libvpx-vp9", "yuva420p", {"alpha_mode": "1"}),
        ("a.webm", "libvpx", "yuva420p", {"alpha_mode": "1"}),
    ],
)
def test_what_is_transparent_is_black(tmp_path: Path, name: str, codec: str, pix_fmt: str, metadata: dict) -> None:
    write_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt, metadata=metadata, auto_alt_ref=0)
    picture = frames(tmp_path / name, 11, 12)[0]
    assert picture[:14, :20].min() > 240
    assert picture[18:].max() < 8


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DatasetError, match=r"^empty.mp4 cannot be decoded: Invalid data found"):
        frame_times(tmp_path / "empty.mp4")
    with pytest.raises(DatasetError, match=r"^gone.mp4 cannot be read: No such file"):
        frame_times(tmp_path / "gone.mp4")
    with av.open(str(tmp_path / "sound.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(DatasetError, match=r"^sound.mov cannot be decoded: expected a video stream"):
        frame_times(tmp_path / "sound.mov")


def test_what_is_there_of_a_damaged_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "cut.mkv"
    write_video(path, frames=240, g=12)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert 60 < len(frame_times(path)) < 200
    assert greys(read(path, **WHOLE)) == [0, 1, 2, 3]
    write_video(tmp_path / "holed.mp4", frames=240, g=12)
    content = bytearray((tmp_path / "holed.mp4").read_bytes())
    start = content.index(b"mdat") + 2000
    content[start : len(content) * 3 // 4] = bytes(len(content) * 3 // 4 - start)
    (tmp_path / "holed.mp4").write_bytes(content)
    assert greys(read(tmp_path / "holed.mp4", **WHOLE)) == [0, 1, 2, 3]
    with pytest.raises(DatasetError, match=r"^holed.mp4 cannot be decoded: "):
        read(tmp_path / "holed.mp4", start=100, **WHOLE)


@pytest.mark.parametrize(
    ("height", "width", "area", "expected"),
    [
        (1080, 1920, 512 * 512, (384, 704)),
        (1920, 1080, 512 * 512, (704, 384)),
        (480, 640, 512 * 512, (448, 576)),
        (700, 700, 256 * 256, (256, 256)),
        (32, 48, 64 * 64, (56, 80)),
        (10, 4000, 64 * 64, (8, 1280)),
    ],
)
def test_bucket_sizes(height: int, width: int, area: int, expected: tuple[int, int]) -> None:
    assert bucket_size(height, width, area) == expected
