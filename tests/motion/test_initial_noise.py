"""FreeInit and Clip Noise through the host's sampling, against the same samplings composed by hand."""

from __future__ import annotations

from typing import Any

import comfy.hooks
import comfy.samplers
import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from diffdirector.motion.context import apply_context_windows
from diffdirector.motion.initial_noise import apply_clip_noise, apply_free_init
from diffdirector.motion.module import motion_model_from_state
from diffdirector.motion.noise import CONSTANT, FREENOISE, REPEATED, ClipNoise, FreeInit
from diffdirector.motion.splice import apply_motion_model
from diffdirector.motion.windows import Windows
from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import TOKENS, randn, relative_error
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state

FRAMES, SEED = 8, 5
NOISE, TEXT, NOTHING = randn(FRAMES, 4, 4, 4), randn(1, TOKENS, 768, seed=1), randn(1, TOKENS, 768, seed=2)
TWICE = FreeInit(2, "gaussian", d_s=0.4, d_t=0.3)


@pytest.fixture(scope="module")
def plain():
    return load_unet(unet_state(unet_config("sd15", **TINY)))


@pytest.fixture(scope="module")
def animated(plain):
    return apply_motion_model(plain, motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2"))


def schedule(model: Any, start: float | None = None) -> Tensor:
    """Two steps; from the noisiest on if start is None."""
    return torch.tensor([start or float(model.get_model_object("model_sampling").sigma_max), 1.0, 0.0])


def sample(model: Any, noise: Tensor = NOISE, start: float | None = None, sampler: str = "euler", latent: Tensor | None = None,
           mask: Tensor | None = None, seed: int = SEED, sigmas: Tensor | None = None, **cond: Any) -> Tensor:  # fmt: skip
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[TEXT, dict(cond)]], [[NOTHING, dict(cond)]])
    guider.set_cfg(2.0)
    return guider.sample(
        noise.clone(), torch.zeros_like(noise) if latent is None else latent, comfy.samplers.sampler_object(sampler),
        schedule(model, start) if sigmas is None else sigmas, denoise_mask=mask, disable_pbar=True, seed=seed,
    )  # fmt: skip


def fresh(number: int, seed: int = SEED, next_seed: int = 0x9E3779B97F4A7C15) -> Tensor:
    generator = torch.Generator().manual_seed((seed + number * next_seed) % 2**64)
    return torch.randn(NOISE.shape, generator=generator)


def mixed(low: Tensor, high: Tensor, d_s: float = 0.4, d_t: float = 0.3) -> Tensor:
    """A Gaussian low pass by numpy, over the whole spectrum."""
    axes = (0, 2, 3)
    t, y, x = np.meshgrid(*(2 * np.fft.fftfreq(low.shape[axis]) for axis in axes), indexing="ij")
    passed = np.exp(-0.5 * ((t / d_t) ** 2 + (y / d_s) ** 2 + (x / d_s) ** 2))[:, None]
    spectra = [np.fft.fftn(clip.double().numpy(), axes=axes) for clip in (low, high)]
    result = np.fft.ifftn(spectra[0] * passed + spectra[1] * (1 - passed), axes=axes)
    assert np.abs(result.imag).max() < 1e-10
    return torch.from_numpy(result.real).float()


def by_hand(
    model: Any, iterations: int = 2, noise: Tensor = NOISE, seed: int = SEED, next_seed: int = 0x9E3779B97F4A7C15, **how: Any
) -> Tensor:  # fmt: skip
    """The paper's loop over whole calls of the host's sampling."""
    sigma = float(model.get_model_object("model_sampling").sigma_max)
    remaining = 1 / (1 + sigma**2)  # what DDPM calls alpha bar, at the last timestep
    clean = sample(model, noise, seed=seed, **how)
    for number in range(1, iterations):
        diffused = remaining**0.5 * model.model.process_latent_in(clean) + (1 - remaining) ** 0.5 * noise
        clean = sample(model, mixed(diffused, fresh(number, seed, next_seed)), seed=seed, **how)
    return clean


@pytest.mark.slow
def test_once_is_without_free_init_bit_for_bit(animated) -> None:
    twice = apply_free_init(animated, TWICE)
    assert not torch.equal(sample(twice), sample(animated))
    for model in (apply_free_init(animated, FreeInit(1)), apply_free_init(twice, FreeInit(1))):
        assert torch.equal(sample(model), sample(animated))


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [2, 3])
def test_the_papers_loop(animated, iterations: int) -> None:
    found = sample(apply_free_init(animated, FreeInit(iterations, "gaussian", 0.4, 0.3)))
    expected = by_hand(animated, iterations)
    assert relative_error(found, expected) < 1e-5
    assert relative_error(sample(animated, fresh(iterations - 1)), expected) > 1e-2  # high frequencies are not all
    assert relative_error(by_hand(animated, iterations - 1), expected) > 1e-2


