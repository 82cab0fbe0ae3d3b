"""Scribbles of pictures whose lines are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffdirector.motion.scribbles import CANNY, DRAWING, LINES, METHODS, SOBEL, scribbles

SIDE = 64


def square(dark: float = 0.0, light: float = 1.0) -> Tensor:
    """A dark square of 32 on light, [1, 64, 64, 3]."""
    picture = torch.full((1, SIDE, SIDE, 3), light)
    picture[:, 16:48, 16:48] = dark
    return picture


@pytest.mark.parametrize("method", [LINES, CANNY, SOBEL])
def test_lines_are_where_the_square_ends_and_nowhere_else(method: str) -> None:
    found = scribbles(square(), method, 0.15)[0]
    assert found.shape == (SIDE, SIDE, 3) and torch.equal(found[..., 0], found[..., 2])
    assert found[14:18, 32].max() > 0.9 and found[32, 46:50].max() > 0.9
    for flat in (found[:12], found[52:], found[20:44, 20:44]):
        assert flat.max() == 0


@pytest.mark.parametrize("method", [LINES, CANNY, SOBEL])
def test_the_threshold_is_the_contrast_of_a_line(method: str) -> None:
    faint = square(0.4, 0.6)
    assert scribbles(faint, method, 0.05).max() > 0.2
    assert scribbles(faint, method, 0.5).max() == 0
    assert scribbles(square(), method, 0.5).max() > 0.5


def test_a_drawing_is_light_on_black_whatever_it_was() -> None:
    """And stretched to the whole range, as the original normalises sketches; each picture for itself."""
    lines = torch.zeros(1, SIDE, SIDE, 3)
    lines[:, 30:33] = 1
    paper = 0.9 - 0.6 * lines
    found = scribbles(torch.cat([lines, paper, 0.1 + 0.2 * lines]), DRAWING, 0.0)
    assert torch.allclose(found, lines.expand(3, -1, -1, -1), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (2, 40, 24, 4), (1, 3, 512, 3)])
def test_any_size_of_nothing_is_black(method: str, shape: tuple[int, ...]) -> None:
    found = scribbles(torch.full(shape, 0.5), method, 0.15)
    assert found.shape == (*shape[:3], 3) and found.abs().max() == 0


def test_lines_are_made_thicker_thinner_inverted_and_stretched() -> None:
    line = torch.zeros(1, SIDE, SIDE, 3)
    line[:, 30:33] = 0.5

    def rows(**settings) -> list[int]:
        found = scribbles(line, DRAWING, 0.0, **settings)[0, :, 32, 0]
        return found.nonzero().flatten().tolist()

    assert rows() == [30, 31, 32] and rows(thickness=2) == list(range(28, 35)) and rows(thickness=-1) == [31]
    assert rows(thickness=-2) == []
    assert rows(invert=True) == [*range(30), *range(33, SIDE)]
    assert rows(invert=True, thickness=1) == [*range(31), *range(32, SIDE)]
    faint = square(0.4, 0.6)
    assert scribbles(faint, SOBEL, 0.05).max() < 0.3
    assert scribbles(faint, SOBEL, 0.05, normalize=True).max() == 1


def test_sobel_is_as_light_as_an_edge_is_sharp() -> None:
    by_step = [float(scribbles(square(0.5 - step / 2, 0.5 + step / 2), SOBEL, 0.05).max()) for step in (0.25, 0.5, 1.0)]
    assert by_step == pytest.approx([0.25, 0.5, 1.0], abs=0.05)
