"""Real checkpoint layouts with seeded random weights: nothing is downloaded, nothing is mocked.

Weights are scaled so that activations stay of order one through the whole network; otherwise differences between two
implementations would drown, or blow up, with depth.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffdirector.motion.formats import MotionConfig, SiteConfig, Version, expected_shapes, sinusoidal_encoding

SD15_CHANNELS = (320, 640, 1280, 1280)
SDXL_CHANNELS = (320, 640, 1280)


def seeded(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights for named shapes: matrices scaled by fan-in, norms near one, biases small."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith(".pe"):
            value = sinusoidal_encoding(shape[1], shape[2])
        elif len(shape) > 1:
            value = (
                noise * (shape[1:].numel() if isinstance(shape, torch.Size) else torch.Size(shape[1:]).numel()) ** -0.5
            )
        elif key.endswith("bias"):
            value = 0.1 * noise
        else:
            value = 1 + 0.1 * noise
        state[key] = value.to(dtype)
    return state


def motion_config(
    version: Version,
    channels: tuple[int, ...] | None = None,
    modules: int = 2,
    max_frames: int | None = None,
    mid: bool | None = None,
) -> MotionConfig:
    """The shape of a published motion model; channels and modules per block may be smaller."""
    if channels is None:
        channels = SDXL_CHANNELS if version in (Version.SDXL, Version.HOTSHOT) else SD15_CHANNELS
    frames = max_frames or {Version.V1: 24, Version.HOTSHOT: 24, Version.LCM: 64}.get(version, 32)
    mid = version in (Version.V2, Version.LCM) if mid is None else mid

    def site(width: int) -> SiteConfig:
        return SiteConfig(width, width, 4 * width, depth=1, attentions=2)

    sites = {f"down_blocks.{i}.motion_modules.{j}": site(c) for i, c in enumerate(channels) for j in range(modules)}
    if mid:
        sites["mid_block.motion_modules.0"] = site(channels[-1])
    sites |= {
        f"up_blocks.{i}.motion_modules.{j}": site(c)
        for i, c in enumerate(reversed(channels))
        for j in range(modules + 1)
    }
    return MotionConfig(version, sites, frames)


def motion_state(config: MotionConfig, seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A motion checkpoint in the original's key layout."""
    return seeded(expected_shapes(config), seed, dtype)


def unet_config(family: str, **changes: object) -> dict[str, object]:
    """The host's UNet config of "sd15" or "sdxl"; changes make it smaller where the stock loader still recognises it."""
    shared = {
        "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
        "in_channels": 4, "model_channels": 320, "use_temporal_attention": False, "use_temporal_resblock": False,
    }  # fmt: skip
    families = {
        "sd15": {
            "adm_in_channels": None, "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "channel_mult": [1, 2, 4, 4],
            "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8,
        },
        "sdxl": {
            "num_classes": "sequential", "adm_in_channels": 2816, "num_res_blocks": [2, 2, 2],
            "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "channel_mult": [1, 2, 4], "transformer_depth_middle": 10, "use_linear_in_transformer": True,
            "context_dim": 2048, "num_head_channels": 64,
        },
    }  # fmt: skip
    return shared | families[family] | changes


TINY = {
    "num_res_blocks": [1, 1], "channel_mult": [1, 1], "transformer_depth": [1, 0], "transformer_depth_output": [1, 1, 0, 0],
}  # fmt: skip
NARROW_SD15 = {"channel_mult": [1, 1, 1, 1]}
NARROW_SDXL = {"channel_mult": [1, 1, 1]}


def unet_state(config: dict[str, object], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The UNet of a checkpoint file, with the keys that follow "model.diffusion_model."."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    skeleton = UNetModel(**config, device="meta")
    return seeded({key: value.shape for key, value in skeleton.state_dict().items()}, seed, dtype)


def load_unet(state: Mapping[str, Tensor], dtype: torch.dtype | None = None):
    """A MODEL (ModelPatcher) through the host's own loader."""
    import comfy.sd

    options = {} if dtype is None else {"dtype": dtype}
    model = comfy.sd.load_diffusion_model_state_dict(
        {f"model.diffusion_model.{key}": value for key, value in state.items()}, model_options=options
    )
    assert model is not None, "the stock loader did not recognise this UNet"
    return model
