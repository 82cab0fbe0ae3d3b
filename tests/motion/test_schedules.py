"""Noise schedules against diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from diffdirector.motion.formats import Version
from diffdirector.motion.module import motion_model_from_state
from diffdirector.motion.schedules import AUTO, CHOICES, SCHEDULES, USE_EXISTING, schedule_for
from diffdirector.motion.splice import apply_motion_model
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.weights import TINY, load_unet, motion_config, motion_state, unet_config, unet_state


@pytest.fixture(scope="module")
def model():
    return load_unet(unet_state(unet_config("sd15", **TINY)))


@pytest.fixture(scope="module")
def motion():
    return motion_model_from_state(motion_state(tiny_motion_config()), "tiny")


def diffusers_sigmas(beta_schedule: str, beta_end: float = 0.012) -> torch.Tensor:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=beta_end, beta_schedule=beta_schedule)
    return ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (AUTO, diffusers_sigmas("linear")),
        (USE_EXISTING, diffusers_sigmas("scaled_linear")),
        ("linear (AnimateDiff-SDXL)", diffusers_sigmas("scaled_linear", 0.020)),
        ("linear (HotshotXL/default)", diffusers_sigmas("scaled_linear")),
        ("avg(sqrt_linear,linear)", (diffusers_sigmas("linear") + diffusers_sigmas("scaled_linear")) / 2),
        ("squaredcos_cap_v2", diffusers_sigmas("squaredcos_cap_v2")),
    ],
)
def test_sigmas_are_diffusers(model, motion, choice, expected) -> None:
    sigmas = apply_motion_model(model, motion, beta_schedule=choice).get_model_object("model_sampling").sigmas
    torch.testing.assert_close(sigmas, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (Version.V1, "sqrt_linear (AnimateDiff)"),
        (Version.V2, "sqrt_linear (AnimateDiff)"),
        (Version.V3, "sqrt_linear (AnimateDiff)"),
        (Version.PIA, "sqrt_linear (AnimateDiff)"),
        (Version.SDXL, "linear (AnimateDiff-SDXL)"),
        (Version.HOTSHOT, "linear (HotshotXL/default)"),
        (Version.LCM, "lcm >> sqrt_linear"),
    ],
)
def test_auto_is_what_the_module_was_trained_with(version, name) -> None:
    assert schedule_for(AUTO, motion_config(version)) == SCHEDULES[name]


@pytest.mark.parametrize(
    ("choice", "steps"), [("lcm", 50), ("lcm[100_ots]", 100), ("lcm[25_ots]", 25), ("lcm >> sqrt_linear", 50)]
)
def test_lcm_samples_on_its_distilled_steps(model, motion, choice, steps) -> None:
    sampling = apply_motion_model(model, motion, beta_schedule=choice).get_model_object("model_sampling")
    betas = "linear" if "sqrt" in choice else "scaled_linear"
    torch.testing.assert_close(
        sampling.sigmas, diffusers_sigmas(betas)[999 - 1000 // steps * torch.arange(steps)].flip(0)
    )
    # LCM's boundary condition (arXiv:2310.04378): c_skip and c_out of the timestep, scaled by 10, sigma_data 0.5
    x, eps, index = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 0.7), steps // 2
    timestep, sigma = 10.0 * (index * (1000 // steps) + 1000 // steps - 1), sampling.sigmas[index]
    skip, out = 0.25 / (timestep**2 + 0.25), timestep / (timestep**2 + 0.25) ** 0.5
    torch.testing.assert_close(sampling.calculate_denoised(sigma.view(1), eps, x), out * (x - sigma * eps) + skip * x)


def test_schedules_of_earlier_motion_models_leave_no_trace(model, motion) -> None:
    for first in ("squaredcos_cap_v2", "lcm"):
        chained = apply_motion_model(apply_motion_model(model, motion, beta_schedule=first), motion)
        sigmas = chained.get_model_object("model_sampling").sigmas
        torch.testing.assert_close(sigmas, diffusers_sigmas("linear"), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_builds_a_falling_schedule(model, motion, choice) -> None:
    sigmas = apply_motion_model(model, motion, beta_schedule=choice).get_model_object("model_sampling").sigmas
    assert sigmas.isfinite().all()
    assert (sigmas.diff() > 0).all()


def test_prediction_type_of_the_checkpoint_is_kept(model, motion) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    import nodes  # noqa: F401  (the host's module must be importable before its extras)

    (v_model,) = ModelSamplingDiscrete().patch(model, "v_prediction", zsnr=True)
    before = v_model.get_model_object("model_sampling")
    after = apply_motion_model(v_model, motion).get_model_object("model_sampling")
    x, sigma = torch.randn(1, 4, 2, 2), torch.tensor([2.0])
    assert torch.equal(after.calculate_denoised(sigma, x, x), before.calculate_denoised(sigma, x, x))
    assert after.zsnr
    assert after.sigmas[-1] > 1000  # zero terminal SNR


def test_unknown_name(model, motion) -> None:
    with pytest.raises(ValueError, match="expected one of auto.*found 'linera'"):
        apply_motion_model(model, motion, beta_schedule="linera")
