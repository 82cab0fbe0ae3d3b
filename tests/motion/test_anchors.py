"""Anchors through the host's sampling: held frames come out as given, the others are made to fit."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from torch import Tensor

from diffdirector.motion.anchors import anchor
from diffdirector.motion.context import apply_context_windows
from diffdirector.motion.module import motion_model_from_state
from diffdirector.motion.splice import apply_motion_model
from diffdirector.motion.windows import LOOPED, Windows
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import TOKENS, randn, relative_error
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state

FRAMES = 14
NOISE, TEXT, NOTHING = randn(FRAMES, 4, 4, 4), randn(1, TOKENS, 768, seed=1), randn(1, TOKENS, 768, seed=2)
GIVEN = randn(3, 4, 4, 4, seed=3)


def test_anchors_are_in_their_places_and_ease_off_around_them() -> None:
    own = randn(8, 4, 2, 2, seed=4)
    latents, mask = anchor(own, GIVEN[:2, :, :2, :2], [5, 0], [0.6, 0.6], reach=2)
    held = [0.6, 0.4, 0.2, 0.2, 0.4, 0.6, 0.4, 0.2]
    assert mask.shape == (8, 1, 2, 2)
    assert torch.allclose(1 - mask.mean((1, 2, 3)), torch.tensor(held), atol=1e-6)
    nearest = [1, 1, 1, 0, 0, 0, 0, 0]
    assert torch.equal(latents, GIVEN[nearest, :, :2, :2])
    _, mask = anchor(own, GIVEN[:2, :, :2, :2], [0, 7], [1.0, 0.25])
    assert torch.equal(1 - mask.mean((1, 2, 3)), torch.tensor([1, 0, 0, 0, 0, 0, 0, 0.25]))
    latents, mask = anchor(own, GIVEN[:1, :, :2, :2], [-1 % 8], [1.0])
    assert torch.equal(latents[:7], own[:7]) and torch.equal(latents[7], GIVEN[0, :, :2, :2])
    assert mask.mean((1, 2, 3)).tolist() == [1] * 7 + [0]


@pytest.fixture(scope="module")
def animated():
    model = load_unet(unet_state(unet_config("sd15", **TINY)))
    return apply_motion_model(model, motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2"))


def sample(model: Any, latents: Tensor, mask: Tensor | None, sampler: str = "euler", **settings: Any) -> Tensor:
    """As KSampler does."""
    return comfy.sample.sample(
        model, NOISE, 2, 2.0, sampler, "normal", [[TEXT, {}]], [[NOTHING, {}]], latents,
        noise_mask=mask, disable_pbar=True, seed=5, **settings,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "windows"),
    [
        ("euler", None),
        ("dpmpp_2m", None),
        ("lcm", None),
        ("euler_ancestral", Windows(8, 3)),
        ("euler", Windows(8, 3, schedule=LOOPED, closed_loop=True)),
    ],
)
def test_held_frames_come_out_as_given_and_the_others_move(animated, sampler: str, windows: Windows | None) -> None:
    model = animated if windows is None else apply_context_windows(animated, windows)
    held = [0, 9, 13]
    free = [index for index in range(FRAMES) if index not in held]
    latents, mask = anchor(torch.zeros_like(NOISE), GIVEN, held, [1.0] * 3)
    found = sample(model, latents, mask, sampler)
    assert relative_error(found[held], GIVEN) < 1e-5
    without = sample(model, torch.zeros_like(NOISE), None, sampler)
    assert (found[free] - without[free]).abs().amax((1, 2, 3)).min() > 1e-3  # each has seen the anchors
    assert (found[free][:, None] - GIVEN).abs().mean((2, 3, 4)).min() > 0.1  # and is none of them


@pytest.mark.slow
def test_the_same_as_the_hosts_inpainting_with_a_mask_of_the_picture(animated) -> None:
    """A mask [frames, 1, h, w] through the host is what a mask of pixels, [frames, H, W], would be."""
    latents, mask = anchor(randn(FRAMES, 4, 4, 4, seed=7), GIVEN[:1], [4], [0.7], reach=2)
    pixels = mask[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)
    for denoise in (1.0, 0.6):
        expected = sample(animated, latents, pixels, denoise=denoise)
        assert relative_error(sample(animated, latents, mask, denoise=denoise), expected) < 1e-5


@pytest.mark.slow
def test_strength_and_reach_hold_in_proportion(animated) -> None:
    distances = []
    for strength in (0.0, 0.5, 1.0):
        latents, mask = anchor(torch.zeros_like(NOISE), GIVEN[:1], [0], [strength], reach=3)
        found = sample(animated, latents, mask)
        distances.append((found[:4] - GIVEN[0]).abs().mean((1, 2, 3)))
    assert all((distances[i] > distances[i + 1] - 1e-6).all() for i in range(2))
    assert (distances[-1][1:] > distances[-1][:-1]).all()  # farther from the anchor, freer
