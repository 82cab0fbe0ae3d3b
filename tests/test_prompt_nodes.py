"""Prompt Travel and the curves as graphs, on the host's executor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffdirector.motion.curve_picture import LETTERS, ROWS, curve_picture, shortened, travel_picture, value_ticks
from diffdirector.motion.curves import parse_curve
from diffdirector.motion.travel import plan_travel
from diffdirector.tests.host.prompts import animation, node

PROMPT = "a red ball rolling to the left"  # of animation()


def saved(base: Path, file: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(base / file["type"] / file["subfolder"] / file["filename"]))


def frames(executor, base: Path, prompt: dict) -> np.ndarray:
    return np.stack([saved(base, file) for file in executor.run(prompt)["save"]["images"]])


def travelling(prompts: str, frames: int = 8, **changes: Any) -> dict:
    prompt = animation(frames=frames, steps=1)
    prompt["positive"] = node(
        "DiffDirectorPromptTravel", clip=["checkpoint", 1], prompts=prompts, frames=frames, **changes
    )
    return prompt


@pytest.mark.slow
def test_equal_prompts_give_the_pictures_of_clip_text_encode(executor, base) -> None:
    expected = frames(executor, base, animation(steps=1))
    assert (frames(executor, base, travelling(f"0: {PROMPT}\n-1: {PROMPT}")) == expected).all()
    around = travelling("50%: ball rolling", prefix="a red", suffix="to the left", interpolation="slerp")
    assert (frames(executor, base, around) == expected).all()
    changed = frames(executor, base, travelling(f"0: {PROMPT}\n-1: (a green triangle:1.4)"))
    assert np.abs(changed.astype(int) - expected).mean() > 1


@pytest.mark.slow
def test_travel_through_context_windows(executor, base) -> None:
    prompt = travelling("0: a red ball\n8-10: a blue ball\n100%: a green ball", frames=20)
    prompt["windows"] = node("DiffDirectorContextWindows", model=["apply", 0], context_length=16, overlap=4)
    prompt["sample"]["inputs"]["model"] = ["windows", 0]
    prompt["plan"] = node("SaveImage", images=["positive", 1], filename_prefix="travel")
    results = executor.run(prompt)
    assert len(results["save"]["images"]) == 20
    drawn = saved(base, results["plan"]["images"][0])
    expected = travel_picture(plan_travel(prompt["positive"]["inputs"]["prompts"], 20))
    assert np.abs(drawn / 255 - expected.numpy()).max() < 0.01
    assert (drawn == saved(base, results["positive"]["images"][0])).all()  # it is shown on the node


def test_mistakes_are_told_before_sampling(executor) -> None:
    with pytest.raises(RuntimeError, match=r"Line 2, column 1: expected a frame of the clip \(0 to 7, .*found \"8\""):
        executor.run(travelling("0: a\n8: b"))


def test_curves_and_lists_of_numbers(executor, base) -> None:
    values = [0.0, 0.25, 0.5, 0.75, 1.0]
    prompt = {
        "curve": node("DiffDirectorCurve", curve="0: 0\n-1: 1 # end", interpolation="linear", frames=5),
        "each": node("PreviewAny", source=["curve", 1]),
        "all": node("PreviewAny", source=["curve", 2]),
        "schedule": node(
            "CreateHookKeyframesFromFloats", floats_strength=["curve", 2], start_percent=0.0, end_percent=1.0, print_keyframes=False
        ),
        "kept": node("PreviewAny", source=["schedule", 0]),
        "again": node("DiffDirectorCurveFromList", values=["curve", 1]),
        "back": node("PreviewAny", source=["again", 2]),
        "once": node("DiffDirectorCurveFromList", values=["curve", 2], frames=7, interpolation="ease"),
        "longer": node("PreviewAny", source=["once", 2]),
        "text": node("PrimitiveString", value="1, 0.5"),
        "read": node("DiffDirectorCurveFromList", values=["text", 0]),
        "short": node("PreviewAny", source=["read", 2]),
    }  # fmt: skip
    results = executor.run(prompt)
    assert [float(text) for text in results["each"]["text"]] == values
    assert json.loads(results["all"]["text"][0]) == json.loads(results["back"]["text"][0]) == values
    assert json.loads(results["longer"]["text"][0]) == [*values, 1.0, 1.0]
    assert json.loads(results["short"]["text"][0]) == [1.0, 0.5]
    assert "HookKeyframeGroup" in results["kept"]["text"][0]
    drawn = [saved(base, results[name]["images"][0]) for name in ("curve", "again")]
    assert (drawn[0] == drawn[1]).all()
    expected = curve_picture(parse_curve("0: 0\n4: 1"), 5).numpy()
    assert np.abs(drawn[0] / 255 - expected).max() < 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [("0: 1, 4: 2", "expected numbers .*found keyframes"), ("[]", "expected a number"), ("a", 'found "a"')],
)
def test_what_is_no_list_of_numbers_is_refused(executor, text: str, message: str) -> None:
    prompt = {
        "text": node("PrimitiveString", value=text),
        "read": node("DiffDirectorCurveFromList", values=["text", 0]),
    }
    with pytest.raises(RuntimeError, match=message):
        executor.run(prompt)


def test_numbers_of_other_packs_are_taken_as_they_come() -> None:
    import torch

    from diffdirector.nodes.curves import numbers

    mixed = [1, [0.5, 2], torch.tensor([3.0, 4.0]), np.float32(0.25), torch.tensor(5.0), ["6", "7, 8"]]
    assert list(numbers(mixed)) == [1, 0.5, 2, 3, 4, 0.25, 5, 6, 7, 8]
    with pytest.raises(ValueError, match="expected a number for each frame, found a NoneType"):
        list(numbers([None]))


def brightness(picture: np.ndarray, x: float, y: float) -> float:
    return float(picture[round(y), round(x)].sum())


def test_the_pictures_show_what_they_say() -> None:
    """Bars up to the value: seen above it and below it; prompts the brighter the more they count."""
    drawn = curve_picture(parse_curve("1, 0.5, 0.25, 0"), 4).numpy()
    height, width, _ = drawn.shape
    column, bottom, top = (width - 88) / 4, height - 44, 20
    for frame, value in ((1, 0.5), (2, 0.25)):
        x, y = 64 + (frame + 0.2) * column, bottom + (top - bottom) * value
        assert brightness(drawn, x, (y + bottom) / 2 + 3) > brightness(drawn, x, y - 12) + 0.2
    drawn = travel_picture(plan_travel("0: a\n4: b", 5)).numpy()
    column = (drawn.shape[1] - 48) / 5
    rows = [
        [brightness(drawn, 24 + (frame + 0.5) * column, 10 + 44 * row + 30) for frame in range(5)] for row in (0, 1)
    ]
    assert rows[0] == sorted(rows[0], reverse=True) == rows[1][::-1] and len(set(rows[0])) == 5


@pytest.mark.parametrize(("text", "frames"), [("3", 1), ("0", 4), ("-2, 5", 2000), ("0.001, -1e5", 3), ("-1", 16)])
def test_every_curve_can_be_drawn(text: str, frames: int) -> None:
    drawn = curve_picture(parse_curve(text), frames)
    assert drawn.shape == (288, 640, 3) and 0 <= float(drawn.min()) < float(drawn.max()) <= 1


def test_ticks_are_round_and_span_the_values() -> None:
    assert value_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert value_ticks(-0.5, 1.2) == pytest.approx([-0.5, 0, 0.5, 1, 1.5])
    assert value_ticks(0, 0)[-1] == pytest.approx(1)
    assert value_ticks(-30, -7) == pytest.approx([-30, -20, -10, 0])


def test_many_and_long_prompts_are_drawn_short() -> None:
    lines = shortened(["the same words, " * 10 + end for end in ("here", "there")])
    assert lines == ["...here", "...there"]
    assert len(shortened(["word " * 99])[0]) == LETTERS
    many = "\n".join(f"{frame}: prompt {frame}" for frame in range(ROWS + 5))
    fewer = "\n".join(f"{frame}: prompt {frame}" for frame in range(ROWS))
    assert travel_picture(plan_travel(many, 60)).shape[0] == travel_picture(plan_travel(fewer, 60)).shape[0] + 22
