"""`make bench-motion-module`: one step of stage 2, the whole motion module, two ways in one run, on seeded weights.

ours        the frozen UNet in half precision and without gradients; activations are recomputed, on a CPU those that take little work;
            there, too, attention over few frames is the host's plain one
original    as AnimateDiff's own recipe: the UNet in float32, gradients of all of its weights kept, activations kept; attention that
            saves memory everywhere, which the recipe asks of xformers and PyTorch gives here

Both compute in bfloat16 autocast and train the motion module in float32 with AdamW, one way after the other. On a GPU it is
SD1.5 with a v2 motion model; on a CPU, whose memory does not hold the original's way, a UNet of its width and text with one
block a level, at latents large enough that activations decide, as they do at 512x512. Quoted are medians, in brackets the best round.
Operations: multiplications and additions of convolutions and matrices. Memory: weights and the optimizer's state, and the most that a
step takes beyond. Asked for are at most 0.8 of the time and 0.35 of the memory; recomputing activations trades the one for the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diffdirector.tests.host.inprocess import boot

from .bench import machine
from .training import FRAMES, Step, measure, print_memory, staying

PAGE = Path(__file__).with_name("MOTION_MODULE.md")


def main() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64] if device == "cuda" else [32])
    parser.add_argument("--rounds", type=int, default=10 if device == "cuda" else 2)
    parser.add_argument("--memory", nargs=2, metavar=("SIZE", "WAY"), help="prints only what a step of one way takes")
    parser.add_argument(
        "--plain", action="store_true", help="of --memory: plain attention over time in the original's way, too"
    )
    arguments = parser.parse_args()
    boot(["--use-pytorch-cross-attention"] + ([] if device == "cuda" else ["--cpu"]))
    from diffdirector.motion import module

    against = [partial(one_step, module.SHORT, short_there) for short_there in (0, module.SHORT)]
    if arguments.memory:
        print_memory(device, against[arguments.plain], *arguments.memory)
        return
    command = ["tests.benchmarks.motion_module"]
    everywhere = measure(device, arguments.sizes, arguments.rounds, against[0], command)
    plain = measure(device, arguments.sizes[:1], arguments.rounds, against[1], [*command, "--plain"])
    tables = f"{everywhere}\nWith plain attention over time in the original's way, too:\n\n{plain}".replace(
        "peers", "original"
    )
    print(tables)
    about = f"{machine(device).rsplit(', ', 1)[0]}, {FRAMES} frames, {arguments.rounds} rounds; `make bench-motion-module` makes this page."
    PAGE.write_text(f"# What a step of a motion module's training takes\n\n{__doc__}\n{about}\n\n{tables}")


def one_step(short: int, short_there: int, size: int, dtype: Any, peers: bool) -> tuple[Step, Callable[[], int]]:
    """A step by its number, and what says how many bytes stay between steps. peers: the original's way. short, short_there: up to how
    many frames attention over time is plain, in ours and in the original's."""
    import torch
    from torch import autocast

    from diffdirector.motion import module
    from diffdirector.motion.formats import Version
    from diffdirector.motion.module import motion_model_from_state
    from diffdirector.tests.host.checkpoints import tiny_motion_config
    from diffdirector.tests.host.weights import TINY, load_unet, motion_config, motion_state, unet_config, unet_state
    from diffdirector.trainers.config import MotionModuleConfig
    from diffdirector.trainers.dataset import LatentClips
    from diffdirector.trainers.loop import step_generator
    from diffdirector.trainers.motion_module import MotionModuleTraining

    whole = torch.cuda.is_available()
    generator = torch.Generator().manual_seed(0)
    clips = LatentClips(
        torch.randn(1, FRAMES, 4, size, size, generator=generator), torch.randn(2, 77, 768, generator=generator), torch.tensor([0])
    )  # fmt: skip
    model = load_unet(unet_state(unet_config("sd15", **({} if whole else TINY)), dtype=dtype), dtype)
    motion = motion_model_from_state(motion_state(motion_config(Version.V2) if whole else tiny_motion_config()), "v2")
    config = MotionModuleConfig("bench", precision="bfloat16", gradient_checkpointing=not peers)
    training = MotionModuleTraining(model, clips, config, motion)
    module.SHORT = short_there if peers else short
    if peers:
        training.model.model.diffusion_model.requires_grad_()
    optimizer = torch.optim.AdamW(training.parameters.values())

    def step(number: int) -> None:
        with autocast(training.model.load_device.type, torch.bfloat16):
            loss = training.loss(training.clips, step_generator(0, number))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # those of the UNet stay, as they do there

    return step, lambda: staying(training, optimizer)
