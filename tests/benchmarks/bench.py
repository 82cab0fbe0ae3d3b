"""`make bench`: one evaluation of full-size SD1.5 with a v2 motion model on seeded weights, four ways in one run.

plain      the checkpoint's UNet alone
ours       the same with Apply Motion Model
diffusers  UNetMotionModel over the same tensors, as published
floor      the bare matrix products of the motion model: the same shapes through torch.nn.functional.linear

The cost of our motion model is (ours - plain) / floor. Rounds are interleaved, so a machine whose speed drifts shifts
all four; quoted are medians, and in brackets the best round, which other work on the machine disturbed least. On a GPU:
64x64 latents in half precision, once per attention backend.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diffdirector.tests.host.inprocess import boot

FRAMES = 16
PAGE = Path(__file__).with_name("README.md")

Case = Callable[[], Any]


def main() -> None:
    arguments = _arguments()
    boot(["--use-pytorch-cross-attention"] + ([] if arguments.device == "cuda" else ["--cpu"]))
    import torch

    with torch.inference_mode():
        table = measure(arguments.device, arguments.sizes, arguments.rounds)
    page = f"""# Speed

{__doc__}
{machine(arguments.device)}, {FRAMES} frames, {arguments.rounds} rounds; `make bench` makes this page.

{table}"""
    print(table)
    PAGE.write_text(page)
    print(f"written to {PAGE}")


def measure(device: str, sizes: list[int], rounds: int) -> str:
    """The table for this page, as Markdown."""
    import torch

    from diffdirector.motion.formats import Version
    from diffdirector.motion.module import motion_model_from_state
    from diffdirector.motion.splice import apply_motion_model, options_for_direct_call
    from diffdirector.tests.host.evaluate import load
    from diffdirector.tests.host.oracle import diffusers_unet
    from diffdirector.tests.host.weights import load_unet, motion_config, motion_state, unet_config, unet_state

    dtype = torch.float16 if device == "cuda" else torch.float32
    config, shape = unet_config("sd15"), motion_config(Version.V2)
    unet, motion = unet_state(config, dtype=dtype), motion_state(shape, dtype=dtype)
    model = load_unet(unet)
    animated = apply_motion_model(model, motion_model_from_state(motion, "v2"))
    load(animated)
    theirs = diffusers_unet(config, unet, motion).to(device)
    ours = animated.model.diffusion_model

    rows = [_HEADER, "|---" * _HEADER.count(" |") + "|"]
    for size in sizes:
        x = torch.randn(FRAMES, 4, size, size, device=device, dtype=dtype)
        context = torch.randn(FRAMES, 77, 768, device=device, dtype=dtype)
        for backend, override in _attention_backends(device).items():
            options = {"optimized_attention_override": override} if override else {}
            run = partial(ours, x, torch.full((FRAMES,), 500.0, device=device), context=context)
            cases: dict[str, Case] = {
                "plain": partial(run, transformer_options=dict(options)),
                "ours": partial(run, transformer_options=options_for_direct_call(animated, **options)),
                "diffusers": partial(theirs, x.unsqueeze(0).transpose(1, 2), 500, context),
                "floor": _floor(shape, size, device, dtype),
            }
            rows.append(_row(f"{size}x{size}", backend, *interleaved(cases, rounds, device)))
            print(rows[-1], flush=True)
    return "\n".join(rows) + "\n"


_HEADER = (
    "| latents | attention | plain | ours | diffusers | floor | (ours - plain) / floor | ours / diffusers "
    "| peak memory: plain, ours, diffusers |"
)


def _row(size: str, backend: str, seconds: dict[str, list[float]], memory: dict[str, float]) -> str:
    def quoted(value: Callable[[Callable[[list[float]], float]], float], unit: str = "") -> str:
        return f"{value(statistics.median):.2f}{unit} ({value(min):.2f})"

    figures = " | ".join(quoted(lambda of, name=name: of(seconds[name]), " s") for name in seconds)
    cost = quoted(lambda of: (of(seconds["ours"]) - of(seconds["plain"])) / of(seconds["floor"]))
    against = quoted(lambda of: of(seconds["ours"]) / of(seconds["diffusers"]))
    peaks = ", ".join(f"{memory[name] / 2**30:.2f}" for name in ("plain", "ours", "diffusers"))
    return f"| {size} | {backend} | {figures} | {cost} | {against} | {peaks} GiB |"


def _floor(shape: Any, size: int, device: str, dtype: Any) -> Case:
    """Per position and frame: ten products of C x C, one C x 8C, one 4C x C, at every motion module."""
    import torch
    from torch.nn.functional import linear

    levels = len(shape.down_channels)
    work = []
    for site, module in shape.sites.items():
        index = int(site.split(".")[1]) if not site.startswith("mid") else levels - 1
        level = levels - 1 - index if site.startswith("up") else index
        work.append((FRAMES * (size >> level) ** 2, module.channels))
    inputs = {key: torch.randn(key[0], 4 * key[1], device=device, dtype=dtype) for key in set(work)}
    narrow = {key: value[:, : key[1]].contiguous() for key, value in inputs.items()}
    square, wide, tall = (
        {c: torch.randn(rows * c, columns * c, device=device, dtype=dtype) for c in set(shape.down_channels)}
        for rows, columns in ((1, 1), (8, 1), (1, 4))
    )

    def run() -> None:
        for key in work:
            for _ in range(10):
                linear(narrow[key], square[key[1]])
            linear(narrow[key], wide[key[1]])
            linear(inputs[key], tall[key[1]])

    return run


def _attention_backends(device: str) -> dict[str, Any]:
    """Name -> override for the host's attention; the temporal attention follows it as the spatial one does."""
    if device == "cpu":
        return {"pytorch": None}
    from comfy.ldm.modules.attention import get_attention_function

    found = {
        name: get_attention_function(name, None)
        for name in ("pytorch", "xformers", "flash", "sage", "sub_quad", "split")
    }
    return {name: _override(function) for name, function in found.items() if function is not None}


