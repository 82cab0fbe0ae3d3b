"""The demo's text encoder: CLIP-L's full shape, generated from a seed, made so that every word counts.

With random weights throughout, two captions that differ in one word come out nearly the same. So nothing is random here
but the words' vectors: one layer's attention, which looks at all earlier tokens alike, adds their mean to each token, and
the other layers pass on what they get. Start, end and padding tokens are zero; past the last word every position is
the sum of all words. Order is not told, which is why the world's colours and backgrounds have different names.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

SEED = 2
START, END = 49406, 49407
GAIN = 4.0  # of the mean against the token itself


def clip_l_state() -> dict[str, Tensor]:
    """Every weight that a checkpoint has after "cond_stage_model.transformer."."""
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip

    config = json.loads((Path(comfy.sd1_clip.__file__).with_name("sd1_clip_config.json")).read_text())
    model = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)
    state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    for key, value in state.items():
        if "norm" in key and key.endswith(".weight"):
            value.fill_(1.0)
    words = torch.randn(state["text_model.embeddings.token_embedding.weight"].shape, generator=_generator())
    words[[START, END]] = 0
    state["text_model.embeddings.token_embedding.weight"] = words
    identity = torch.eye(words.shape[1])
    state["text_model.encoder.layers.0.self_attn.v_proj.weight"] = identity
    state["text_model.encoder.layers.0.self_attn.out_proj.weight"] = GAIN * identity
    state["text_projection.weight"] = identity.clone()
    return state


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
