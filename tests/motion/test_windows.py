"""Every plan that the settings allow: all frames, at every step, with weights that sum to 1."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdirector.motion.windows import (
    BATCHED,
    FUSES,
    LOOPED,
    SCHEDULES,
    STATIC,
    UNIFORM,
    Windows,
    plan,
    together,
    van_der_corput,
)


@st.composite
def windows(draw: st.DrawFn, schedules: list[str] = SCHEDULES, closed: bool | None = None) -> Windows:
    length = draw(st.integers(1, 40))
    return Windows(
        length, draw(st.integers(0, length - 1)), draw(st.integers(1, 4)), draw(st.sampled_from(schedules)),
        draw(st.sampled_from(FUSES)), draw(st.booleans()) if closed is None else closed,
    )  # fmt: skip


FRAMES, STEPS = st.integers(1, 300), st.integers(0, 60)


@settings(max_examples=600, deadline=None)
@given(windows(), FRAMES, STEPS)
def test_every_frame_is_covered_and_its_weights_sum_to_one(chosen: Windows, frames: int, step: int) -> None:
    found = plan(chosen, frames, step)
    totals = [0.0] * frames
    for window, weights in zip(found.windows, found.weights, strict=True):
        assert len(window) == len(weights) == min(chosen.length, frames)
        assert len(set(window)) == len(window) and all(0 <= frame < frames for frame in window)
        assert min(weights) > 0
        for frame, weight in zip(window, weights, strict=True):
            totals[frame] += weight
    assert totals == pytest.approx([1.0] * frames)
    assert len(set(found.windows)) == len(found.windows)


@settings(max_examples=300, deadline=None)
@given(windows([STATIC, UNIFORM, BATCHED]), FRAMES, STEPS)
def test_time_runs_forward_in_windows_that_do_not_loop(chosen: Windows, frames: int, step: int) -> None:
    for window in plan(chosen, frames, step).windows:
        skips = {after - before for before, after in zip(window, window[1:], strict=False)}
        assert len(skips) <= 1 and all(skip > 0 and skip & (skip - 1) == 0 for skip in skips)


@settings(max_examples=300, deadline=None)
@given(windows([STATIC, UNIFORM, LOOPED]), FRAMES, STEPS)
def test_neighbours_share_the_overlap(chosen: Windows, frames: int, step: int) -> None:
    every = [set(window) for window in plan(chosen, frames, step).windows]
    contiguous = [window for window in every if _is_run(window, frames)]
    last = frames if chosen.loops else frames - 1
    first = 0 if chosen.schedule != LOOPED or chosen.closed_loop or frames <= chosen.length else None
    if chosen.overlap and first is not None and frames > 1 and chosen.length > 1:
        for frame in range(first, last):
            assert any({frame, (frame + 1) % frames} <= window for window in contiguous)


def _is_run(window: set[int], frames: int) -> bool:
    return sum((frame + 1) % frames not in window for frame in window) <= 1


@settings(max_examples=200, deadline=None)
@given(windows([LOOPED], closed=True), st.integers(2, 300))
def test_a_closed_loop_closes(chosen: Windows, frames: int) -> None:
    """The last frame comes right before the first in some window of some early step."""
    seams = [
        (frames - 1, 0) in zip(window, window[1:], strict=False)
        for step in range(8)
        for window in plan(chosen, frames, step).windows
    ]
    assert any(seams) or chosen.length == 1 or (chosen.overlap == 0 and frames > chosen.length)


def test_static_windows_are_the_same_at_every_step_and_uniform_ones_move() -> None:
    for schedule, moves in ((STATIC, False), (BATCHED, False), (UNIFORM, True), (LOOPED, True)):
        plans = {plan(Windows(schedule=schedule), 64, step) for step in range(4)}
        assert len(plans) == (4 if moves else 1), schedule


def test_the_plans_of_40_frames() -> None:
    starts = [window[0] for window in plan(Windows(), 40).windows]
    assert starts == [0, 12, 24]
    assert [window[0] for window in plan(Windows(schedule=BATCHED), 40).windows] == [0, 16, 24]
    loop = plan(Windows(schedule=LOOPED, closed_loop=True), 40).windows
    assert [(window[0], window[-1]) for window in loop] == [(0, 15), (12, 27), (24, 39), (36, 11)]
    skipping = plan(Windows(schedule=UNIFORM, stride=2), 40).windows
    assert {window[1] - window[0] for window in skipping} == {1, 2}


def test_a_clip_that_fits_needs_no_windows_unless_it_loops() -> None:
    assert not Windows().needed(16) and Windows().needed(17)
    loop = Windows(schedule=LOOPED, closed_loop=True)
    assert loop.needed(16) and not loop.needed(1)
    assert plan(loop, 16, step=1).windows == ((8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7),)
    assert not Windows(closed_loop=True).needed(16)  # only the looped schedule loops


@settings(max_examples=200, deadline=None)
@given(windows(), FRAMES, STEPS, st.integers(1, 6))
def test_windows_that_go_together_share_no_frame(chosen: Windows, frames: int, step: int, most: int) -> None:
    found = plan(chosen, frames, step).windows
    groups = together(found, most)
    assert sorted(window for group in groups for window in group) == sorted(found)
    for group in groups:
        assert len(group) <= most and len(set(sum(group, ()))) == sum(map(len, group))


def test_half_of_the_windows_that_overlap_go_together() -> None:
    assert len(together(plan(Windows(), 16 + 7 * 12).windows, 8)) == 2
    assert len(together(plan(Windows(schedule=BATCHED), 64).windows, 2)) == 2


def test_fuses() -> None:
    def weights(fuse: str) -> list[float]:
        found = plan(Windows(8, 4, fuse=fuse), 12)
        return [round(weight, 3) for weight in found.weights[0][4:]]  # what the first window says in the overlap

    assert weights("flat") == [0.5] * 4
    assert weights("pyramid") == [0.8, 0.6, 0.4, 0.2]
    assert weights("overlap-linear") == [0.8, 0.6, 0.4, 0.2]
    assert weights("relative") == [0.988, 0.666, 0.334, 0.012]
    assert weights("smooth") == pytest.approx([0.962, 0.691, 0.309, 0.038], abs=0.001)


def test_van_der_corput() -> None:
    assert [van_der_corput(number) for number in range(6)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "context_length: expected at least 1, found 0"),
        ({"overlap": 16}, r"overlap: expected less than context_length \(16\), found 16"),
        ({"stride": 0}, "stride: expected at least 1"),
        ({"schedule": "random"}, "schedule: expected standard_static or standard_uniform or .*, found random"),
        ({"fuse": "sum"}, "fuse: expected pyramid or flat or .*, found sum"),
    ],
)
def test_settings_that_no_plan_can_have_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Windows(**changes)
