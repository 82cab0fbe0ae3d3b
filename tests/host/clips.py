"""The host's text encoders with fewer layers and seeded weights: its tokenizers, prompt weights, embeddings and hooks are all there."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import torch
from comfy.supported_models_base import ClipTarget

from .weights import seeded

TARGETS = {
    "sd15": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
    "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
}
LAYERS = 3  # SDXL takes what the last but one gives


def small_clip(family: str, embeddings: Path | None = None):
    """A CLIP of "sd15" or "sdxl"; embeddings: the folder of textual inversions."""
    fewer = {"num_hidden_layers": LAYERS}
    clip = comfy.sd.CLIP(
        ClipTarget(*TARGETS[family]),
        embedding_directory=str(embeddings) if embeddings else None,
        model_options={"dtype": torch.float32, "clip_l_model_config": fewer, "clip_g_model_config": fewer},
    )
    model = clip.cond_stage_model
    state = seeded({key: tuple(value.shape) for key, value in model.state_dict().items()}, seed=6)
    model.load_state_dict(state)
    return clip
