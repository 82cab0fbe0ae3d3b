"""The trainers' binding to the host: trainable copies of its loaded models, its VAE and text encoder, its noise schedule."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..motion.splice import options_for_direct_call
from .dataset import Encoder


@contextmanager
def training() -> Iterator[None]:
    """Nodes run under inference mode; training needs gradients, and kernels of the host that have a backward."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.in_training = before


def trainable_copy(model: ModelPatcher) -> ModelPatcher:
    """A clone of model on frozen weights of its own that gradients can pass through (inside training()).

    The loaded weights may be inference tensors, which autograd refuses; so they are read again where the loader says how.
    """
    if model.cached_patcher_init is not None:
        loader, arguments, *index = model.cached_patcher_init
        fresh = loader(*arguments, disable_dynamic=True)
        fresh = fresh[index[0]] if index else fresh
    else:
        original: Any = model.model
        kept = (original.model_config, original.current_patcher)  # the host's configs cannot be copied
        copied = copy.deepcopy(original, {id(item): item for item in kept})
        fresh = ModelPatcher(copied, model.load_device, model.offload_device)
    result = model.clone(model_override=fresh.get_clone_model_override())
    result.model.requires_grad_(False)
    return result


def encoder(model: ModelPatcher, vae: Any, clip: Any) -> Encoder:
    """The host's own VAE and text encoder, for a dataset."""

    def latents(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            encoded = torch.cat([vae.encode(frame[None].permute(0, 2, 3, 1)) for frame in pixels])
        return model.model.process_latent_in(encoded).clone()

    def text(caption: str) -> Tensor:
        with torch.inference_mode():
            return clip.encode_from_tokens(clip.tokenize(caption))[0].clone()

    return Encoder(latents, text, f"{_fingerprint(vae.first_stage_model)}")


def alpha_bars(model: ModelPatcher) -> Tensor:
    """The cumulative product of 1 - beta of model's noise schedule, [steps], the first with the least noise."""
    sampling: Any = model.get_model_object("model_sampling")
    return (1 / (1 + sampling.sigmas.double() ** 2)).float()


def is_v_prediction(model: ModelPatcher) -> bool:
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION)


def load(model: ModelPatcher) -> None:
    """Have the host make room for model and what is attached to it, wholly: half-loaded weights are cast without gradients."""
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()], force_full_load=True)


def predict(model: ModelPatcher, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    """The UNet's prediction for clips x [clips, frames, c, h, w] at timesteps [clips] under context [clips, tokens, dim]."""
    clips, frames = x.shape[:2]
    options = options_for_direct_call(model, cond_or_uncond=[0] * clips)
    unet: Any = model.model.diffusion_model
    out = unet(
        x.flatten(0, 1),
        timesteps.repeat_interleave(frames),
        context=context.repeat_interleave(frames, dim=0),
        transformer_options=options,
    )
    return out.view_as(x)


def _fingerprint(module: torch.nn.Module) -> str:
    """Short, cheap and different for different weights: sums over a few of them."""
    picked = list(module.state_dict().values())[:: max(1, len(module.state_dict()) // 8)]
    return format(abs(hash(tuple(round(float(value.float().sum()), 4) for value in picked))) % 16**8, "08x")
