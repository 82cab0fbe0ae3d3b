"""What the user sees of a training while it runs, in its node: losses, speed, time left, memory and the last sample."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context
from server import PromptServer
from torch import Tensor

from ..trainers.loop import StepReport

EVENT = "diffdirector.training"
OUTPUT = "diffdirector_training"
MOST_POINTS = 300
SECONDS_BETWEEN_MESSAGES = 1 / 3
SECONDS_OF_RATE = 20.0


class Curve:
    """A loss over any number of steps in few points: each is the mean of equally many steps, more the longer it gets."""

    def __init__(self) -> None:
        self.width = 1
        self._buckets = list[tuple[int, int, float]]()  # values, sum of their steps, their sum

    def add(self, step: int, value: float) -> None:
        self._put(step, (1, step, value))
        while len(self._buckets) > MOST_POINTS:
            self.width *= 2
            buckets, self._buckets = self._buckets, []
            for bucket in buckets:
                self._put(bucket[1] // bucket[0], bucket)

    def points(self) -> list[list[float]]:
        """[step, value] of each point, both rounded to what can be seen."""
        return [[round(steps / count, 1), float(f"{total / count:.5g}")] for count, steps, total in self._buckets]

    def _put(self, step: int, bucket: tuple[int, int, float]) -> None:
        if self._buckets:
            count, steps, total = self._buckets[-1]
            if steps // count // self.width == step // self.width:
                self._buckets[-1] = (count + bucket[0], steps + bucket[1], total + bucket[2])
                return
        self._buckets.append(bucket)


class LiveTraining:
    """Shows one run in its node, web/training.js, in the tab that started it, and in the host's progress bar.

    Every message holds all there is to show, so that a page opened halfway shows it as well. hidden: the node's; without an
    id in it, or without a server, nothing is sent. clock: seconds that only grow.
    """

    def __init__(self, hidden: Any, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.node_id, self.steps, self._clock = hidden.unique_id, steps, clock
        context = get_executing_context()
        self._prompt = None if context is None else context.prompt_id
        self._workflow = (hidden.extra_pnginfo or {}).get("workflow", {}).get("id")
        self._bar = ProgressBar(steps)
        self._phase, self._step, self._first = "", 0, 0
        self._curves: dict[str, Curve] = {}
        self._sample: dict[str, Any] | None = None
        self._times = deque[tuple[float, int]]()
        self._idle = 0.0  # seconds between steps that trained nothing
        self._sent = -math.inf
        self._memory = 0
        if _on_cuda():
            torch.cuda.reset_peak_memory_stats(model_management.get_torch_device())

    def phase(self, text: str) -> None:
        """What is being done while no steps are."""
        self._pause()
        self._phase = text
        self._send()

    def earlier(self, losses: Sequence[Mapping[str, float]]) -> None:
        """Losses of the steps that an earlier run took, from its first on."""
        for step, values in enumerate(losses, 1):
            self._add(step, values)

    def step(self, report: StepReport) -> None:
        """After each step. Raises the host's interruption when the user cancels."""
        self._phase, self._step = "", report.step
        self._add(report.step, report.losses)
        if report.validation is not None:
            self._add(report.step, {"validation": report.validation})
        now = self._working_time()
        self._first = self._first or report.step
        self._times.append((now, report.step))
        while len(self._times) > 2 and now - self._times[0][0] > SECONDS_OF_RATE:
            self._times.popleft()
        last = report.step >= self.steps
        if last or model_management.processing_interrupted() or self._clock() - self._sent >= SECONDS_BETWEEN_MESSAGES:
            self._send()
        # the progress bar looks for it too, but only every half percent
        model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(report.step)

    def sample(self, images: Tensor, step: int, prompt: str, frame_rate: float = 8) -> None:
        """Show a clip, [frames, height, width, 3] in 0..1, that was made after this step."""
        saved = ui.ImageSaveHelper.save_animated_webp(
            images.detach().float(), "DiffDirector/sample", io.FolderType.temp, None, frame_rate, False, 85, 4
        )
        self._sample = {**saved, "step": step, "prompt": prompt}
        self._pause()
        self._phase = ""
        self._send()

    def ui(self) -> dict[str, list[str]]:
        """For io.NodeOutput: the end of the run, which the host keeps in its history."""
        self._phase = "finished" if self._step else "nothing left to train: an earlier run of this name took all steps"
        # as text, because the host counts every dict as one more file that came out
        return {OUTPUT: [json.dumps(self.state())]}

    def state(self) -> dict[str, Any]:
        """All there is to show."""
        rate = self._rate()
        done, remaining = max(1, self._step - self._first), self.steps - self._step
        self._memory = max(self._memory, _memory_in_use())
        return {
            "node": self.node_id,
            "prompt": self._prompt,
            "workflow": self._workflow,
            "phase": self._phase,
            "step": self._step,
            "steps": self.steps,
            "series": {name: curve.points() for name, curve in self._curves.items()},
            "rate": rate,
            "left": None if rate is None else remaining * (1 / rate + self._idle / done),
            "memory": self._memory,
            "sample": self._sample,
        }

    def _add(self, step: int, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            if math.isfinite(value):
                self._curves.setdefault(name, Curve()).add(step, value)

    def _rate(self) -> float | None:
        """Steps per second of late."""
        if len(self._times) < 2:
            return None
        (start, first), (end, last) = self._times[0], self._times[-1]
        return (last - first) / max(end - start, 1e-6)

    def _working_time(self) -> float:
        return self._clock() - self._idle

    def _pause(self) -> None:
        if self._times:
            self._idle += self._working_time() - self._times[-1][0]

    def _send(self) -> None:
        self._sent = self._clock()
        server = getattr(PromptServer, "instance", None)
        if self.node_id is not None and server is not None:
            server.send_sync(EVENT, self.state(), server.client_id)


def _on_cuda() -> bool:
    return model_management.get_torch_device().type == "cuda"


def _memory_in_use() -> int:
    """Bytes: the most the GPU held, or what the process holds where it works on the CPU."""
    if _on_cuda():
        return torch.cuda.max_memory_allocated(model_management.get_torch_device())
    return psutil.Process().memory_info().rss
