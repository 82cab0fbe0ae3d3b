"""The demo's world, and whether the tracker reads it as it is written."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffdirector.tests.demo.tracker import read_clip, read_pictures
from diffdirector.tests.demo.world import (
    BACKGROUNDS,
    COLOURS,
    MOVEMENTS,
    OFFSETS,
    SHAPES,
    SPEEDS,
    Attributes,
    Scene,
    caption,
    circle_path,
    parse_caption,
    path_of,
    read_video,
    render,
    render_still,
    render_stills,
    scenes,
    write_dataset,
    zigzag_path,
)

ATTRIBUTES = Attributes._fields
OPPOSITES = [("left", "right"), ("up", "down"), ("growing", "shrinking")]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Pictures this small are slower with more, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def attributes(found) -> tuple[str, ...]:
    return tuple(getattr(found, name) for name in ATTRIBUTES)


def worn(frames: Tensor, seed: int = 0) -> Tensor:
    """The frames blurred, by way of half their size, and with noise on them."""
    half = interpolate(frames, scale_factor=0.5, mode="area")
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))
    return interpolate(half, size=frames.shape[-2:], mode="bilinear") + 0.05 * noise


def test_captions() -> None:
    assert caption(Scene("circle", "red", "white", "left")) == "a red circle moving left on a white background"
    assert caption(Scene("square", "blue", "black", "growing")) == "a blue square growing on a black background"
    assert (
        caption(Scene("triangle", "green", "grey", "still")) == "a green triangle standing still on a grey background"
    )
    made = scenes(seed=0, n=504)
    assert all(attributes(parse_caption(caption(scene))) == attributes(scene) for scene in made)
    assert len({caption(scene) for scene in made}) == 504


def test_a_caption_need_not_name_everything() -> None:
    assert parse_caption("A blue square, moving left") == Attributes("square", "blue", None, "left")
    assert parse_caption("something cyan on gray") == Attributes(None, "turquoise", "grey", None)
    assert parse_caption("") == Attributes(None, None, None, None)


def test_every_combination_appears_and_few_scenes_are_balanced() -> None:
    made = scenes(seed=5, n=2 * 504)
    everything = Counter(product(SHAPES, COLOURS, BACKGROUNDS, MOVEMENTS))
    assert Counter(attributes(scene) for scene in made[:504]) == everything
    assert Counter(attributes(scene) for scene in made[504:]) == everything
    for name in ATTRIBUTES:
        counts = Counter(getattr(scene, name) for scene in made[:84])
        assert max(counts.values()) - min(counts.values()) <= 2, counts


def test_a_seed_decides_every_pixel() -> None:
    one, other = scenes(seed=7, n=12), scenes(seed=7, n=12)
    assert one == other != scenes(seed=8, n=12)
    assert torch.equal(render(one[3], frames=8), render(other[3], frames=8))
    times = torch.linspace(0, 1, 12).tolist()
    stills = render_stills(one, times)
    assert all(torch.equal(still, render_still(*of)) for still, *of in zip(stills, one, times, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_body_stays_inside(shape: str) -> None:
    red, white = torch.tensor(COLOURS["red"]), torch.tensor(BACKGROUNDS["white"])
    for movement, offset, speed in product(MOVEMENTS, OFFSETS, SPEEDS):
        frames = render(Scene(shape, "red", "white", movement, offset, speed), frames=16)
        assert frames.shape == (16, 3, 64, 64) and frames.min() >= 0 and frames.max() <= 1
        edge = torch.ones(64, 64, dtype=torch.bool)
        edge[1:-1, 1:-1] = False
        cover = (frames[..., edge] - white[:, None]).norm(dim=1) / (red - white).norm()
        assert cover.max() <= 0.51, movement  # a trail at most


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "wear", "n"), [(8, None, 300), (16, None, 300), (8, worn, 300), (16, worn, 150)])
def test_rates(frames: int, wear, n: int) -> None:
    right = Counter()
    for scene in scenes(seed=11, n=n):
        clip = render(scene, frames)
        read = read_clip(clip if wear is None else wear(clip))
        right.update(name for name in ATTRIBUTES if getattr(read, name) == getattr(scene, name))
        right["marks"] += sum(picture.mark == scene.movement for picture in read.pictures) / frames
        right["whole"] += not read.lost and not read.doubled
        right["even"] += read.even
    assert set(right) == {*ATTRIBUTES, "marks", "whole", "even"}
    assert min(right.values()) >= (0.99 if wear is None else 0.95) * n, right


@pytest.mark.parametrize("size", [64, 128])
def test_places_and_sizes_are_read_in_pixels_of_64(size: int) -> None:
    made = scenes(seed=2, n=21)
    for scene in made:
        read = read_clip(render(scene, frames=8, size=size))
        pose = path_of(scene)(torch.linspace(0, 1, 8))
        for picture, x, y, length in zip(read.pictures, pose.x, pose.y, pose.size, strict=True):
            assert abs(picture.x - 64 * x) < 0.5 and abs(picture.y - 64 * y) < 0.5
            assert picture.size == pytest.approx(float(64 * length), rel=0.15)
        assert attributes(read) == attributes(scene)


def test_bytes_read_as_floats_do() -> None:
    clip = render(scenes(seed=4, n=1)[0], frames=4)
    read, same = read_clip(clip), read_clip((clip * 255).round().byte().numpy())
    assert attributes(read) == attributes(same)
    assert same.travel == pytest.approx(read.travel, abs=0.1)


def test_files_keep_what_the_tracker_reads(tmp_path) -> None:
    paths = write_dataset(tmp_path / "clips", seed=3, n=14, frames=8)
    assert [path.name for path in paths[:2]] == ["0000.mp4", "0001.mp4"]
    for path, scene in zip(paths, scenes(seed=3, n=14), strict=True):
        frames = read_video(path)
        assert frames.shape == (8, 3, 64, 64)
        assert (frames - render(scene, frames=8)).abs().mean() < 0.02
        named = parse_caption(path.with_suffix(".txt").read_text())
        assert attributes(read_clip(frames)) == attributes(named) == attributes(scene)


@pytest.mark.parametrize(("movement", "opposite"), OPPOSITES)
def test_an_opposite_is_a_time_reversal(movement: str, opposite: str) -> None:
    clip = render(Scene("square", "yellow", "purple", movement), frames=8)
    forth, back = read_clip(clip), read_clip(clip.flip(0))
    assert (forth.movement, back.movement) == (movement, opposite)
    assert back.travel == pytest.approx([-value for value in forth.travel], abs=0.1)
    assert back.pictures == forth.pictures[::-1]


def test_shuffled_frames_do_not_move_evenly() -> None:
    travelling = [scene for scene in scenes(seed=6, n=42) if scene.movement in ("left", "right", "up", "down")]
    generator = torch.Generator().manual_seed(0)
    shuffled = [read_clip(render(scene, 16)[torch.randperm(16, generator=generator)]) for scene in travelling]
    assert not any(read.even or read.movement for read in shuffled)
    assert torch.tensor([read.steadiness for read in shuffled]).median() > 2
    assert all(read_clip(render(scene, 16)).steadiness < 1.3 for scene in travelling)


def test_an_empty_picture_is_lost() -> None:
    clip = render(Scene("circle", "red", "grey", "up"), frames=8)
    clip[2:4] = torch.tensor(BACKGROUNDS["grey"]).view(3, 1, 1)
    clip[3] += 0.05 * torch.randn(clip[3].shape, generator=torch.Generator().manual_seed(0))
    read = read_clip(clip)
    assert read.lost == 2 and [picture.bodies for picture in read.pictures] == [1, 1, 0, 0, 1, 1, 1, 1]
    assert read.movement == "up" and read.colour == "red"
    nothing = read_clip(clip[2:4])
    assert (nothing.lost, nothing.background, nothing.colour, nothing.movement) == (2, "grey", None, None)


def test_two_bodies_are_doubled() -> None:
    def beside(scene: Scene, x: float) -> Tensor:
        return render(scene, 4, path=lambda time: path_of(scene)(time)._replace(x=torch.full_like(time, x)))

    red, blue = Scene("circle", "red", "black", "still"), Scene("square", "blue", "black", "still")
    both = torch.maximum(beside(red, 0.25), beside(blue, 0.75))
    assert [picture.bodies for picture in read_pictures(both)] == [2, 2, 2, 2]
    assert read_clip(both).doubled == 4


@pytest.mark.parametrize("path", [circle_path(), circle_path(turns=-2), zigzag_path(), zigzag_path(strokes=5)])
@pytest.mark.parametrize("frames", [8, 16])
def test_other_paths_are_none_of_the_movements(path, frames: int) -> None:
    read = read_clip(render(Scene("triangle", "pink", "white", "left"), frames, path=path))
    assert (read.movement, read.shape, read.colour, read.lost) == (None, "triangle", "pink", 0)
