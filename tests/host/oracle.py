"""The oracle: diffusers' UNetMotionModel, changed to what the original AnimateDiff does (DESIGN, invariant 2).

diffusers normalises the frames of a clip together in its AnimateDiffTransformer3D; the original takes each frame alone.
For v1 (and HotShot-XL) the original normalises across the frames in the ResBlocks and before the output convolution.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import UNetMotionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn


class PerFrame(nn.Module):
    """A group norm on [b, c, f, h, w] that sees one frame at a time."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        b, c, f, h, w = x.shape
        return self.norm(x.transpose(1, 2).reshape(b * f, c, h, w)).view(b, f, c, h, w).transpose(1, 2)


class AcrossFrames(nn.Module):
    """A group norm on [b * f, c, h, w] that sees all frames of a clip together."""

    def __init__(self, norm: nn.Module, frames: int) -> None:
        super().__init__()
        self.norm, self.frames = norm, frames

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return self.norm(x.view(-1, self.frames, c, h, w).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)


def diffusers_unet(config: dict, unet: Mapping[str, Tensor], motion: Mapping[str, Tensor]) -> UNetMotionModel:
    """diffusers' UNetMotionModel, as published, over the same tensors (shared, not copied).

    config: the host's UNet config; unet: its state dict; motion: a canonical motion state dict.
    """
    from comfy.utils import unet_to_diffusers

    names = unet_to_diffusers(config)
    state = {
        diffusers_name: unet[host_name]
        for diffusers_name, host_name in names.items()
        if host_name in unet and not diffusers_name.startswith("class_embedding.")
    }
    lengths = {value.shape[1] for key, value in motion.items() if key.endswith(".pe")}
    state |= {diffusers_motion_key(key): value for key, value in motion.items()}
    with torch.device("meta"):
        model = UNetMotionModel(**_diffusers_config(config, motion, lengths.pop()))
    if config["transformer_depth_middle"] == -2:
        model.mid_block = None
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not missing and not unexpected, (missing[:3], unexpected[:3])
    return model.eval()


def oracle_unet(
    config: dict,
    unet: Mapping[str, Tensor],
    motion: Mapping[str, Tensor],
    across_frames: int = 0,
    everywhere: bool = False,
) -> UNetMotionModel:
    """The same with the original's norms.

    across_frames: clip length, for v1 and HotShot-XL. everywhere: every group norm sees whole clips, as
    AnimateDiff-Evolved does for v1.
    """
    model = diffusers_unet(config, unet, motion)
    for module in list(model.modules()):
        if isinstance(module, AnimateDiffTransformer3D) and not everywhere:
            module.norm = PerFrame(module.norm)
        if isinstance(module, Transformer2DModel) and everywhere:
            module.norm = AcrossFrames(module.norm, across_frames)
        if across_frames and isinstance(module, ResnetBlock2D):
            module.norm1 = AcrossFrames(module.norm1, across_frames)
            module.norm2 = AcrossFrames(module.norm2, across_frames)
    if across_frames:
        model.conv_norm_out = AcrossFrames(model.conv_norm_out, across_frames)
    return model


def diffusers_motion_key(key: str) -> str:
    """A canonical motion key in diffusers' MotionAdapter naming."""
    for old, new in (
        ("temporal_transformer.", ""), ("attention_blocks.0.pos_encoder.pe", "pos_embed.pe"), ("attention_blocks.1.pos_encoder.pe", "pos_embed.pe"),
        ("attention_blocks.0", "attn1"), ("attention_blocks.1", "attn2"), ("norms.0", "norm1"), ("norms.1", "norm2"), ("ff_norm", "norm3"),
    ):  # fmt: skip
        key = key.replace(old, new)
    return key


def _diffusers_config(config: dict, motion: Mapping[str, Tensor], length: int) -> dict:
    channels = [config["model_channels"] * multiple for multiple in config["channel_mult"]]
    depths = [depth_of_level[0] for depth_of_level in _split(config["transformer_depth"], config["num_res_blocks"])]
    made = {
        "sample_size": 32,
        "block_out_channels": tuple(channels),
        "layers_per_block": config["num_res_blocks"][0],
        "down_block_types": tuple("CrossAttnDownBlockMotion" if depth else "DownBlockMotion" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlockMotion" if depth else "UpBlockMotion" for depth in reversed(depths)),
        "transformer_layers_per_block": tuple(depth or 1 for depth in depths),
        "cross_attention_dim": config["context_dim"],
        "use_linear_projection": config["use_linear_in_transformer"],
        "motion_max_seq_length": length,
        "motion_num_attention_heads": 8,
        "use_motion_mid_block": any(key.startswith("mid_block.") for key in motion),
        "num_attention_heads": config.get("num_heads")
        or tuple(width // config["num_head_channels"] for width in channels),
    }
    if config["adm_in_channels"]:
        made |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": config["adm_in_channels"],
        }
    return made


def _split(values: list[int], counts: list[int]) -> list[list[int]]:
    starts = [sum(counts[:level]) for level in range(len(counts))]
    return [values[start : start + count] for start, count in zip(starts, counts, strict=True)]
