"""SparseCtrl checkpoints with seeded weights, and their oracle: diffusers' SparseControlNetModel with the original's norms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import SparseControlNetModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor

from diffdirector.motion.formats import canonical_key
from diffdirector.motion.sparse_formats import SparseKind

from .oracle import PerFrame
from .weights import seeded

TINY_CHANNELS, SD15_CHANNELS = (320, 320), (320, 640, 1280, 1280)


def sparse_state(kind: SparseKind, channels: tuple[int, ...] = TINY_CHANNELS, seed: int = 6) -> dict[str, Tensor]:
    """A SparseCtrl in diffusers' naming; the small one is for the UNet of weights.TINY."""
    return seeded({key: tuple(value.shape) for key, value in _skeleton(kind, channels).state_dict().items()}, seed)


def in_original_naming(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the original's training saves it."""
    positions = "attention_blocks.0.pos_encoder.pe"
    return {(canonical_key(key) or key).replace("pos_embed.pe", positions): value for key, value in state.items()}


def diffusers_sparse(
    kind: SparseKind, state: Mapping[str, Tensor], channels: tuple[int, ...] = TINY_CHANNELS
) -> SparseControlNetModel:
    """diffusers' SparseControlNetModel, as published, over the same tensors as state, in its naming."""
    model = _skeleton(kind, channels)
    model.load_state_dict(state, assign=True)
    return model.eval()


def sparse_oracle(
    kind: SparseKind, state: Mapping[str, Tensor], channels: tuple[int, ...] = TINY_CHANNELS
) -> SparseControlNetModel:
    """The same with the original's norms."""
    return with_the_originals_norms(diffusers_sparse(kind, state, channels))


def with_the_originals_norms(model: SparseControlNetModel) -> SparseControlNetModel:
    for module in list(model.modules()):
        if isinstance(module, AnimateDiffTransformer3D):
            module.norm = PerFrame(module.norm)
    return model


def _skeleton(kind: SparseKind, channels: tuple[int, ...]) -> SparseControlNetModel:
    with torch.device("meta"):
        return SparseControlNetModel(
            conditioning_channels=kind.channels - 1,
            use_simplified_condition_embedding=kind is SparseKind.RGB,
            block_out_channels=channels,
            down_block_types=(*["CrossAttnDownBlockMotion"] * (len(channels) - 1), "DownBlockMotion"),
            layers_per_block=1 if channels == TINY_CHANNELS else 2,
        )
