"""`make bench-training`: one MotionDirector step on full-size SD1.5 with a v3 motion model, two ways in one run, on seeded weights.

ours    frozen weights in half precision; each path's forward and backward pass before the next path
peers   as the packs that train it today do: frozen weights in float32, both forward passes before both backward passes,
        each LoRA computed in both

Both compute in bfloat16 autocast, recompute activations, train LoRAs of rank 64 with AdamW and take both paths. One
way after the other, for both do not fit into 24 GB; quoted are medians, in brackets the best round. Operations: multiplications
and additions of convolutions and matrices. Memory: weights and the optimizer's state, and the most that a step takes beyond.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffdirector.tests.host.inprocess import boot
from diffdirector.tests.host.provision import ROOT

from .bench import PeakMemory, machine

FRAMES = 16
PAGE = Path(__file__).with_name("TRAINING.md")
Step = Callable[[int], None]
Make = Callable[[int, Any, bool], tuple[Step, Callable[[], int]]]
HEADER = "| latents | ours | peers | time, ours / peers | operations, ours / peers | memory: ours | peers | memory, ours / peers |"


def main() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 64] if device == "cuda" else [16])
    parser.add_argument("--rounds", type=int, default=10 if device == "cuda" else 3)
    parser.add_argument("--memory", nargs=2, metavar=("SIZE", "WAY"), help="prints only what a step of one way takes")
    arguments = parser.parse_args()
    boot(["--use-pytorch-cross-attention"] + ([] if device == "cuda" else ["--cpu"]))
    if arguments.memory:
        print_memory(device, one_step, *arguments.memory)
        return
    table = measure(device, arguments.sizes, arguments.rounds, one_step, ["tests.benchmarks.training"])
    print(table)
    about = f"{machine(device).rsplit(', ', 1)[0]}, {FRAMES} frames, {arguments.rounds} rounds; `make bench-training` makes this page."
    PAGE.write_text(f"# What a training step takes\n\n{__doc__}\n{about}\n\n{table}")


def measure(device: str, sizes: list[int], rounds: int, make: Make, command: list[str]) -> str:
    """The table, as Markdown. make: from the latents' size, the frozen weights' type and whether it is the peers' way, a step by its
    number, and the bytes that stay between steps. command: the module, and its arguments, whose --memory says what a
    step takes."""
    from diffdirector.trainers import host

    rows = [HEADER, "|---" * 8 + "|"]
    for size in sizes:
        seconds: dict[str, list[float]] = {}
        operations: dict[str, int] = {}
        # first: what this process's malloc keeps after the steps leaves no room in 24 GB
        memory = {name: memory_in_a_process_of_its_own(command, size, name) for name in types(device)}
        for name, dtype in types(device).items():
            with host.training():
                step, _ = make(size, dtype, name == "peers")
                step(0)  # warms up
                seconds[name] = [timed(step, number, device) for number in range(1, rounds + 1)]
                operations[name] = counted(step, rounds)
            del step
            gc.collect()
            print(name, seconds[name], f"{operations[name]:.3g}", f"{memory[name] / 2**30:.2f} GiB", flush=True)
        rows.append(row(size, seconds, operations, memory))
    return "\n".join(rows) + "\n"


def timed(step: Step, number: int, device: str) -> float:
    """Seconds."""
    import torch

    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    finish()
    started = time.perf_counter()
    step(number)
    finish()
    return time.perf_counter() - started


def counted(step: Step, number: int) -> int:
    """Multiplications and additions of a step's convolutions and matrices; kernels of attention are not counted alike everywhere."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    with FlopCounterMode(display=False) as counter:
        step(number)
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(kind, 0) for kind in (aten.mm, aten.addmm, aten.convolution, aten.convolution_backward))


def types(device: str) -> dict[str, Any]:
    """Of the frozen weights, by the way's name."""
    import torch

    return {"ours": torch.float16 if device == "cuda" else torch.bfloat16, "peers": torch.float32}


