"""Training objectives: one function each, over plain tensors. Pure."""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """q(x_t | x_0) of DDPM (arXiv:2006.11239, equation 4). x, noise: [n, ...]; alpha_bar: [n]."""
    alpha_bar = _like(alpha_bar, x)
    return alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise


def target(x: Tensor, noise: Tensor, alpha_bar: Tensor, v_prediction: bool) -> Tensor:
    """What the network should predict: the noise, or v (arXiv:2202.00512, appendix D)."""
    if not v_prediction:
        return noise
    alpha_bar = _like(alpha_bar, x)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x


def min_snr_weight(alpha_bar: Tensor, gamma: float, v_prediction: bool) -> Tensor:
    """Min-SNR-gamma weight of each sample's loss, [n] (arXiv:2303.09556, equation 2); ones for gamma 0."""
    if not gamma:
        return alpha_bar.new_ones(alpha_bar.shape)
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr + 1 if v_prediction else snr)


def truncated_snr_weight(alpha_bar: Tensor, cap: float, v_prediction: bool) -> Tensor:
    """Weight of each sample's loss, [n], that judges what is noisy by the clean x it implies, up to cap times the loss of
    the noise; ones for cap 0. Without it, what is decided at high noise, such as the order of frames, hardly counts.

    Truncated SNR (arXiv:2202.00512, section 4), with a cap.
    """
    if not cap:
        return alpha_bar.new_ones(alpha_bar.shape)
    snr = alpha_bar / (1 - alpha_bar)
    weight = (1 / snr).clamp(1, cap)
    return weight * snr / (snr + 1) if v_prediction else weight


def denoising_loss(predicted: Tensor, expected: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error per sample in float32, weighted and averaged. predicted, expected: [n, ...]; weight: [n]."""
    per_sample = (predicted.float() - expected.float()).square().flatten(1).mean(1)
    return (weight * per_sample).mean()


def debiased_temporal_loss(
    predicted: Tensor, expected: Tensor, anchor: Tensor, weight: Tensor, beta: float = 1.0
) -> Tensor:
    """MotionDirector's loss of the temporal path (arXiv:2310.08465, equations 5 to 7): the denoising loss, and the same
    where every frame is seen from an anchor frame of its clip, which takes out the appearance that the frames share.

    predicted, expected: [n, frames, ...]; anchor: a frame's number for each clip, [n]; weight: [n]. beta 0: without
    debiasing; the frames are scaled by sqrt(beta^2 + 1), so that noise seen from an anchor keeps its variance.
    """
    loss = denoising_loss(predicted, expected, weight)
    if not beta:
        return loss
    clips = torch.arange(len(anchor), device=predicted.device)

    def debiased(x: Tensor) -> Tensor:
        x = x.float()
        return (beta**2 + 1) ** 0.5 * x - beta * x[clips, anchor].unsqueeze(1)

    return loss + denoising_loss(debiased(predicted), debiased(expected), weight)


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
