"""One evaluation of a MODEL's UNet, loaded by the host with its additional models."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from torch import Tensor

from diffdirector.motion.splice import options_for_direct_call

TOKENS = 8  # of a text: reading 77 would take small networks more time than all the rest


def load(model: Any) -> None:
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()])


def evaluate(
    model: Any, x: Tensor, context: Tensor, t: float = 500.0, load_first: bool = True, **options: Any
) -> Tensor:
    """The UNet's prediction for x [frames, 4, h, w] under context [frames or 1, tokens, dim]; SDXL gets zeros for its size."""
    if load_first:
        load(model)
    unet = model.model.diffusion_model
    frames = x.shape[0]
    times = torch.full((frames,), t)
    y = None if unet.num_classes is None else sdxl_vector(frames)
    return unet(
        x,
        times,
        context=context.expand(frames, -1, -1),
        y=y,
        transformer_options=options_for_direct_call(model, **options),
    )


SDXL_SIZES = torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]])


def sdxl_pooled() -> Tensor:
    return torch.randn(1, 1280, generator=torch.Generator().manual_seed(7))


def sdxl_vector(frames: int) -> Tensor:
    """SDXL's vector conditioning [frames, 2816]: pooled text and sizes."""
    sizes = timestep_embedding(SDXL_SIZES.flatten(), 256).reshape(1, -1)
    return torch.cat([sdxl_pooled(), sizes], dim=1).expand(frames, -1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
