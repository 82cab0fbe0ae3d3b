"""Noise schedules by name. Pure: which betas a motion module was trained with; motion/splice.py builds them.

A trap in the names: ComfyUI's "sqrt_linear" is diffusers' "linear" (betas in a line), and ComfyUI's "linear" is
diffusers' "scaled_linear" (their square roots in a line). AnimateDiff trains with betas in a line, 0.00085 to 0.012.
"""

from __future__ import annotations

from dataclasses import dataclass

from .formats import MotionConfig, Version

AUTO = "auto"
USE_EXISTING = "use existing"


@dataclass(frozen=True)
class BetaSchedule:
    """host_names: ComfyUI's beta schedules; the sigmas of several are averaged.

    distilled_steps: None, or the number of steps that an LCM was distilled on; sampling is then LCM's.
    """

    host_names: tuple[str, ...]
    linear_start: float = 0.00085
    linear_end: float = 0.012
    distilled_steps: int | None = None


# The names are AnimateDiff-Evolved's, so that its users find what they know.
SCHEDULES: dict[str, BetaSchedule] = {
    "sqrt_linear (AnimateDiff)": BetaSchedule(("sqrt_linear",)),
    "linear (AnimateDiff-SDXL)": BetaSchedule(("linear",), linear_end=0.020),
    "linear (HotshotXL/default)": BetaSchedule(("linear",)),
    "avg(sqrt_linear,linear)": BetaSchedule(("linear", "sqrt_linear")),
    "lcm avg(sqrt_linear,linear)": BetaSchedule(("linear", "sqrt_linear"), distilled_steps=50),
    "lcm": BetaSchedule(("linear",), distilled_steps=50),
    "lcm[100_ots]": BetaSchedule(("linear",), distilled_steps=100),
    "lcm[25_ots]": BetaSchedule(("linear",), distilled_steps=25),
    "lcm >> sqrt_linear": BetaSchedule(("sqrt_linear",), distilled_steps=50),
    "sqrt": BetaSchedule(("sqrt",)),
    "cosine": BetaSchedule(("cosine",)),
    "squaredcos_cap_v2": BetaSchedule(("squaredcos_cap_v2",)),
}
CHOICES = [AUTO, USE_EXISTING, *SCHEDULES]

_TRAINED_WITH = {
    Version.V1: "sqrt_linear (AnimateDiff)",
    Version.V2: "sqrt_linear (AnimateDiff)",
    Version.V3: "sqrt_linear (AnimateDiff)",
    # github.com/open-mmlab/PIA, example/config/base.yaml: diffusers' "linear"
    Version.PIA: "sqrt_linear (AnimateDiff)",
    Version.SDXL: "linear (AnimateDiff-SDXL)",
    Version.HOTSHOT: "linear (HotshotXL/default)",
    # github.com/G-U-N/AnimateLCM, configs/inference-t2v.yaml: diffusers' "linear", as the module it was distilled from
    Version.LCM: "lcm >> sqrt_linear",
}


def schedule_for(choice: str, config: MotionConfig) -> BetaSchedule | None:
    """The schedule of a name; "auto" is the one the module was trained with, "use existing" is None."""
    if choice == USE_EXISTING:
        return None
    name = _TRAINED_WITH[config.version] if choice == AUTO else choice
    if name not in SCHEDULES:
        raise ValueError(f"beta_schedule: expected one of {', '.join(CHOICES)}; found {choice!r}")
    return SCHEDULES[name]
