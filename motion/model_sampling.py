"""Gives a MODEL the noise schedule that a motion model was trained with, in the host's own classes."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import comfy.model_sampling
import torch
from comfy.ldm.modules.diffusionmodules.util import make_beta_schedule
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled

from .schedules import BetaSchedule


def set_schedule(model: ModelPatcher, schedule: BetaSchedule) -> None:
    """Give model the noise schedule; its prediction type (eps, v, an LCM node's) stays what it is."""
    current = model.get_model_object("model_sampling")
    if not isinstance(current, comfy.model_sampling.ModelSamplingDiscrete) or isinstance(
        current, comfy.model_sampling.ModelSamplingDiscreteEDM
    ):
        logging.warning(
            "DiffDirector: %s is not a discrete noise schedule; the model keeps its own.", type(current).__name__
        )
        return
    # An earlier motion model's schedule stands on the checkpoint's; so does this one.
    own_kind = getattr(current, "diffdirector_own_kind", type(current))
    kind = own_kind if schedule.distilled_steps is None else _lcm_sampling(schedule.distilled_steps)
    zsnr = getattr(current, "zsnr", False)
    variants = [_schedule_variant(kind, schedule, host_name, zsnr) for host_name in schedule.host_names]
    sampling = variants[0]
    if len(variants) > 1:
        sampling.set_sigmas(torch.stack([variant.sigmas for variant in variants]).mean(0))
    sampling.diffdirector_own_kind = own_kind
    model.add_object_patch("model_sampling", sampling)


def _schedule_variant(kind: type, schedule: BetaSchedule, host_name: str, zsnr: bool) -> Any:
    by_numpy = (
        host_name == "squaredcos_cap_v2"
    )  # the host makes its betas with numpy and its own class then refuses them
    settings = {
        "beta_schedule": "linear" if by_numpy else host_name,
        "linear_start": schedule.linear_start,
        "linear_end": schedule.linear_end,
    }
    sampling = kind(SimpleNamespace(sampling_settings=settings), zsnr=zsnr)
    if by_numpy:
        sampling._register_schedule(given_betas=torch.as_tensor(make_beta_schedule(host_name, 1000)), zsnr=zsnr)
    return sampling


def _lcm_sampling(steps: int) -> type:
    class DistilledSampling(ModelSamplingDiscreteDistilled, LCM):
        original_timesteps = steps

    return DistilledSampling
