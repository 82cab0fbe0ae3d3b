"""Objectives against diffusers' scheduler and against their formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from diffdirector.tests.host.evaluate import randn
from diffdirector.tests.host.weights import TINY, load_unet, unet_config, unet_state
from diffdirector.trainers import host, objectives

X, NOISE, T = randn(3, 2, 4, 8, 8), randn(3, 2, 4, 8, 8, seed=1), torch.tensor([10, 500, 999])


@pytest.fixture(scope="module")
def scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def test_schedule_of_a_model_is_diffusers(scheduler) -> None:
    found = host.alpha_bars(load_unet(unet_state(unet_config("sd15", **TINY))))
    torch.testing.assert_close(found, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_noising_and_targets_are_diffusers(scheduler) -> None:
    alpha_bar = scheduler.alphas_cumprod[T]
    torch.testing.assert_close(objectives.add_noise(X, NOISE, alpha_bar), scheduler.add_noise(X, NOISE, T))
    assert objectives.target(X, NOISE, alpha_bar, v_prediction=False) is NOISE
    torch.testing.assert_close(
        objectives.target(X, NOISE, alpha_bar, v_prediction=True), scheduler.get_velocity(X, NOISE, T)
    )


@pytest.mark.parametrize("v_prediction", [False, True])
def test_min_snr_weight(scheduler, v_prediction) -> None:
    snr = compute_snr(scheduler, T)
    expected = torch.minimum(snr, torch.full_like(snr, 5)) / (snr + 1 if v_prediction else snr)
    found = objectives.min_snr_weight(scheduler.alphas_cumprod[T], 5.0, v_prediction)
    torch.testing.assert_close(found, expected)
    assert objectives.min_snr_weight(scheduler.alphas_cumprod[T], 0.0, v_prediction).tolist() == [1, 1, 1]


def test_loss_is_the_weighted_mean_over_samples() -> None:
    weight = torch.tensor([1.0, 0.0, 2.0])
    per_sample = (X - NOISE).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(objectives.denoising_loss(X, NOISE, weight), (weight * per_sample).mean())


@pytest.mark.parametrize("v_prediction", [False, True])
def test_truncated_snr_weight(scheduler, v_prediction) -> None:
    """Against its definition: the error of the clean x where that is the larger, up to the cap; of the noise elsewhere."""
    snr = compute_snr(scheduler, T)
    error_in_x = torch.maximum(snr, torch.minimum(torch.ones(3), 20 * snr))
    expected = error_in_x / (snr + 1 if v_prediction else snr)
    found = objectives.truncated_snr_weight(scheduler.alphas_cumprod[T], 20.0, v_prediction)
    torch.testing.assert_close(found, expected)
    assert objectives.truncated_snr_weight(scheduler.alphas_cumprod[T], 0.0, v_prediction).tolist() == [1, 1, 1]


def test_debiased_temporal_loss() -> None:
    """Frame by frame, as the paper writes it; and what all frames share costs nothing in its second part."""
    predicted, expected = X.unsqueeze(0), NOISE.unsqueeze(0)
    anchor, weight = torch.tensor([1]), torch.ones(1)
    plain = torch.nn.functional.mse_loss(predicted, expected)

    def seen_from_anchor(frames):
        return torch.stack([2**0.5 * frame - frames[1] for frame in frames])

    debiased = torch.nn.functional.mse_loss(seen_from_anchor(X), seen_from_anchor(NOISE))
    found = objectives.debiased_temporal_loss(predicted, expected, anchor, weight)
    torch.testing.assert_close(found, plain + debiased)
    torch.testing.assert_close(objectives.debiased_temporal_loss(predicted, expected, anchor, weight, beta=0.0), plain)
    shifted = objectives.debiased_temporal_loss(predicted, predicted + 1, anchor, weight)
    torch.testing.assert_close(shifted, torch.tensor(1 + (2**0.5 - 1) ** 2))
