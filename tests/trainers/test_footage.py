"""Frames at even times, of real video files through the real decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffdirector.tests.trainers.videos import greys, turn, write_video
from diffdirector.trainers import video
from diffdirector.trainers.animation import save_animation
from diffdirector.trainers.footage import find_footage

UNEVEN = [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61, 100]  # eighths of a second


def numbers(path: Path, **settings) -> list[int]:
    return greys(find_footage(path, **settings).read().movedim(-1, 1))


def shown(times: list[int], rate: float, start: float, frames: int) -> list[int]:
    """What a player shows, the long way round."""
    now = [start + count / rate for count in range(frames)]
    return [max(index for index, time in enumerate(times) if time / 8 <= moment + 1e-6) for moment in now]


@pytest.mark.parametrize(("rate", "start", "frames"), [(8, 0, 100), (4, 1.5, 40), (2.5, 0.3, 20), (24, 3.5, 60)])
def test_variable_frame_rate_is_resampled_in_time(tmp_path: Path, rate: float, start: float, frames: int) -> None:
    write_video(tmp_path / "uneven.mp4", times=UNEVEN, bf=3)
    found = numbers(tmp_path / "uneven.mp4", frame_rate=rate, start=start, frames=frames)
    assert found == shown(UNEVEN, rate, start, frames)


def test_at_its_own_rate_every_picture_comes_once(tmp_path: Path) -> None:
    write_video(tmp_path / "uneven.mp4", times=UNEVEN, bf=3)
    footage = find_footage(tmp_path / "uneven.mp4")
    assert greys(footage.read().movedim(-1, 1)) == list(range(12))
    assert footage.rate == pytest.approx(11 / 12.5)
    assert numbers(tmp_path / "uneven.mp4", start=1.2, frames=3) == [2, 3, 4]


@pytest.mark.parametrize("rate", [30, 29.97, 12.5])
@pytest.mark.parametrize("kind", ["mp4", "webm"])  # webm has whole milliseconds: 33, 67, 100
def test_a_video_at_its_own_rate_is_read_picture_by_picture(tmp_path: Path, rate: float, kind: str) -> None:
    clip = torch.stack([torch.full((32, 32, 3), (16 + 18 * (index % 12)) / 255) for index in range(24)])
    save_animation(tmp_path / f"even.{kind}", clip, rate)
    for asked in (rate, 0):
        footage = find_footage(tmp_path / f"even.{kind}", frame_rate=asked)
        assert footage.numbers == tuple(range(24))
        assert footage.rate == pytest.approx(rate, abs=1e-6)
    assert numbers(tmp_path / f"even.{kind}", frame_rate=rate / 3) == [0, 3, 6, 9, 0, 3, 6, 9]
    assert numbers(tmp_path / f"even.{kind}", frame_rate=2 * rate, start=3 / rate, frames=5) == [3, 3, 4, 4, 5]


def test_turned_and_oddly_sized_videos_cover_the_size(tmp_path: Path) -> None:
    write_video(tmp_path / "turned.mp4")  # 48 x 32, its left half white
    turn(tmp_path / "turned.mp4", 0, 1, -1, 0)
    images = find_footage(tmp_path / "turned.mp4", frames=2, width=32, height=32).read()
    assert images.shape == (2, 32, 32, 3)
    assert images[0, :14].min() > 0.9 and images[0, 18:].max() < 0.2  # its upper half now, and not squashed
    write_video(tmp_path / "odd.mp4", width=47, height=33, pix_fmt="yuv444p")
    assert find_footage(tmp_path / "odd.mp4", frames=2).read().shape == (2, 32, 40, 3)


def test_colours_are_the_videos(tmp_path: Path) -> None:
    clip = torch.tensor([0.9, 0.5, 0.1]).expand(3, 32, 32, 3)
    save_animation(tmp_path / "orange.mp4", clip, 8, quality=100)
    assert (find_footage(tmp_path / "orange.mp4").read() - clip).abs().max() < 0.02


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(0, 0, (96, 48)), (64, 0, (64, 32)), (0, 64, (128, 64)), (64, 64, (64, 64)), (50, 70, (48, 72)), (8, 0, (8, 8))],
)
def test_sizes(tmp_path: Path, width: int, height: int, expected: tuple[int, int]) -> None:
    write_video(tmp_path / "wide.mp4", frames=2, width=100, height=50)
    footage = find_footage(tmp_path / "wide.mp4", frames=1, width=width, height=height)
    assert (footage.width, footage.height) == expected
    assert footage.read().shape == (1, footage.height, footage.width, 3)


def test_only_the_frames_asked_for_become_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "long.mp4", frames=3000, g=25)
    footage = find_footage(tmp_path / "long.mp4", frame_rate=4, start=300, frames=5)
    converted, picture = [], video._picture
    monkeypatch.setattr(video, "_picture", lambda *given: converted.append(1) or picture(*given))
    done = []
    assert greys(footage.read(done.append).movedim(-1, 1)) == [(2400 + 2 * count) % 12 for count in range(5)]
    assert len(converted) == 5
    assert done == [1, 2, 3, 4, 5]


def test_what_cannot_be_had_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4")
    with pytest.raises(
        ValueError,
        match="short.mp4 has 10 frames from 0.25 seconds on at 8 frames a second, 16 were asked for. Set frames to 0",
    ):
        find_footage(tmp_path / "short.mp4", frame_rate=8, start=0.25, frames=16)
    with pytest.raises(ValueError, match="short.mp4 is 1.50 seconds long, start is 2. Choose a start below that"):
        find_footage(tmp_path / "short.mp4", start=2)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="text.mp4 cannot be decoded: Invalid data .*convert it to mp4"):
        find_footage(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match="gone.mp4 cannot be read: No such file or directory. Choose a video"):
        find_footage(tmp_path / "gone.mp4")