@pytest.mark.slow
def test_another_way_from_seed_to_seed(animated) -> None:
    found = sample(apply_free_init(animated, FreeInit(2, "gaussian", 0.4, 0.3, next_seed=3)))
    assert relative_error(found, by_hand(animated, next_seed=3)) < 1e-5
    assert relative_error(found, by_hand(animated)) > 1e-2


@pytest.mark.slow
def test_the_last_one_applied_counts(animated) -> None:
    model = apply_free_init(apply_free_init(animated, FreeInit(4, "box")), TWICE)
    assert torch.equal(sample(model), sample(apply_free_init(animated, TWICE)))


@pytest.mark.slow
def test_it_may_come_before_the_motion_model(plain, animated) -> None:
    motion = motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2")
    found = sample(apply_motion_model(apply_free_init(plain, TWICE), motion))
    assert torch.equal(found, sample(apply_free_init(animated, TWICE)))


@pytest.mark.slow
def test_clips_that_do_not_start_from_pure_noise(animated) -> None:
    """As with denoise below 1, and with a mask: latents stay, their noise alone is renewed."""
    how: dict[str, Any] = {"start": 3.0, "latent": randn(FRAMES, 4, 4, 4, seed=8)}
    model = apply_free_init(animated, TWICE)
    assert relative_error(sample(model, **how), by_hand(animated, **how)) < 1e-5
    how["mask"] = torch.zeros(1, 1, 4, 4)
    how["mask"][..., 2:] = 1
    found = sample(model, **how)
    assert relative_error(found, by_hand(animated, **how)) < 1e-5
    assert torch.allclose(found[..., :2], how["latent"][..., :2], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zsnr", [False, True])
def test_v_prediction(animated, zsnr: bool) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    import nodes  # noqa: F401  (the host's module must be importable before its extras)

    (model,) = ModelSamplingDiscrete().patch(animated, "v_prediction", zsnr=zsnr)
    # zero terminal SNR starts at a sigma of 4,500, where float32 has no digits left for the clip
    assert relative_error(sample(apply_free_init(model, TWICE)), by_hand(model)) < (1e-3 if zsnr else 1e-5)
    assert relative_error(sample(model), by_hand(model)) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "euler_ancestral_cfg_pp"])
def test_samplers_with_noise_or_options_of_their_own(animated, sampler: str) -> None:
    found = sample(apply_free_init(animated, TWICE), sampler=sampler)
    assert relative_error(found, by_hand(animated, sampler=sampler)) < 1e-5


