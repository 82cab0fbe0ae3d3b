"""PIA checkpoints with seeded weights, and their oracle: diffusers' UNetMotionModel with 9 input channels and the original's norms."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import Tensor, nn

from diffdirector.motion.formats import Version, canonical_key

from .checkpoints import tiny_motion_config
from .oracle import oracle_unet
from .weights import motion_state, seeded


def pia_state(seed: int = 11) -> dict[str, Tensor]:
    """A file in the original's naming: motion modules, and the whole convolution of 9 channels; for the UNet of weights.TINY."""
    convolution = {"conv_in.weight": (320, 9, 3, 3), "conv_in.bias": (320,)}
    return motion_state(tiny_motion_config(Version.PIA), seed) | seeded(convolution, seed + 1)


def pia_oracle(
    config: dict, unet: Mapping[str, Tensor], pia: Mapping[str, Tensor], across_frames: int
) -> UNetMotionModel:
    """Over the same tensors; its input is [the noisy clip, similarity, the picture's latent], [clips, 9, frames, h, w].

    across_frames: clip length.
    """
    model = oracle_unet(config, unet, {key: value for key, value in pia.items() if canonical_key(key)}, across_frames)
    model.conv_in = convolution_of_diffusers(model.conv_in, pia)
    return model


def convolution_of_diffusers(own: nn.Conv2d, pia: Mapping[str, Tensor]) -> nn.Conv2d:
    """What diffusers makes of a checkpoint's first convolution and a PIA file's, by its own rule."""
    width = own.out_channels
    shape = {"block_out_channels": (width,), "layers_per_block": 1, "cross_attention_dim": 32}
    image = UNet2DConditionModel(
        **shape, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type="UNetMidBlock2DCrossAttn",
        attention_head_dim=8,
    )  # fmt: skip
    adapter = MotionAdapter((width,), motion_layers_per_block=1, conv_in_channels=9)
    image.conv_in.load_state_dict(own.state_dict())
    adapter.conv_in.load_state_dict(
        {key.removeprefix("conv_in."): pia[key] for key in ("conv_in.weight", "conv_in.bias")}
    )
    return UNetMotionModel.from_unet2d(image, adapter).conv_in
