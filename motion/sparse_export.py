"""A SparseCtrl in diffusers' layout: the config and the names of its SparseControlNetModel. Pure: no host, no files.

Image layers have the original's names; motion modules those of diffusers' AnimateDiffTransformer3D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .formats import MotionFormatError, canonical_key
from .sparse_formats import HEADS, SparseConfig, SparseKind

# of canonical names, in this order
_NAMES = (
    (".temporal_transformer.", "."),
    ("attention_blocks.0.pos_encoder.pe", "pos_embed.pe"),
    ("attention_blocks.0.", "attn1."),
    ("norms.0.", "norm1."),
    ("ff_norm.", "norm3."),
)


def in_diffusers_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a SparseCtrl in the original's naming by the names that diffusers has for them."""
    return {_diffusers_key(key): value for key, value in state.items()}


def diffusers_config(config: SparseConfig) -> dict[str, Any]:
    """What its config.json says. Raises MotionFormatError for what diffusers has no counterpart of."""
    layers = config.levels[0][1]
    depths = [config.depths[layers * level : layers * (level + 1)] for level in range(len(config.levels))]
    for right, what in (
        (all(count == layers for _, count in config.levels), "levels of as many layers"),
        (all(len(set(level)) == 1 for level in depths), "layers of a level that are alike"),
        (len(config.sites) == len(config.depths), "a motion module after each layer"),
        (config.middle_depth > 0, "a middle with attention"),
    ):
        if not right:
            raise MotionFormatError(
                f"layout: diffusers' SparseControlNetModel expects {what}, which this checkpoint's UNet has not. Choose the original's layout."
            )
    return {
        "_class_name": "SparseControlNetModel",
        "conditioning_channels": config.kind.channels - 1,
        "concat_conditioning_mask": True,
        "use_simplified_condition_embedding": config.kind is SparseKind.RGB,
        "block_out_channels": [channels for channels, _ in config.levels],
        "down_block_types": ["CrossAttnDownBlockMotion" if level[0] else "DownBlockMotion" for level in depths],
        "layers_per_block": layers,
        "transformer_layers_per_block": [level[0] or 1 for level in depths],
        "transformer_layers_per_mid_block": config.middle_depth,
        "cross_attention_dim": config.context_dim,
        "use_linear_projection": config.linear,
        "attention_head_dim": HEADS,  # the count of heads, in diffusers' UNets of SD1.5
        "motion_max_seq_length": config.motion.max_frames,
        "motion_num_attention_heads": config.motion.heads,
    }


def _diffusers_key(key: str) -> str:
    canonical = canonical_key(key)
    if canonical is None:
        return key
    for ours, theirs in _NAMES:
        canonical = canonical.replace(ours, theirs)
    return canonical