def test_what_a_sampler_writes_into_its_arguments_ends_with_the_iteration(animated) -> None:
    """As those that add a function of theirs to model_options."""
    seen: list[set[str]] = []

    def writes(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        seen.append(set(extra_args))
        extra_args["mine"] = True
        return x

    guider = comfy.samplers.CFGGuider(apply_free_init(animated, TWICE))
    guider.set_conds([[TEXT, {}]], [[NOTHING, {}]])
    guider.sample(NOISE, torch.zeros_like(NOISE), comfy.samplers.KSAMPLER(writes), schedule(animated), seed=0)
    assert len(seen) == 2 and seen[0] == seen[1]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_clip(animated) -> None:
    model = apply_free_init(animated, TWICE)
    found = sample(model)
    assert torch.equal(sample(model), found)
    last = sample(model, seed=2**64 - 1)
    assert relative_error(last, found) > 1e-2
    assert relative_error(last, by_hand(animated, seed=2**64 - 1)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("windows_last", [False, True])
def test_in_context_windows(animated, windows_last: bool) -> None:
    """FreeNoise is done to the first noise once, whichever node comes first."""
    windows = Windows(6, 2)
    if windows_last:
        model = apply_context_windows(apply_free_init(animated, TWICE), windows, freenoise=True)
    else:
        model = apply_free_init(apply_context_windows(animated, windows, freenoise=True), TWICE)
    shuffled = starting_noise(apply_context_windows(animated, windows, freenoise=True))
    assert not torch.equal(shuffled, NOISE)
    expected = by_hand(apply_context_windows(animated, windows), noise=shuffled)
    assert relative_error(sample(model), expected) < 1e-5


@pytest.mark.slow
def test_hooks_start_again_with_every_iteration(plain) -> None:
    """A LoRA that keyframes switch on at the second step."""
    config = unet_config("sd15", **TINY)
    lora = loras.in_original_naming(loras.spatial_lora(config, unet_state(config), rank=4, seed=5))
    hooks, keyframes = comfy.hooks.create_hook_lora(lora, 1.0, 1.0), comfy.hooks.HookKeyframeGroup()
    for strength, start in ((0.0, 0.0), (1.0, 0.5)):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(keyframes)
    found = sample(apply_free_init(plain, TWICE), hooks=hooks)
    assert relative_error(found, by_hand(plain, hooks=hooks)) < 1e-5
    assert relative_error(found, by_hand(plain)) > 1e-3


def test_progress_counts_the_steps_of_all_iterations(animated) -> None:
    seen: list[tuple[int, int]] = []
    guider = comfy.samplers.CFGGuider(apply_free_init(animated, FreeInit(3)))
    guider.set_conds([[TEXT, {}]], [[NOTHING, {}]])
    guider.sample(
        NOISE, torch.zeros_like(NOISE), comfy.samplers.sampler_object("euler"), schedule(animated), disable_pbar=True, seed=0,
        callback=lambda step, denoised, x, steps: seen.append((step, steps)),
    )  # fmt: skip
    assert seen == [(step, 6) for step in range(6)]


def test_without_noise_there_is_nothing_to_renew(animated, caplog) -> None:
    how: dict[str, Any] = {"noise": torch.zeros_like(NOISE), "latent": randn(FRAMES, 4, 4, 4, seed=8)}
    found = sample(apply_free_init(animated, TWICE), **how)
    assert torch.equal(found, sample(animated, **how))
    assert "no noise to renew" in caplog.text


def test_samplings_that_do_not_end_are_refused(animated) -> None:
    model = apply_free_init(animated, TWICE)
    with pytest.raises(ValueError, match=r"ends with clean latents, this one stops at sigma 1\. .*last step"):
        sample(model, sigmas=schedule(animated)[:2])
    assert sample(apply_free_init(model, FreeInit(1)), sigmas=schedule(animated)[:2]).isfinite().all()


def test_other_latents_than_clips_are_refused(animated) -> None:
    video = torch.randn(1, 4, FRAMES, 4, 4)
    for model in (apply_free_init(animated, TWICE), apply_clip_noise(animated, ClipNoise())):
        with pytest.raises(ValueError, match=r"\[frames, channels, height, width\], found \[1, 4, 8, 4, 4\]"):
            sample(model, video)


def starting_noise(model: Any, noise: Tensor = NOISE, seed: int = SEED) -> Tensor:
    """What the sampler's function is given, in units of the noise."""
    seen, model = [], model.clone()

    def look(
        executor: Any, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, *args: Any
    ) -> Tensor:
        seen.append(noise.clone())
        return executor(guider, sigmas, extra, callback, noise, *args)

    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "test", look)
    sample(model, noise, sigmas=torch.tensor([3.0, 0.0]), seed=seed)
    return seen[-1]


@pytest.mark.slow
def test_clip_noise_is_what_samplers_start_from(animated) -> None:
    model = apply_clip_noise(animated, ClipNoise(CONSTANT))
    assert torch.equal(starting_noise(model), NOISE[:1].expand(FRAMES, -1, -1, -1))
    assert torch.equal(starting_noise(apply_clip_noise(model, ClipNoise())), NOISE)  # the last one counts
    assert torch.equal(
        sample(apply_clip_noise(animated, ClipNoise(REPEATED, 5))), sample(animated, NOISE[[*range(5), *range(3)]])
    )


def test_clip_noise_adds_none_where_the_sampler_adds_none(animated) -> None:
    model, nothing = apply_clip_noise(animated, ClipNoise(seeds=(3,))), torch.zeros_like(NOISE)
    assert torch.equal(starting_noise(model, nothing), nothing)
    assert starting_noise(model).any()


@pytest.mark.slow
def test_freenoise_is_context_windows_own_and_done_once(animated) -> None:
    """By this node alone, by Context Windows alone, by both."""
    settings, windows = ClipNoise(FREENOISE, 4, 1), Windows(4, 1)
    alone = starting_noise(apply_clip_noise(animated, settings))
    assert torch.equal(alone[:4], NOISE[:4])
    assert all(any(torch.equal(frame, first) for first in NOISE[:4]) for frame in alone)
    assert not torch.equal(alone, NOISE[[*range(4), *range(4)]])
    by_windows, shorter = apply_context_windows(animated, windows, freenoise=True), ClipNoise(FREENOISE, 3, 1)
    for model in (
        by_windows,
        apply_clip_noise(by_windows, shorter),
        apply_context_windows(apply_clip_noise(animated, shorter), windows, freenoise=True),
        apply_clip_noise(apply_context_windows(animated, windows), settings),
    ):
        assert torch.equal(starting_noise(model), alone)
    assert not torch.equal(starting_noise(by_windows, seed=SEED + 1), alone)


@pytest.mark.slow
def test_free_init_renews_clip_noise(animated) -> None:
    repeated = apply_clip_noise(animated, ClipNoise(REPEATED, 5))
    expected = by_hand(animated, noise=NOISE[[*range(5), *range(3)]])
    assert relative_error(sample(apply_free_init(repeated, TWICE)), expected) < 1e-5
    assert (
        relative_error(sample(apply_clip_noise(apply_free_init(animated, TWICE), ClipNoise(REPEATED, 5))), expected)
        < 1e-5
    )
