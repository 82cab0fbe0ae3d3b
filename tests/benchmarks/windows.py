"""`make bench-windows`: one step of clips of any length in context windows, on full-size SD1.5 with a v2 motion model, seeded weights.

Windows of 16 frames, overlap 4, without CFG, through the host's sampling. one window: a clip of 16 frames, sampled before and after
each length, so that a machine whose speed drifts shifts both. Memory: weights, and the most that the step takes beyond.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from diffdirector.tests.host.inprocess import boot

from .bench import PeakMemory, machine

LENGTHS = (16, 32, 64, 256, 512)
PAGE = Path(__file__).with_name("WINDOWS.md")
HEADER = "| frames | windows | a step | windows x one window | ratio | seconds a frame | memory | memory, of that for 32 frames |"


def main() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64 if device == "cuda" else 8, help="side of the latents")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    boot(["--use-pytorch-cross-attention"] + ([] if device == "cuda" else ["--cpu"]))
    with torch.inference_mode():
        table = measure(device, arguments.size, arguments.rounds)
    print(table)
    about = (
        f"{machine(device).rsplit(', ', 1)[0]}, {arguments.size}x{arguments.size} latents in half precision, "
        f"medians of {arguments.rounds} rounds; `make bench-windows` makes this page."
    )
    PAGE.write_text(f"# What long clips take\n\n{__doc__}\n{about}\n\n{table}")


def measure(device: str, size: int, rounds: int) -> str:
    """The table for this page, as Markdown."""
    import comfy.samplers
    import torch

    from diffdirector.motion.context import apply_context_windows
    from diffdirector.motion.formats import Version
    from diffdirector.motion.module import motion_model_from_state
    from diffdirector.motion.splice import apply_motion_model
    from diffdirector.motion.windows import Windows, plan
    from diffdirector.tests.host.weights import load_unet, motion_config, motion_state, unet_config, unet_state

    half = torch.float16 if device == "cuda" else torch.bfloat16
    model = load_unet(unet_state(unet_config("sd15"), dtype=half), half)
    motion = motion_model_from_state(motion_state(motion_config(Version.V2), dtype=half), "v2", dtype=half)
    animated = apply_context_windows(apply_motion_model(model, motion), Windows())
    text, sigmas = torch.randn(1, 77, 768), torch.tensor([3.0, 0.0])

    def step(frames: int) -> Any:
        guider = comfy.samplers.CFGGuider(animated)
        guider.set_conds([[text, {}]], [[text, {}]])
        guider.set_cfg(1.0)
        noise = torch.randn(frames, 4, size, size)
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)

    step(16)
    weights = sum(value.nbytes for patcher in (model, motion.patcher) for value in patcher.model.state_dict().values())
    rows, memory_of_32 = [], 0.0
    for frames in sorted(LENGTHS, key=lambda frames: frames != 32):
        count = len(plan(Windows(), frames).windows)
        alone, whole, memory = list[float](), list[float](), 0.0
        for _ in range(rounds):
            for seconds, length in ((alone, 16), (whole, frames), (alone, 16)):
                with PeakMemory(device) as peak:
                    seconds.append(timed(partial(step, length)))
                memory = max(memory, weights + peak.bytes) if length == frames else memory
        memory_of_32 = memory_of_32 or memory
        one, many = statistics.median(alone), statistics.median(whole)
        rows.append(
            f"| {frames} | {count} | {many:.2f} s | {count * one:.2f} s | {many / (count * one):.3f} | {many / frames:.3f} "
            f"| {memory / 2**30:.2f} GiB | {memory / memory_of_32:.2f} |"
        )
        print(rows[-1], flush=True)
    rows.sort(key=lambda row: int(row.split("|")[1]))
    return "\n".join([HEADER, "|---" * 8 + "|", *rows]) + "\n"


def timed(step: Any) -> float:
    started = time.perf_counter()
    step()  # its result is brought to the CPU, so a GPU is done too
    return time.perf_counter() - started
