"""What a training node sends to the page while it runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comfy import model_management
from comfy_execution.utils import CurrentNodeContext
from PIL import Image, ImageSequence
from server import PromptServer

from diffdirector.nodes.live import EVENT, MOST_POINTS, OUTPUT, Curve, LiveTraining
from diffdirector.trainers.loop import StepReport


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sent(monkeypatch) -> list[dict]:
    """The messages, as a page gets them."""
    messages: list[dict] = []

    def send_sync(event: str, data: dict, client: str) -> None:
        assert (event, client) == (EVENT, "tab")
        messages.append(json.loads(json.dumps(data, allow_nan=False)))

    server = SimpleNamespace(client_id="tab", send_sync=send_sync)
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    return messages


def hidden(node_id: str | None, workflow: str | None = "a workflow") -> SimpleNamespace:
    """A node's hidden inputs."""
    return SimpleNamespace(unique_id=node_id, extra_pnginfo=workflow and {"workflow": {"id": workflow}})


def report(step: int, **losses: float) -> StepReport:
    return StepReport(step, losses or {"loss": 1.0}, 1e-4, 1.0)


@pytest.mark.parametrize("steps", [1, 300, 301, 12345])
def test_a_curve_of_any_length_keeps_its_shape_in_few_points(steps) -> None:
    curve = Curve()
    for step in range(1, steps + 1):
        curve.add(step, math.exp(-step / steps))
    points = curve.points()
    assert min(steps, MOST_POINTS // 2) <= len(points) <= MOST_POINTS
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    for step, value in points:
        assert value == pytest.approx(math.exp(-step / steps), rel=1e-3)


def test_points_of_a_loss_that_comes_now_and_then_lie_at_its_steps() -> None:
    curve = Curve()
    for step in range(500, 600, 7):
        curve.add(step, step)
    assert curve.points() == [[step, step] for step in range(500, 600, 7)]


def test_messages_come_three_times_a_second_and_at_the_last_step(sent, clock) -> None:
    live = LiveTraining(hidden("12:3"), 100, clock)
    for step in range(1, 101):
        clock.now += 0.01
        live.step(report(step, spatial=0.5, temporal=1.0))
    assert len(sent) == 4  # in 0.99 seconds, and the last
    last = sent[-1]
    assert (last["node"], last["step"], last["steps"], last["left"]) == ("12:3", 100, 100, 0)
    assert last["rate"] == pytest.approx(100)
    assert last["memory"] > 1e8
    assert {name: len(points) for name, points in last["series"].items()} == {"spatial": 100, "temporal": 100}


def test_time_left_counts_the_samples_but_the_speed_does_not(sent, clock, base) -> None:
    live = LiveTraining(hidden("1"), 101, clock)
    for step in range(1, 52):
        clock.now += 2
        live.step(report(step))
        if step in (25, 50):
            live.phase("sampling")
            clock.now += 100
            live.sample(torch.zeros(2, 8, 8, 3), step, "a ball")
    assert sent[-1]["rate"] == pytest.approx(0.5)
    assert sent[-1]["left"] == pytest.approx(50 * (2 + 200 / 50))
    assert [message["phase"] for message in sent if message["sample"] is None][-1] == "sampling"
    assert sent[-1]["phase"] == ""


def test_a_resumed_run_shows_the_losses_of_the_earlier_one(sent, clock) -> None:
    live = LiveTraining(hidden("1"), 3, clock)
    live.earlier([{"loss": 3.0}, {"loss": 2.0, "validation": 2.5}])
    live.step(report(3, loss=1.0))
    assert sent[-1]["series"] == {"loss": [[1, 3.0], [2, 2.0], [3, 1.0]], "validation": [[2, 2.5]]}


def test_messages_say_whose_they_are(sent, clock) -> None:
    with CurrentNodeContext("a run", "1", 0):
        LiveTraining(hidden("1"), 2, clock).step(report(1))
    assert [sent[-1][key] for key in ("prompt", "workflow", "node")] == ["a run", "a workflow", "1"]
    LiveTraining(hidden("1", workflow=None), 2, clock).step(report(1))  # of a script
    assert [sent[-1][key] for key in ("prompt", "workflow", "node")] == [None, None, "1"]


def test_losses_that_are_no_numbers_are_left_out(sent, clock) -> None:
    live = LiveTraining(hidden("1"), 2, clock)
    live.step(replace(report(1, loss=math.nan), validation=math.inf))
    live.step(replace(report(2, loss=0.25), validation=0.5))
    assert sent[-1]["series"] == {"loss": [[2, 0.25]], "validation": [[2, 0.5]]}


def test_a_sample_is_a_clip_that_loops_at_its_frame_rate(sent, base) -> None:
    import folder_paths

    images = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 16, 24, 3).requires_grad_()
    live = LiveTraining(hidden("1"), 10)
    live.sample(images, 4, "a ball", frame_rate=10)
    shown = sent[-1]["sample"]
    assert (shown["type"], shown["step"], shown["prompt"]) == ("temp", 4, "a ball")
    clip = Image.open(Path(folder_paths.get_temp_directory()) / shown["subfolder"] / shown["filename"])
    frames = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(clip)]
    assert clip.info["loop"] == 0
    assert [duration for _, duration in frames] == [100] * 5
    assert np.stack([pixels for pixels, _ in frames]).shape == (5, 16, 24, 3)
    assert [pixels.mean() for pixels, _ in frames] == pytest.approx([0, 64, 128, 191, 255], abs=3)


def test_cancel_is_looked_for_at_every_step_and_shows_where_it_was(sent, clock) -> None:
    live = LiveTraining(hidden("1"), 1_000_000, clock)
    live.step(report(1))
    model_management.interrupt_current_processing()
    with pytest.raises(model_management.InterruptProcessingException):
        live.step(report(2))
    assert sent[-1]["step"] == 2


def test_the_end_goes_to_the_hosts_history(sent, clock) -> None:
    live = LiveTraining(hidden("1"), 1, clock)
    live.step(report(1))
    (kept,) = live.ui()[OUTPUT]
    assert json.loads(kept) == sent[-1] | {"phase": "finished", "memory": json.loads(kept)["memory"]}
    (nothing,) = LiveTraining(hidden("1"), 1, clock).ui()[OUTPUT]
    assert json.loads(nothing)["phase"].startswith("nothing left to train")


def test_without_a_node_or_a_server_nothing_is_sent(sent, monkeypatch) -> None:
    LiveTraining(hidden(None), 1).step(report(1))
    monkeypatch.delattr(PromptServer, "instance")
    LiveTraining(hidden("1"), 1).step(report(1))
    assert sent == []
