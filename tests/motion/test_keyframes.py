"""The text syntax of keyframes, and what is between them: against plain Python, JSON and numpy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffdirector.motion.curves import EASE, LINEAR, SLERP, STEP, Curve, parse_curve
from diffdirector.motion.keyframe_text import parse_numbers, parse_prompts
from diffdirector.motion.travel import plan_travel

FRAMES = 17


def at_keyframes(text: str, frames: int = FRAMES) -> dict[int, str]:
    """The prompts that frames see alone, where they change at once."""
    travel = plan_travel(text, frames, interpolation=STEP)
    seen = [travel.prompts[first] for first, _, _ in travel.frames]
    return {frame: prompt for frame, prompt in enumerate(seen) if frame == 0 or prompt != seen[frame - 1]}


@pytest.mark.parametrize(
    "text",
    [
        '0: "a, b"\n8: "c"\n-1: "d"',
        "0: a, b\n8: c\n-1: d",
        '0 = "a, b"\n8 = "c"\n16 = "d"',
        "  0 :a, b\n\n\n\t8:c # half\n// behind it\n-1:   d   // the end",
        '"0": "a, b", "8": "c", "-1": "d"',
        '{"0": "a, b", "8": "c", "16": "d"}',
        '{\n  "0": "a, b",\n  "50%": "c", // half\n  "100%": "d",\n}\n# end',
        '0%: "a, b" # "x"\r\n50%: c\r\n100 %: "d"\r\n',
        "16: d\n8-15: c\n0-7: a, b",
        "-1: d\n-9 - -2: c\n0: a, b",
        json.dumps(["a, b"] * 8 + ["c"] * 8 + ["d"]),
        json.dumps(["a, b"] * 8 + ["c"] * 8 + ["d"], indent=1),
    ],
)
def test_one_travel_in_many_ways(text: str) -> None:
    assert at_keyframes(text) == {0: "a, b", 8: "c", 16: "d"}


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("0: (a:1.2), embedding:b, c=d", "(a:1.2), embedding:b, c=d"),
        ("0: see http://a.b/#c", "see http://a.b/#c"),
        ('0: "a # b // c" # d', "a # b // c"),
        (r'0: "say \"a\", then \\ and \(b\) \n"', 'say "a", then \\ and \\(b\\)'),
        (r"0: \(a\), \n", r"\(a\), \n"),
        ('0: "a,\n\n b"', "a,\n\n b"),
        (r'"0": "\u00e9\ud83d\ude00"', "é\N{GRINNING FACE}"),
        ('0: "a\r\nb"', "a\nb"),
        ('0: a "b" c', 'a "b" c'),
        ('0: ""', ""),
        ("0: photo, 16:9", "photo, 16:9"),
        ('tail: c\n0: b\nhead: "a,"', "a, b c"),
        ('{"head": "a,", "0": "", "tail": "c"}', "a, c"),
    ],
)
def test_prompts_are_what_is_written(text: str, prompt: str) -> None:
    assert plan_travel(text, 1).prompts == (prompt,)


def test_prefix_and_suffix_are_around_head_and_tail() -> None:
    assert plan_travel("head: h\n0: a\ntail: t", 1, " p ", "s\n").prompts == ("p h a t s",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'Line 1, column 1: expected a frame and its prompt, such as 0: a forest, found none.'),
        ("# only this", 'Line 1, column 1: expected a frame and its prompt, such as 0: a forest, found none.'),
        ("a forest", 'Line 1, column 1: expected a frame (0, -1, 50% or 8-15), a colon and a prompt, found "a forest".'),
        ("0: a\n  12", 'Line 2, column 3: expected a frame (0, -1, 50% or 8-15), a colon and a prompt, found "12".'),
        ("0: a\nmiddle: b", 'Line 2, column 1: expected a frame (0, -1, 50% or 8-15), head or tail, found "middle".'),
        ("0: a\n8:  # b", 'Line 2, column 5: expected a prompt ("" for an empty one), found "# b".'),
        ("0:", 'Line 1, column 3: expected a prompt ("" for an empty one), found the end of the text.'),
        ('0: a\n8: "b\n\n', 'Line 2, column 4: expected closing quotes to these (quotes inside of a text are written \\"), found none.'),
        ('0: "a" b', 'Line 1, column 8: expected a comma or a new line, found "b".'),
        ('{"0": "a"\n, "8": b}', 'Line 2, column 8: expected a prompt in quotes, found "b}".'),
        ('{"0": "a"', 'Line 1, column 10: expected a comma or a new line or "}", found the end of the text.'),
        ('{"0": "a",\n', 'Line 2, column 1: expected a frame (0, -1, 50% or 8-15), a colon and a prompt, found the end of the text.'),
        ('{"0": "a"}, "8": "b"', 'Line 1, column 11: expected the end of the text, found ", "8": "b"".'),
        ('"0": "a",, "8": "b"', 'Line 1, column 10: expected a frame (0, -1, 50% or 8-15), a colon and a prompt, found ", "8": "b"".'),
        ("0: a, 8: b", 'Line 1, column 6: expected a prompt alone in its line, or in quotes, found "8: b".'),
        ('0: a, "8": "b"', 'Line 1, column 6: expected a prompt alone in its line, or in quotes, found ""8": "b"".'),
        ("0.5: a", 'Line 1, column 1: expected a whole frame, or a part of the clip as a percentage (50%), found "0.5".'),
        ("101%: a", 'Line 1, column 1: expected 0% to 100%, found "101%".'),
        ("0: a\n17: b", 'Line 2, column 1: expected a frame of the clip (0 to 16, or -1 for the last), found "17".'),
        ("0: a\n-18: b", 'Line 2, column 1: expected a frame of the clip (0 to 16, or -1 for the last), found "-18".'),
        ("0: a\n15-8: b", 'Line 2, column 1: expected a range that runs forwards, found "15-8".'),
        ("8: a\n0: b\n50%: c", 'Line 3, column 1: expected every frame once (line 1 has "8"), found "50%".'),
        ("4-8: a\n\n6: b", 'Line 3, column 1: expected every frame once (line 1 has "4-8"), found "6".'),
        ("0: b\n4-8: a\n2-4: b", 'Line 3, column 1: expected every frame once (line 2 has "4-8"), found "2-4".'),
        ("head: a\n0: b\nhead: c", "Line 3, column 1: expected head once, found it again."),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plan_travel(text, FRAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Line 1, column 1: expected a number, or a frame and its number, such as 0: 1, found none."),
        ("much", 'Line 1, column 1: expected a number, found "much".'),
        ("0: 1\n8: much", 'Line 2, column 4: expected a number, found "much".'),
        ("0: 1, 8:", "Line 1, column 9: expected a number, found nothing."),
        ("1,, 2", "Line 1, column 3: expected a number, found nothing."),
        ("0: 1 8: 2", 'Line 1, column 4: expected a number, found "1 8: 2".'),
        ("[1, nan]", 'Line 1, column 5: expected a number, found "nan".'),
        ("1e400", 'Line 1, column 1: expected a number, found "1e400".'),
        ("0: 1\nhead: 2", 'Line 2, column 1: expected a frame (0, -1, 50% or 8-15), found "head".'),
    ],
)
def test_mistakes_in_numbers_are_named_too(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_curve(text).over_frames(FRAMES)


def refusal(parse: Callable[[str], object], text: str) -> str:
    try:
        parse(text)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.slow
@given(st.text() | st.text('0189-%:=,"\\[]{}#/ab \n.'))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_prompts, parse_numbers):
        assert re.match(r"Line \d+, column \d+: expected .*, found .*\.$|$", refusal(parse, text), re.DOTALL)


@given(st.dictionaries(st.integers(0, 99), st.text(), min_size=1), st.booleans(), st.sampled_from([None, 2]))
def test_json_is_read_as_json_is(prompts: dict[int, str], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps({str(frame): prompt for frame, prompt in prompts.items()}, ensure_ascii=ascii_only, indent=indent)
    for variant in (text, text[1:-1]):
        assert {int(one.name): one.value for one in parse_prompts(variant).keyframes} == prompts


NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
KEYFRAMES = st.dictionaries(st.integers(0, 40), NUMBERS, min_size=1, max_size=9)


@given(KEYFRAMES)
def test_linear_is_numpys_and_ease_and_step_have_their_forms(values: dict[int, float]) -> None:
    text = ", ".join(f"{frame}: {value!r}" for frame, value in values.items())
    frames, ordered = np.arange(41), sorted(values.items())
    places, heights = (np.array(column, dtype=float) for column in zip(*ordered, strict=True))
    assert np.allclose(parse_curve(text).over_frames(41), np.interp(frames, places, heights), rtol=1e-9, atol=1e-9)
    held = np.clip(np.searchsorted(places, frames, side="right") - 1, 0, None)
    assert parse_curve(text, STEP).over_frames(41) == list(heights[held])
    time = np.interp(frames, places, np.arange(len(places)))  # in keyframes
    eased = np.floor(time) + np.sin(np.pi / 2 * (time % 1)) ** 2
    expected = np.interp(eased, np.arange(len(places)), heights)
    assert np.allclose(parse_curve(text, EASE).over_frames(41), expected, rtol=1e-9, atol=1e-6)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_lists_of_numbers_are_read(numbers: list[float]) -> None:
    bare = ", ".join(map(repr, numbers))
    for text in (bare, json.dumps(numbers), json.dumps(numbers, indent=1), "\n".join(map(repr, numbers)) + " # end"):
        assert parse_curve(text) == Curve(values=tuple(numbers))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.8", [0.8, 0.8, 0.8, 0.8, 0.8]),
        ("1, 0.5 // two", [1, 0.5, 0.5, 0.5, 0.5]),
        ("1,2,3,4,5,6,7", [1, 2, 3, 4, 5]),
        ("0: 1, 4: 3", [1, 1.5, 2, 2.5, 3]),
        ('"0":(1.0), "4":(3.0)', [1, 1.5, 2, 2.5, 3]),
        ("0%: -1\n50%-75%: 1e0\n100%: .5", [-1, 0, 1, 1, 0.5]),
        ("2: +4", [4, 4, 4, 4, 4]),
        ("0-2: 1, 4: 3", [1, 1, 1, 2, 3]),
        ("-2: 1, 1: 0", [0, 0, 0.5, 1, 1]),
    ],
)
def test_values_over_frames(text: str, expected: list[float]) -> None:
    assert parse_curve(text).over_frames(5) == expected


def test_a_percentage_may_lie_between_two_frames() -> None:
    assert parse_curve("0%: 0, 50%: 1, 100%: 0").over_frames(4) == pytest.approx([0, 2 / 3, 2 / 3, 0])
    assert parse_curve("0%: 0, 50%: 1", STEP).over_frames(4) == [0, 0, 1, 1]
    assert parse_curve("7: 1, 0%: 0", STEP).over_frames(101) == parse_curve("7%: 1, 0: 0", STEP).over_frames(101)


def test_values_over_sampling_steps() -> None:
    curve = parse_curve("25%: 0\n50%-75%: 1")
    assert [curve.at(place / 8) for place in range(9)] == [0, 0, 0, 0.5, 1, 1, 1, 1, 1]
    assert [parse_curve("1, 2, 4").at(place) for place in (0, 0.25, 0.5, 0.75, 1)] == [1, 1.5, 2, 3, 4]
    assert [parse_curve("1, 0.5, 0", STEP).at(place) for place in (0, 0.3, 0.4, 0.7, 1)] == [1, 1, 0.5, 0, 0]
    assert parse_curve("0.7").at(0.3) == 0.7
    assert parse_curve("0%: 0, 100%: 1", EASE).at(0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    with pytest.raises(ValueError, match=r'Line 2, column 1: expected a percentage \(50%\).*found "8"'):
        parse_curve("0%: 1\n8: 2").at(0.5)
    with pytest.raises(ValueError, match="every frame once"):
        parse_curve("10%: 1\n5%-20%: 2").at(0.5)


def test_curves_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ValueError, match="interpolation: expected linear or ease or step, found slerp"):
        Curve(values=(1.0,), interpolation=SLERP)
    with pytest.raises(ValueError, match="keyframes or values"):
        Curve()
    with pytest.raises(ValueError, match="infinite"):
        Curve(values=(1.0, math.nan))
    with pytest.raises(ValueError, match="interpolation: expected linear or slerp or ease or step, found cubic"):
        plan_travel("0: a", 4, interpolation="cubic")


def test_frames_between_keyframes_see_both_prompts_and_none_twice() -> None:
    travel = plan_travel("0: a\n4: b\n8: a\n12-13: a", 16, interpolation=LINEAR)
    assert travel.prompts == ("a", "b")
    assert travel.frames == (
        (0, 0, 0.0), (0, 1, 0.25), (0, 1, 0.5), (0, 1, 0.75), (1, 1, 0.0), (1, 0, 0.25), (1, 0, 0.5), (1, 0, 0.75),
        *[(0, 0, 0.0)] * 8,
    )  # fmt: skip
