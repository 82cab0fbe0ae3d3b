"""What distilled motion models are sampled with, as their authors publish it. Pure.

The scheduler is "simple" throughout: on the host's schedules it takes the very timesteps that were distilled, those of
diffusers' LCMScheduler and of its "trailing" spacing ("sgm_uniform", which many workflows name, lies up to one timestep off).
"""

from __future__ import annotations

from dataclasses import dataclass

from .schedules import SCHEDULES, BetaSchedule

SCHEDULER = "simple"
_LCM, _LINEAR = SCHEDULES["lcm >> sqrt_linear"], SCHEDULES["sqrt_linear (AnimateDiff)"]


@dataclass(frozen=True)
class FewSteps:
    """sampler: its name on the host."""

    steps: int
    cfg: float
    sampler: str
    schedule: BetaSchedule


PRESETS = {
    # huggingface.co/wangfuyun/AnimateLCM: 6 steps at guidance 2
    "AnimateLCM, 4 steps": FewSteps(4, 2.0, "lcm", _LCM),
    "AnimateLCM, 6 steps": FewSteps(6, 2.0, "lcm", _LCM),
    "AnimateLCM, 8 steps": FewSteps(8, 2.0, "lcm", _LCM),
    # huggingface.co/ByteDance/AnimateDiff-Lightning: Euler, trailing, guidance 1; 3 steps with the model of 2
    "Lightning, 1 step": FewSteps(1, 1.0, "euler", _LINEAR),
    "Lightning, 2 steps": FewSteps(2, 1.0, "euler", _LINEAR),
    "Lightning, 3 steps with the 2-step model": FewSteps(3, 1.0, "euler", _LINEAR),
    "Lightning, 4 steps": FewSteps(4, 1.0, "euler", _LINEAR),
    "Lightning, 8 steps": FewSteps(8, 1.0, "euler", _LINEAR),
    # an LCM-LoRA for images (arXiv:2311.05556: guidance 1 to 2) beside an ordinary motion model, whose schedule it is
    "LCM-LoRA, 8 steps": FewSteps(8, 1.5, "lcm", _LCM),
}
