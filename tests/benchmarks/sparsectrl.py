"""`make bench-sparsectrl`: what SparseCtrl adds to an evaluation of full-size SD1.5 with a v3 motion model, on seeded weights.

without, with   one step with CFG through the host's sampling: no SparseCtrl, or a scribble SparseCtrl with drawings at
                the first and the last frame
alone           what that SparseCtrl does in such an evaluation, called as the host calls it
diffusers       SparseControlNetModel, as published, over the same tensors, on the same frames, texts and drawings

Rounds are interleaved, so a machine whose speed drifts shifts all four; quoted are medians, and in brackets the best
round. FLOPs are those of matrix products, convolutions and attention, counted by PyTorch. Memory: the most that each
takes beyond the weights.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diffdirector.tests.host.inprocess import boot

from .bench import Case, interleaved, machine

INDICES, PLACES = "0, -1", [0, -1]
PAGE = Path(__file__).with_name("SPARSECTRL.md")
HEADER = (
    "| latents | without | with | with / without | in FLOPs | alone | diffusers | alone / diffusers | in FLOPs "
    "| peak memory: without, with, alone, diffusers |"
)


def main() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64] if device == "cuda" else [16], help="sides of the latents"
    )
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10 if device == "cuda" else 3)
    arguments = parser.parse_args()
    boot(["--use-pytorch-cross-attention"] + ([] if device == "cuda" else ["--cpu"]))
    with torch.inference_mode():
        table = measure(device, arguments.sizes, arguments.frames, arguments.rounds)
    print(table)
    about = f"{machine(device)}, {arguments.frames} frames, {arguments.rounds} rounds; `make bench-sparsectrl` makes this page."
    PAGE.write_text(f"# What SparseCtrl takes\n\n{__doc__}\n{about}\n\n{table}")


def measure(device: str, sizes: list[int], frames: int, rounds: int) -> str:
    """The table for this page, as Markdown."""
    import torch

    from diffdirector.motion.formats import Version
    from diffdirector.motion.module import motion_model_from_state
    from diffdirector.motion.sparse_formats import SparseKind
    from diffdirector.motion.sparsectrl import sparse_ctrl_from_state
    from diffdirector.motion.splice import apply_motion_model
    from diffdirector.tests.host.sparse import SD15_CHANNELS, diffusers_sparse, sparse_state
    from diffdirector.tests.host.weights import load_unet, motion_config, motion_state, unet_config, unet_state

    dtype, kind = torch.float16 if device == "cuda" else torch.float32, SparseKind.SCRIBBLE
    motion = motion_model_from_state(motion_state(motion_config(Version.V3), dtype=dtype), "v3", dtype=dtype)
    model = apply_motion_model(load_unet(unet_state(unet_config("sd15"), dtype=dtype), dtype), motion)
    state = {key: value.to(dtype) for key, value in sparse_state(kind, SD15_CHANNELS).items()}
    control, theirs = sparse_ctrl_from_state(state, "bench"), diffusers_sparse(kind, state, SD15_CHANNELS).to(device)

    rows = [HEADER, "|---" * HEADER.count(" |") + "|"]
    for size in sizes:
        drawings = torch.rand(2, 3, 8 * size, 8 * size)
        text = torch.randn(2 * frames, 77, 768, device=device, dtype=dtype)
        cases: dict[str, Case] = {
            "without": partial(_step, model, size, frames),
            "with": partial(_step, model, size, frames, control.conditioned(drawings, INDICES)),
            "alone": _alone(model, control.conditioned(drawings, INDICES), size, text),
            "diffusers": _theirs(theirs, drawings, size, text),
        }
        flops = {name: _flops(case) for name, case in cases.items()}
        rows.append(_row(size, flops, *interleaved(cases, rounds, device)))
        print(rows[-1], flush=True)
    return "\n".join(rows) + "\n"


def _step(model: Any, size: int, frames: int, control: Any = None) -> None:
    import comfy.samplers
    import torch

    text, start = torch.zeros(1, 77, 768), torch.tensor([3.0, 0.0])
    given = {"control": control, "control_apply_to_uncond": True} if control else {}
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[text, dict(given)]], [[text + 1, dict(given)]])
    guider.set_cfg(7.5)
    noise, sampler = torch.randn(frames, 4, size, size), comfy.samplers.sampler_object("euler")
    guider.sample(noise, torch.zeros_like(noise), sampler, start, disable_pbar=True, seed=0)


def _alone(model: Any, control: Any, size: int, text: Any) -> Case:
    """text: [2 * frames, tokens, dim], without and with the prompt."""
    import comfy.model_management
    import torch

    sampling = model.get_model_object("model_sampling")
    x = torch.randn(len(text), 4, size, size, device=text.device, dtype=text.dtype)
    sigmas = torch.full((len(text),), 3.0, device=text.device)

    def run() -> None:
        comfy.model_management.load_models_gpu([model, *control.get_models()])
        control.pre_run(model.model, sampling.percent_to_sigma)
        control.get_control(x, sigmas, {"c_crossattn": text}, 2, {"cond_or_uncond": [1, 0]})
        control.cleanup()

    return run


def _theirs(network: Any, drawings: Any, size: int, text: Any) -> Case:
    import torch

    frames = len(text) // 2
    clip = torch.zeros(1, 4, frames, 8 * size, 8 * size)
    clip[0, :3, PLACES], clip[0, 3, PLACES] = drawings.transpose(0, 1), 1
    clip = clip.to(text)
    x = torch.randn(2, 4, frames, size, size).to(text)
    return partial(network, x, 500, text, clip[:, :3], conditioning_mask=clip[:, 3:], return_dict=False)


def _flops(case: Case) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which PyTorch's counter does not know
    counted = {on_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        case()
    return counter.get_total_flops()


def _row(size: int, flops: dict[str, int], seconds: dict[str, list[float]], memory: dict[str, float]) -> str:
    def quoted(value: Callable[[Callable[[list[float]], float]], float], unit: str = "") -> str:
        return f"{value(statistics.median):.2f}{unit} ({value(min):.2f})"

    def compared(one: str, other: str) -> str:
        return f"{quoted(lambda of: of(seconds[one]) / of(seconds[other]))} | {flops[one] / flops[other]:.2f}"

    times = {name: quoted(lambda of, name=name: of(seconds[name]), " s") for name in seconds}
    peaks = ", ".join(f"{peak / 2**30:.2f}" for peak in memory.values())
    return (
        f"| {size}x{size} | {times['without']} | {times['with']} | {compared('with', 'without')} "
        f"| {times['alone']} | {times['diffusers']} | {compared('alone', 'diffusers')} | {peaks} GiB |"
    )
