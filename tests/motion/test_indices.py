"""Frames as text, and which picture is for which of them."""

from __future__ import annotations

import pytest

from diffdirector.motion.indices import parse_indices, spread


def frames_named(text: str, frames: int = 16) -> list[int]:
    return [place.frame for place in parse_indices(text).places(frames, 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", [0]),
        ("0, 8, -1", [0, 8, 15]),
        ("-16 15", [0, 15]),
        ("0%;50%\n100%", [0, 8, 15]),
        ("33.3%", [5]),
        ("4-7, 0", [4, 5, 6, 7, 0]),
        ("-3--1", [13, 14, 15]),
        ("0-100%/5", [0, 5, 10, 15]),
        ("8 - 9", None),
        ("first, Middle, last", [0, 8, 15]),
    ],
)
def test_frames(text: str, expected: list[int] | None) -> None:
    if expected is None:  # without commas, spaces separate entries
        with pytest.raises(ValueError, match="found '-'"):
            frames_named(text)
    else:
        assert frames_named(text) == expected


@pytest.mark.parametrize(
    ("text", "strengths"),
    [("0, -1", [1, 1]), ("0 = 0.5, -1", [0.5, 1]), ("0:.5\n4-5=2", [0.5, 2, 2]), ("0-8/8 = 0", [0, 0])],
)
def test_strengths(text: str, strengths: list[float]) -> None:
    assert [place.strength for place in parse_indices(text).places(16, 1)] == strengths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected frames such as 0, 8, -1.* or one of even, start, end, centre; found nothing"),
        (" , ", "found nothing"),
        ("0, firts", "found 'firts'"),
        ("0.5", "expected a whole frame.*found '0.5'"),
        ("16", r"expected a frame of the clip \(0 to 15, or -1 for the last\), found 16"),
        ("-17", "found -17"),
        ("120%", "expected 0% to 100%; found '120%'"),
        ("15 -1", "frame 15 is named twice"),
        ("0-4, 4", "frame 4 is named twice"),
        ("8-4", "range that runs forwards, found 8-4 in a clip of 16"),
        ("0-8/0", "number of frames after the stroke"),
        ("0-8/", "number of frames after the stroke"),
        ("0=x", "strength of 0 or more"),
        ("0=-1", "strength of 0 or more"),
        ("0=", "strength of 0 or more"),
        ("even, 3", "even gives all pictures their frames, so it stands alone"),
        ("=1", "found '=1'"),
    ],
)
def test_what_names_no_frame_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frames_named(text)


def test_which_picture_is_for_which_frame() -> None:
    def pictures(text: str, count: int) -> list[int]:
        return [place.picture for place in parse_indices(text).places(16, count)]

    assert pictures("8, 0", 2) == [0, 1]
    assert pictures("8, 0", 1) == [0, 0]
    assert pictures("8, 0", 16) == [8, 0]
    assert pictures("even", 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="expected 2, one for each of the frames 8, 0, or 1 .* or 16, .* found 3"):
        pictures("8, 0", 3)
    with pytest.raises(ValueError, match="expected at most 16, .* found 17"):
        pictures("start", 17)


@pytest.mark.parametrize(
    ("kind", "one", "two", "four"),
    [
        ("even", [0], [0, 15], [0, 5, 10, 15]),
        ("start", [0], [0, 8], [0, 4, 8, 12]),
        ("end", [15], [7, 15], [3, 7, 11, 15]),
        ("centre", [7], [3, 11], [1, 5, 9, 13]),
    ],
)
def test_spreads(kind: str, one: list[int], two: list[int], four: list[int]) -> None:
    assert [spread(kind, 16, count) for count in (1, 2, 4)] == [one, two, four]
    for pictures in range(1, 17):
        found = spread(kind, 16, pictures)
        assert found == sorted(set(found)) and len(found) == pictures and found[-1] < 16
