"""Camera moves over footage and stills, measured by where known points of a picture come to lie."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffdirector.tests.trainers.test_dataset import SIZE, encode
from diffdirector.tests.trainers.videos import write_video
from diffdirector.trainers.camera import CAMERAS, MOVES, NONE, film
from diffdirector.trainers.contact_sheet import contact_sheet
from diffdirector.trainers.dataset import DatasetError, find_frames, find_videos

AMOUNT, FRAMES = 0.5, 5
# of the dots: share of the picture's height from its middle, to the right and down
DOTS = [(0.14, 0.02), (-0.12, 0.07), (0.03, -0.1)]
# what becomes of them: scale, shift in frames, and turn (clockwise, as seen) at a time from 0 to 1
SEEN = {
    "zoom_in": lambda t: (1.5**t, (0, 0), 0),
    "zoom_out": lambda t: (1.5 ** (1 - t), (0, 0), 0),
    "pan_left": lambda t: (1, (AMOUNT * (t - 0.5), 0), 0),
    "pan_right": lambda t: (1, (-AMOUNT * (t - 0.5), 0), 0),
    "tilt_up": lambda t: (1, (0, AMOUNT * (t - 0.5)), 0),
    "tilt_down": lambda t: (1, (0, -AMOUNT * (t - 0.5)), 0),
    "roll_clockwise": lambda t: (1, (0, 0), -math.pi / 4 * (t - 0.5)),
    "roll_anticlockwise": lambda t: (1, (0, 0), math.pi / 4 * (t - 0.5)),
}


def dotted(height: int = 300, width: int = 400) -> torch.Tensor:
    """One blurred dot in each channel, on black; [3, height, width]."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([
        torch.exp(-((columns - width / 2 - x * height) ** 2 + (rows - height / 2 - y * height) ** 2) / (2 * 4.0**2))
        for x, y in DOTS
    ])  # fmt: skip


def places(frame: torch.Tensor) -> torch.Tensor:
    """Of each channel's dot, its centroid about the frame's middle, in frames; [3, 2]."""
    height, width = frame.shape[1:]
    across, down = (torch.arange(width) + 0.5) / width - 0.5, (torch.arange(height) + 0.5) / height - 0.5
    mass = frame.sum((1, 2))
    return torch.stack([(frame.sum(1) @ across) / mass, (frame.sum(2) @ down) / mass], 1)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 128)])
@pytest.mark.parametrize("camera", MOVES)
def test_what_is_filmed_moves_as_the_camera_says(camera: str, height: int, width: int) -> None:
    picture = dotted()
    middle = places(film(picture, camera, AMOUNT, 0.5, height, width)) * torch.tensor([width, height])
    scale_then = SEEN[camera](0.5)[0]
    for time in (0.0, 0.25, 0.5, 0.75, 1.0):
        scale, shift, turn = SEEN[camera](time)
        found = places(film(picture, camera, AMOUNT, time, height, width)) * torch.tensor([width, height])
        turned = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        expected = middle @ turned * (scale / scale_then) + torch.tensor(shift) * torch.tensor([width, height])
        assert (found - expected).abs().max() < 0.2, (time, found, expected)  # pixels of the frame


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (90, 700)])
@pytest.mark.parametrize("camera", MOVES)
def test_the_frame_is_as_large_as_fits_and_never_leaves_the_picture(camera: str, height: int, width: int) -> None:
    """On white, marked at the border: a little of the border is nearly reached, none of it is passed."""
    inside = torch.zeros(3, height, width)
    inside[:, 2:-2, 2:-2] = 1  # what is left after the border's own two pixels
    for amount in (0.1, 1.0):
        clip = [film(inside, camera, amount, time, 64, 96) for time in torch.linspace(0, 1, 9).tolist()]
        darkest = min(float(frame.min()) for frame in clip)
        assert darkest < 0.9, "there was room left"
    outside = torch.nn.functional.pad(torch.ones(3, height, width), (0, 0, 0, 0))
    assert all(float(film(outside, camera, 1.0, time, 64, 96).min()) > 0.999 for time in (0.0, 0.3, 1.0))


