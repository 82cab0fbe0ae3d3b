"""What kind of model file a state dict is, told by its keys and shapes alone. Pure: no host, no files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from torch import Tensor

StateDict = dict[str, Tensor]

PIA_CHANNELS = 9
_PREFIXES = ("module.", "base_model.model.", "unet.")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "unet", "controlnet")
_LORA = re.compile(r"(?:[._]lora[._]|\.lora_|_lora\b|^lora_)")
_UNET_CONV_IN = re.compile(r"(?:^|\.)conv_in\.weight$")
_MOTION = re.compile(r"(?:motion_modules|temporal_attentions|temporal_transformer)")


class FileKind(Enum):
    """(what the file is, what to do with it)"""

    MOTION_MODEL = ("a motion model", "Load it with Load Motion Model, from models/animatediff_models.")
    MOTION_LORA = ("a MotionLoRA", "Load it with Motion LoRA, from models/animatediff_motion_lora.")
    SPATIAL_LORA = (
        "a LoRA for the image model (such as the v3 domain adapter)",
        "Load it with Domain Adapter or with the LoRA loader, from models/loras.",
    )
    SPARSECTRL = (
        "a SparseCtrl model",
        "It conditions on pictures or sketches. Load it with Load SparseCtrl, from models/controlnet.",
    )
    PIA = (
        "a PIA motion model (9-channel conv_in)",
        "It animates a picture. Load it with Load Motion Model, from models/animatediff_models, and give it the picture with PIA.",
    )
    LCM_I2V = (
        "an AnimateLCM-I2V model (with an image encoder)",
        "AnimateLCM-I2V is not supported yet. Use the text-to-video file, AnimateLCM_sd15_t2v; to animate a picture, PIA or SparseCtrl.",
    )
    CAMERACTRL = ("a CameraCtrl model", "CameraCtrl is not supported yet. Use a MotionLoRA for camera moves.")
    FANCYVIDEO = (
        "a FancyVideo model",
        "FancyVideo is not supported yet. Use an AnimateDiff motion model; to animate a picture, PIA or SparseCtrl.",
    )
    CONTROLNET = ("a ControlNet", "Load it with the ControlNet loader, from models/controlnet.")
    CHECKPOINT = ("an image checkpoint", "Load it with the checkpoint loader, from models/checkpoints.")
    UNET = (
        "an image UNet without motion modules",
        "Load it with the diffusion model loader, from models/diffusion_models.",
    )
    VAE = ("a VAE", "Load it with the VAE loader, from models/vae.")
    TEXT_ENCODER = ("a text encoder", "Load it with the CLIP loader, from models/text_encoders.")
    IP_ADAPTER = ("an IP-Adapter", "Load it with an IP-Adapter pack.")
    EMBEDDING = ("a textual-inversion embedding", "Put it into models/embeddings and name it in the prompt.")
    EMPTY = ("a file without any tensor", "The download or the training failed: get the file again.")
    UNKNOWN = ("of a kind that DiffDirector does not know", "Check that the right file was downloaded.")

    @property
    def label(self) -> str:
        return self.value[0]

    @property
    def advice(self) -> str:
        return self.value[1]


def wrong_kind_message(found: FileKind, expected: FileKind) -> str:
    return f"Expected {expected.label}, but this is {found.label}. {found.advice}"


def strip_prefixes(key: str) -> str:
    """The key without the prefixes that training frameworks put before it, however many."""
    while True:
        prefix = next((p for p in _PREFIXES if key.startswith(p)), None)
        if prefix is None:
            return key
        key = key[len(prefix) :]


def flatten(state: Mapping[Any, Any], depth: int = 4) -> StateDict:
    """The tensors of a checkpoint: {"state_dict": ...} and its like are opened, other folders join their keys with "."."""
    for wrapper in _WRAPPERS:
        nested = state.get(wrapper)
        if depth and isinstance(nested, Mapping) and len(nested) > len(state):
            return flatten(nested, depth - 1)
    flat: StateDict = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            flat[str(key)] = value
        elif isinstance(value, Mapping) and depth:
            flat |= {f"{key}.{inner}": tensor for inner, tensor in flatten(value, depth - 1).items()}
    return flat


def identify(state: StateDict) -> FileKind:
    """Tell what a flat state dict is. Never raises."""
    keys = [strip_prefixes(str(key)) for key in state]
    if not keys:
        return FileKind.EMPTY
    motion = [key for key in keys if _MOTION.search(key)]
    lora = [key for key in keys if _LORA.search(key)]
    if motion:
        return _identify_motion(state, keys, motion, lora)
    if lora:
        return FileKind.SPATIAL_LORA
    return _identify_still(state, keys)


def _identify_motion(state: StateDict, keys: list[str], motion: list[str], lora: list[str]) -> FileKind:
    if len(lora) == len(keys) or any(_LORA.search(key) for key in motion):
        return FileKind.MOTION_LORA
    if any(
        key.startswith(("controlnet_cond_embedding.", "controlnet_down_blocks.", "input_hint_block.")) for key in keys
    ):
        return FileKind.SPARSECTRL
    if any("qkv_merge" in key for key in keys):
        return FileKind.CAMERACTRL
    if any("FancyVideo" in key for key in keys):
        return FileKind.FANCYVIDEO
    if any(key.startswith("img_encoder.") for key in keys):
        return FileKind.LCM_I2V
    return FileKind.MOTION_MODEL if pia_convolution(state) is None else FileKind.PIA


def pia_convolution(state: StateDict) -> Tensor | None:
    """The weight of a UNet's first convolution where it has PIA's 9 channels: the noisy clip's 4, similarity's 1, the picture's 4."""
    found = (value for key, value in state.items() if _UNET_CONV_IN.search(key))
    return next((value for value in found if value.ndim == 4 and value.shape[1] == PIA_CHANNELS), None)


def _identify_still(state: StateDict, keys: list[str]) -> FileKind:
    def starts(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in keys)

    if starts("img_encoder."):
        return FileKind.LCM_I2V
    if starts("image_proj", "ip_adapter"):
        return FileKind.IP_ADAPTER
    if starts("controlnet_cond_embedding.weight") or _takes_a_mask(state):
        return FileKind.SPARSECTRL
    if starts("control_model.", "controlnet_", "input_hint_block.", "zero_convs."):
        return FileKind.CONTROLNET
    if starts("diffusion_model.", "model.diffusion_model."):
        return FileKind.CHECKPOINT
    if starts("down_blocks.", "input_blocks."):
        return FileKind.UNET
    if starts("first_stage_model.", "decoder.conv_in", "decoder.up", "taesd_decoder."):
        return FileKind.VAE
    text = (
        "text_model.",
        "cond_stage_model.",
        "transformer.text_model.",
        "encoder.layers.",
        "encoder.block.",
        "embeddings.",
    )
    if starts(*text):
        return FileKind.TEXT_ENCODER
    if starts("string_to_param", "emb_params", "clip_l", "clip_g"):
        return FileKind.EMBEDDING
    return FileKind.UNKNOWN


def _takes_a_mask(state: StateDict) -> bool:
    """A ControlNet whose condition has a fourth channel, the mask of SparseCtrl."""
    stems = [value for key, value in state.items() if key.endswith("controlnet_cond_embedding.conv_in.weight")]
    return any(stem.ndim == 4 and stem.shape[1] == 4 for stem in stems)
