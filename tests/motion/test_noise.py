"""FreeInit's filters and the noise that frames have in common, against numpy and the host's own noise."""

from __future__ import annotations

import comfy.sample
import numpy as np
import pytest
import torch

from diffdirector.motion.noise import (
    CONSTANT,
    FILTERS,
    REPEATED,
    TRAVEL,
    TRAVEL_AND_BACK,
    ClipNoise,
    Drawing,
    FreeInit,
    arranged,
    between,
    low_pass,
    parse_seeds,
    renewed,
)
from diffdirector.tests.host.evaluate import randn, relative_error

CUTS = {"d_s": 0.3, "d_t": 0.45}


def by_numpy(kind: str, frames: int, height: int, width: int, d_s: float, d_t: float, order: int) -> np.ndarray:
    """A filter's response at every frequency of fftn, one frequency after the other."""
    result = np.zeros((frames, height, width))
    for i, j, k in np.ndindex(result.shape):
        # of a clip of n samples, the i-th frequency is min(i, n - i) turns; n / 2 is the highest there is
        t, y, x = (2 * min(n, size - n) / size for n, size in ((i, frames), (j, height), (k, width)))
        distance = np.sqrt((t * d_s / d_t) ** 2 + y**2 + x**2)  # of an ellipsoid that cuts the axes at d_t, d_s, d_s
        result[i, j, k] = {
            "gaussian": np.exp(-(distance**2) / (2 * d_s**2)),
            "butterworth": 1 / (1 + (distance / d_s) ** (2 * order)),
            "ideal": float(distance <= d_s),
            "box": float(t <= d_t and y <= d_s and x <= d_s),
        }[kind]
    return result


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("size", [(16, 8, 12), (7, 5, 9), (1, 4, 4)])
def test_filters_are_numpys(kind: str, size: tuple[int, int, int]) -> None:
    expected = by_numpy(kind, *size, **CUTS, order=3)
    found = low_pass(FreeInit(2, kind, **CUTS, order=3), *size).numpy()
    np.testing.assert_allclose(found, expected[..., : size[2] // 2 + 1], atol=1e-12)


@pytest.mark.parametrize("kind", FILTERS)
def test_filters_let_the_mean_pass_fall_and_are_symmetric(kind: str) -> None:
    passed = low_pass(FreeInit(2, kind), 16, 12, 12)
    assert passed[0, 0, 0] == 1
    for line in (passed[:9, 0, 0], passed[0, :7, 0], passed[0, 0]):
        assert (line.diff() <= 0).all() and line[-1] < 0.01
    assert torch.equal(passed[1:], passed[1:].flip(0)) and torch.equal(passed[:, 1:], passed[:, 1:].flip(1))


@pytest.mark.parametrize("kind", FILTERS)
def test_low_and_high_frequencies_make_up_the_whole(kind: str) -> None:
    settings, clip, other = FreeInit(2, kind), randn(16, 4, 8, 6), randn(16, 4, 8, 6, seed=1)
    assert relative_error(renewed(settings, clip, clip), clip) < 1e-6
    both = renewed(settings, clip, other) + renewed(settings, other, clip)
    assert relative_error(both, clip + other) < 1e-6
    assert relative_error(renewed(settings, clip, other), other) > 0.01


@pytest.mark.parametrize("kind", FILTERS)
def test_renewed_noise_is_about_as_strong(kind: str) -> None:
    found = renewed(FreeInit(2, kind), randn(16, 4, 32, 32), randn(16, 4, 32, 32, seed=1))
    assert 0.9 < float(found.std()) <= 1.01 and abs(float(found.mean())) < 0.05


def test_cut_offs_in_time_and_space_are_their_own() -> None:
    """A clip of one still has no frequency in time, a clip of even pictures none in space."""
    still, even, noise = (
        randn(1, 4, 8, 8).expand(16, -1, -1, -1),
        randn(16, 4, 1, 1).expand(-1, -1, 8, 8),
        randn(16, 4, 8, 8),
    )
    in_space, in_time = FreeInit(2, "box", d_s=1.0, d_t=0.01), FreeInit(2, "box", d_s=0.01, d_t=1.0)
    for keeps, clip in ((in_space, still), (in_time, even)):
        kept = renewed(keeps, clip, torch.zeros_like(noise))
        assert relative_error(kept, clip) < 1e-5
        lost = renewed(in_time if keeps is in_space else in_space, clip, torch.zeros_like(noise))
        assert float(lost.norm()) < 0.5 * float(clip.norm())


def test_half_precision_is_only_rounded() -> None:
    clip, fresh = randn(8, 4, 6, 6), randn(8, 4, 6, 6, seed=1)
    for dtype in (torch.float16, torch.bfloat16):
        found = renewed(FreeInit(), clip.to(dtype), fresh)
        expected = renewed(FreeInit(), clip.to(dtype).float(), fresh)
        assert found.dtype == dtype and torch.equal(found, expected.to(dtype))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"iterations": 0}, "iterations: expected at least 1, found 0"),
        ({"filter": "bessel"}, "filter: expected gaussian or butterworth or ideal or box, found bessel"),
        ({"d_s": 0.0}, "d_s: expected more than 0 and at most 1, found 0"),
        ({"d_t": 1.5}, "d_t: expected more than 0 and at most 1, found 1.5"),
        ({"order": 0}, "order: expected at least 1, found 0"),
    ],
)
def test_free_init_refuses_what_it_cannot_do(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreeInit(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "loud"}, "kind: expected default or constant .*, found loud"),
        ({"period": 0}, "period: expected at least 1, found 0"),
        ({"kind": "FreeNoise", "overlap": 16}, r"overlap: expected less than period \(16\), found 16"),
    ],
)
def test_clip_noise_refuses_what_it_cannot_do(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipNoise(**wrong)


def test_seeds_are_read() -> None:
    assert parse_seeds("5, 6,10-13\n 7  18446744073709551615, 3 - 4") == (5, 6, 10, 11, 12, 13, 7, 2**64 - 1, 3, 4)
    assert parse_seeds(" ") == ()
    for wrong in ("five", "3,,-4", "1.5", "13-10", "18446744073709551616", "0-10000", "0: 5"):
        with pytest.raises(ValueError, match='seeds: expected seeds such as "5, 6, 10-13"'):
            parse_seeds(wrong)


def of_still(seed: int) -> torch.Tensor:
    return comfy.sample.prepare_noise(torch.zeros(1, 4, 6, 6), seed)[0]


@pytest.mark.parametrize(("given", "seed"), [({}, 7), ({"further": -9}, 2**64 - 2), ({"seed": 4, "further": 1}, 5)])
def test_noise_is_drawn_from_the_seed_that_is_asked_for(given: dict[str, int], seed: int) -> None:
    like = randn(3, 4, 6, 6)
    plain, later, each = (
        Drawing(**given, skipped=skipped, seed_each=each) for skipped, each in ((0, False), (2, False), (2, True))
    )
    assert plain.first_seed(7) == seed
    clip = comfy.sample.prepare_noise(torch.zeros(5, 4, 6, 6), seed)
    assert torch.equal(plain.noise(seed, like), clip[:3]) and torch.equal(later.noise(seed, like), clip[2:])
    for frame, noise in enumerate(each.noise(seed, like)):
        assert torch.equal(noise, of_still((seed + 2 + frame) % 2**64))


def test_a_frames_seed_gives_the_noise_of_a_still_however_long_the_clip_is() -> None:
    for frames in (3, 8):
        found = arranged(ClipNoise(seeds=(7, 9, 8)), randn(frames, 4, 6, 6))
        for frame in range(frames):
            assert torch.equal(found[frame], of_still((7, 9, 8)[frame % 3]))


def test_noise_of_frames_that_have_it_in_common() -> None:
    noise = randn(7, 4, 6, 6)
    assert torch.equal(arranged(ClipNoise(), noise), noise)
    assert torch.equal(arranged(ClipNoise(CONSTANT), noise), noise[:1].expand(7, -1, -1, -1))
    assert torch.equal(arranged(ClipNoise(REPEATED, period=3), noise), noise[[0, 1, 2, 0, 1, 2, 0]])
    assert torch.equal(arranged(ClipNoise(CONSTANT, seeds=(4, 5)), noise)[6], of_still(4))


def test_seed_travel_goes_from_noise_to_noise_at_even_speed() -> None:
    noise = randn(9, 4, 32, 32)
    there, back = (arranged(ClipNoise(kind, to_seed=3), noise) for kind in (TRAVEL, TRAVEL_AND_BACK))
    goal = comfy.sample.prepare_noise(torch.zeros(1, 4, 32, 32), 3)[0]
    assert torch.allclose(there[0], noise[0], atol=1e-5) and torch.allclose(there[-1], goal, atol=1e-5)
    steps = there.diff(dim=0).flatten(1).norm(dim=1)
    assert torch.allclose(steps, steps[:1], rtol=0.02)
    assert all(0.97 < float(frame.std()) < 1.03 for frame in (*there, *back))

    even = arranged(ClipNoise(TRAVEL_AND_BACK, to_seed=3), noise[:8])
    assert torch.allclose(even[0], noise[0], atol=1e-5) and torch.allclose(even[4], goal, atol=1e-5)
    assert torch.allclose(even[1:], even[1:].flip(0), atol=1e-5)
    turns = torch.cat([even, even[:1]]).diff(dim=0).flatten(1).norm(dim=1)  # from the last frame on to the first
    assert torch.allclose(turns, turns[:1], rtol=0.03)
    assert torch.equal(arranged(ClipNoise(TRAVEL, seeds=(3,), to_seed=3), noise)[5], goal)
    assert arranged(ClipNoise(TRAVEL), noise[:1]).isfinite().all()


def test_between_is_on_the_sphere() -> None:
    first, last = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    found = between(first, last, torch.tensor([0.0, 1 / 3, 1.0]))
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0], [3**0.5, 1.0], [0.0, 2.0]]), rtol=0, atol=1e-6)