def test_fine_patterns_do_not_flicker() -> None:
    """Stripes too fine for the frame become an even grey, also between its pixels."""
    stripes = (torch.arange(1200) // 2 % 2).float().expand(3, 900, 1200)
    clip = torch.stack([film(stripes, "zoom_in", 0.3, time, 96, 128) for time in torch.linspace(0, 1, 6).tolist()])
    assert (clip[..., 4:-4, 4:-4] - 0.5).abs().max() < 0.05


def test_a_still_becomes_a_clip_that_moves(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.webp", "d.png"):
        Image.fromarray((dotted().permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(tmp_path / name, quality=95)
    write_video(tmp_path / "film.mp4", frames=9)
    (tmp_path / "a.txt").write_text("three dots")
    (tmp_path / "d.png").write_bytes(b"no picture")
    settings = {"frames": FRAMES, "width": 96, "height": 96, "camera_amount": AMOUNT}
    sources = find_videos(tmp_path, "dots", camera="zoom_in", frame_step=2, **settings)
    assert [source.path.name for source in sources] == ["a.png", "b.jpg", "c.webp", "d.png", "film.mp4"]
    assert [source.caption for source in sources[:2]] == ["three dots", "dots"]
    for source in sources[:3]:
        clip = source.read()
        assert clip.shape == (FRAMES, 3, 96, 96)
        growth = places(clip[-1]).norm() / places(clip[0]).norm()
        assert abs(growth - 1 - AMOUNT) < 0.03
    clips = encode(sources, tmp_path)  # what cannot be read is left out
    assert len(clips) == 4
    sheet = contact_sheet(sources[:1], height=96)
    first, last = sheet[:, :96].permute(2, 0, 1), sheet[:, -96:].permute(2, 0, 1)
    assert abs(places(last).norm() / places(first).norm() - 1 - AMOUNT) < 0.03


def test_a_turned_photograph_is_upright_and_a_large_one_fits(tmp_path: Path) -> None:
    image = Image.fromarray((dotted(900, 1200).permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: shown a quarter turn clockwise
    image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "upright.png")
    turned, upright = (
        find_videos(tmp_path / f"{name}.png", "dots", camera="pan_left", frames=2, width=64, height=48)[0].read()
        for name in ("turned", "upright")
    )
    assert torch.equal(turned, upright)
    expected = film(dotted(900, 1200), "pan_left", 0.4, 1.0, 48, 64)
    assert (places(upright[1]) - places(expected)).abs().max() < 0.01


def test_pictures_without_a_camera_move_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(
        DatasetError, match="a.png: expected a video, found a picture, which does not move. Choose a camera"
    ):
        find_videos(tmp_path / "a.png", **SIZE)
    with pytest.raises(DatasetError, match="found 1 pictures, which do not move. Choose a camera move"):
        find_videos(tmp_path, **SIZE)
    with pytest.raises(DatasetError, match="need 4 frames, it has 1"):
        find_frames([torch.zeros(1, 32, 32, 3)], **SIZE)
    for changes, message in (
        ({"camera": "spin"}, f"camera: expected one of {', '.join(CAMERAS)}; found 'spin'"),
        ({"camera": "zoom_in", "camera_amount": 0.0}, "camera_amount: expected more than 0 and at most 1, found 0.0"),
    ):
        with pytest.raises(DatasetError, match=message):
            find_videos(tmp_path / "a.png", **SIZE, **changes)


def test_a_mirrored_clip_keeps_the_move(tmp_path: Path) -> None:
    picture = dotted().permute(1, 2, 0)[None]
    plain, mirrored = (
        clip.read() for clip in find_frames([picture], camera="pan_left", hflip=True, frames=3, width=96, height=96)
    )
    moved = [(places(clip[2]) - places(clip[0]))[:, 0] for clip in (plain, mirrored)]
    assert (moved[0] > 0.3).all() and torch.allclose(moved[0], moved[1], atol=0.01)
    assert torch.allclose(places(plain[1])[:, 0], -places(mirrored[1])[:, 0], atol=0.01)


def test_keys_of_clips_without_a_move_are_as_they_were() -> None:
    """Latents of earlier trainings are found, and these go on; a move, and how far it goes, makes others."""
    images = [torch.zeros(8, 8, 8, 3)]
    find = lambda **more: find_frames(images, frames=4, width=16, height=8, hflip=True, **more)  # noqa: E731
    assert [clip.key()[:16] for clip in find()] == ["bb6e605ab0073065", "92318d7c35d882e4"]
    assert [clip.key() for clip in find(camera=NONE, camera_amount=0.7)] == [clip.key() for clip in find()]
    keys = {find(camera=camera, camera_amount=amount)[0].key() for camera in CAMERAS for amount in (0.4, 0.7)}
    assert len(keys) == 1 + 2 * len(MOVES)
