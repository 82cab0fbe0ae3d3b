"""The noise that sampling starts from, on the host: FreeInit and noise that frames have in common, as wrappers of any sampler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.context_windows
import comfy.patcher_extension
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .context import HANDLER
from .noise import FREENOISE, ClipNoise, Drawing, FreeInit, arranged, renewed

FREE_INIT_KEY, CLIP_NOISE_KEY = "diffdirector_free_init", "diffdirector_clip_noise"
WrappersMP = comfy.patcher_extension.WrappersMP
Callback = Callable[[int, Tensor, Tensor, int], Any]


def apply_free_init(model: ModelPatcher, settings: FreeInit) -> ModelPatcher:
    """A clone of model that samples every clip settings.iterations times, each from noise with the last clip's low frequencies.

    FreeInit (arXiv:2312.07537). The initial noise alone is renewed: latents, masks and step ranges of the sampler node stay
    what they are. Applied again, the last one counts.
    """
    result = model.clone()
    result.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, FREE_INIT_KEY)
    if settings.iterations > 1:
        result.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, FREE_INIT_KEY, _Iterations(settings).prepare)
    return result


class _Iterations:
    def __init__(self, settings: FreeInit) -> None:
        self.settings = settings

    def prepare(
        self, executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:  # fmt: skip
        """OUTER_SAMPLE wrapper: refuse before anything is loaded; then become the innermost wrapper of the sampler.

        Innermost, for what others do to the noise (the FreeNoise of context windows) belongs to the initial noise and must
        not be done to renewed noise again.
        """
        _check_clip(noise)
        if not noise.any():
            logging.warning("DiffDirector: FreeInit has no noise to renew where the sampler adds none; sampled once.")
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        if sigmas[-1] > 0:
            raise ValueError(
                f"FreeInit: expected a sampling that ends with clean latents, this one stops at sigma {float(sigmas[-1]):.3g}. "
                "Let it run to its last step, disable return_with_leftover_noise, or remove FreeInit from this sampler's model."
            )
        options = executor.class_obj.model_options  # the host's copy for this one sampling
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.SAMPLER_SAMPLE, FREE_INIT_KEY, self.sample, options, is_model_options=True
        )
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def sample(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Callback | None, noise: Tensor,
        *args: Any,
    ) -> Tensor:  # fmt: skip
        """SAMPLER_SAMPLE wrapper: whole samplings, one after the other, in the model's units of latents."""
        model_sampling, count = guider.inner_model.model_sampling, self.settings.iterations

        def once(number: int, start: Tensor) -> Tensor:
            own_args = dict(extra_args)  # some samplers write into them
            return executor(guider, sigmas, own_args, _part_of_all(callback, number, count), start, *args)

        clean = once(0, noise)
        for number in range(1, count):
            sigma = model_sampling.sigma_max.to(noise)
            diffused = model_sampling.calculate_input(sigma, model_sampling.noise_scaling(sigma, noise, clean))
            _rewind_hooks(guider)
            seed = ((extra_args["seed"] or 0) + number * self.settings.next_seed) % 2**64
            clean = once(number, renewed(self.settings, diffused, Drawing().noise(seed, noise)))
        return clean


def apply_clip_noise(model: ModelPatcher, settings: ClipNoise) -> ModelPatcher:
    """A clone of model whose clips start from noise that frames have in common, where the sampler adds noise at all.

    Applied again, the last one counts. FreeNoise is left to context windows that do it themselves.
    """

    def replace_noise(
        executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Any = None,
        callback: Any = None, disable_pbar: bool = False, seed: int | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        _check_clip(noise)
        if noise.any():
            first_seed = seed or 0
            if settings.drawing is not None:
                first_seed = settings.drawing.first_seed(first_seed)
                noise = settings.drawing.noise(first_seed, noise)
            noise = arranged(settings, noise)
            windows = executor.class_obj.model_options.get(HANDLER)
            if settings.kind == FREENOISE and not getattr(windows, "freenoise", False):
                noise = comfy.context_windows.apply_freenoise(
                    noise.clone(), 0, settings.period, settings.overlap, first_seed
                )
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs)

    result = model.clone()
    result.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, CLIP_NOISE_KEY)
    result.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, CLIP_NOISE_KEY, replace_noise)
    return result


def _check_clip(noise: Tensor) -> None:
    if noise.ndim != 4:
        raise ValueError(
            f"Expected a batch of latents [frames, channels, height, width], found {list(noise.shape)}: "
            "FreeInit and Clip Noise are for SD1.5 and SDXL."
        )


def _rewind_hooks(guider: Any) -> None:
    """Keyframes of hooks only go forward within what the host takes for one sampling."""
    groups = [cond["hooks"] for conds in guider.conds.values() for cond in conds if cond.get("hooks")]
    for group in groups:
        group.reset()
    if groups:
        guider.model_patcher.clean_hooks()


def _part_of_all(callback: Callback | None, number: int, count: int) -> Callback | None:
    if callback is None:
        return None
    return lambda step, denoised, x, steps: callback(step + number * steps, denoised, x, steps * count)