def _override(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _chosen, *args, **kwargs: function(*args, **kwargs)


def interleaved(cases: dict[str, Case], rounds: int, device: str) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(seconds of every round, peak bytes above what was in use before) of each case; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    memory = dict.fromkeys(cases, 0.0)
    for round_index in range(rounds + 1):
        for name, case in cases.items():
            with PeakMemory(device) as peak:
                started = time.perf_counter()
                case()
                peak.synchronize()
                elapsed = time.perf_counter() - started
            memory[name] = max(memory[name], peak.bytes)
            if round_index:
                seconds[name].append(elapsed)
    return seconds, memory


class PeakMemory:
    """Peak use during a block above the start: of the GPU's allocator, or of this process sampled every 5 ms."""

    def __init__(self, device: str) -> None:
        self.device, self.bytes = device, 0.0

    def __enter__(self) -> PeakMemory:
        import psutil
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
            return self
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what an earlier case freed hides what this one takes
        process = psutil.Process()
        self._start, self._running = process.memory_info().rss, True

        def sample() -> None:
            while self._running:
                self.bytes = max(self.bytes, process.memory_info().rss - self._start)
                time.sleep(0.005)

        self._thread = threading.Thread(target=sample)
        self._thread.start()
        return self

    def synchronize(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def __exit__(self, *_: object) -> None:
        import torch

        if self.device == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self._start
        else:
            self._running = False
            self._thread.join()


def machine(device: str) -> str:
    import torch

    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{torch.get_num_threads()} CPU cores ({platform.machine()})"
    )
    return f"{name}, torch {torch.__version__}, {'float16' if device == 'cuda' else 'float32'}"


def _arguments() -> argparse.Namespace:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    parser.add_argument("--sizes", type=int, nargs="+", help="sides of the latents")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.sizes = arguments.sizes or ([16, 32, 64] if arguments.device == "cuda" else [16, 32])
    return arguments
