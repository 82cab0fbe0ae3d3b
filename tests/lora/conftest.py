"""What the tests of LoRA files share."""

from __future__ import annotations

import pytest
from diffusers import UNetMotionModel


@pytest.fixture
def unet() -> UNetMotionModel:
    return UNetMotionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, num_attention_heads=4,
        motion_max_seq_length=32, down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )  # fmt: skip