def memory_in_a_process_of_its_own(command: list[str], size: int, name: str) -> int:
    """Bytes, by the command's --memory; on a CPU with a malloc that gives freed blocks back at once: else what it keeps for the next
    allocation counts as taken, half of it in places."""
    whole = [sys.executable, str(ROOT / "tests/host/as_package.py"), *command, "--memory", str(size), name]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(2**17)
    done = subprocess.run(whole, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def print_memory(device: str, make: Make, size: str, name: str) -> None:
    """What stays between steps, and the most that a step takes beyond."""
    from diffdirector.trainers import host

    with host.training():
        step, kept = make(int(size), types(device)[name], name == "peers")
        step(0)
        before = kept()
        with PeakMemory(device) as peak:
            step(1)
            peak.synchronize()
    print(int(before + peak.bytes))


def row(size: int, seconds: dict[str, list[float]], operations: dict[str, int], memory: dict[str, int]) -> str:
    times = " | ".join(f"{statistics.median(of):.2f} s ({min(of):.2f})" for of in seconds.values())
    ratios = (pick(seconds["ours"]) / pick(seconds["peers"]) for pick in (statistics.median, min))
    ours, peers = (memory[name] / 2**30 for name in ("ours", "peers"))
    against = "{:.2f} ({:.2f})".format(*ratios) + f" | {operations['ours'] / operations['peers']:.2f}"
    return f"| {size}x{size} | {times} | {against} | {ours:.2f} GiB | {peers:.2f} GiB | {ours / peers:.2f} |"


def one_step(size: int, dtype: Any, peers: bool) -> tuple[Step, Callable[[], int]]:
    """A step of MotionDirector by its number, and what says how many bytes stay between steps."""
    import torch
    from torch import autocast

    from diffdirector.motion.formats import Version
    from diffdirector.motion.module import motion_model_from_state
    from diffdirector.tests.host.weights import load_unet, motion_config, motion_state, unet_config, unet_state
    from diffdirector.trainers.config import MotionDirectorConfig
    from diffdirector.trainers.dataset import LatentClips
    from diffdirector.trainers.loop import step_generator
    from diffdirector.trainers.motion_director import MotionDirectorTraining

    generator = torch.Generator().manual_seed(0)
    clips = LatentClips(
        torch.randn(1, FRAMES, 4, size, size, generator=generator), torch.randn(2, 77, 768, generator=generator), torch.tensor([0])
    )  # fmt: skip
    model = load_unet(unet_state(unet_config("sd15"), dtype=dtype), dtype)
    motion = motion_model_from_state(motion_state(motion_config(Version.V3), dtype=dtype), "v3", dtype=dtype)
    config = MotionDirectorConfig("bench", rank=64, spatial_probability=1.0, precision="bfloat16")
    training = MotionDirectorTraining(model, motion, clips, config)
    if peers:
        training._at_work = lambda **_: None  # LoRAs are switched by a scale there, and computed all the same
    optimizer = torch.optim.AdamW(training.parameters.values())

    def step(number: int) -> None:
        def losses():
            paths = training.losses(step_generator(0, number))
            while True:
                with autocast(training.model.load_device.type, torch.bfloat16):
                    found = next(paths, None)
                if found is None:
                    return
                yield found[1]

        if peers:
            spatial, temporal = losses()
            spatial.backward(retain_graph=True)
            temporal.backward()
        else:
            for loss in losses():
                loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, lambda: staying(training, optimizer)


def staying(training: Any, optimizer: Any) -> int:
    """Bytes of the networks' weights, of what is trained, of the optimizer's state, and of gradients that are kept."""
    import torch

    weights = [*training.model.model.diffusion_model.parameters(), *training.parameters.values()]
    weights += [
        value for patcher in training.model.get_nested_additional_models() for value in patcher.model.parameters()
    ]
    weights += [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    weights += [value.grad for value in weights if value.grad is not None]
    return sum({id(value): value.nbytes for value in weights}.values())
