"""Any SparseCtrl checkpoint -> (SparseConfig, state dict of the host's names). Pure: no host, no files.

SparseCtrl (arXiv:2311.16933; github.com/guoyww/AnimateDiff, animatediff/models/sparse_controlnet.py) is the encoder of
an SD1.5 UNet with motion modules on the way down, and a stem for the condition with its mask as one more channel.
The original and diffusers' SparseControlNetModel name its image layers alike; their motion modules: motion/formats.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .formats import MotionConfig, MotionFormatError, canonical_key, motion_modules
from .identify import FileKind, StateDict, flatten, identify, strip_prefixes, wrong_kind_message

MAX_FRAMES = 32  # the original's, for files that store no positional encoding
HEADS = 8  # of the image layers; not readable from shapes, every SD1.5 has 8

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding": "input_hint_block.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}
_MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}


class SparseKind(Enum):
    """(what a SparseCtrl is conditioned on, channels of that with the mask)"""

    RGB = ("pictures", 5)
    SCRIBBLE = ("scribbles", 4)

    @property
    def label(self) -> str:
        return self.value[0]

    @property
    def channels(self) -> int:
        return self.value[1]


@dataclass(frozen=True)
class SparseConfig:
    """The shape of a SparseCtrl, read from its tensors.

    levels: channels and layers of each. depths: spatial transformer blocks of each layer. middle_depth: -1 for a middle of
    one layer without any. motion: canonical sites.
    """

    kind: SparseKind
    model_channels: int
    levels: tuple[tuple[int, int], ...]
    depths: tuple[int, ...]
    middle_depth: int
    context_dim: int
    linear: bool
    motion: MotionConfig

    @property
    def unet(self) -> dict[str, Any]:
        """Those settings of the host's UNet config that an image model shares with it."""
        return {
            "model_channels": self.model_channels,
            "channel_mult": [channels // self.model_channels for channels, _ in self.levels],
            "num_res_blocks": [layers for _, layers in self.levels],
            "context_dim": self.context_dim,
        }

    @property
    def sites(self) -> dict[int, str]:
        """Input block of the host's numbering -> the motion module after it."""
        layers = [layers for _, layers in self.levels]
        return {
            _input_block(layers, level, layer): f"down_blocks.{level}.motion_modules.{layer}"
            for level, count in enumerate(layers)
            for layer in range(count)
            if f"down_blocks.{level}.motion_modules.{layer}" in self.motion.sites
        }

    def describe(self) -> str:
        return (
            f"SparseCtrl for {self.kind.label}, {len(self.sites)} motion modules, up to {self.motion.max_frames} frames"
        )


def read_sparse_ctrl(state: Mapping[Any, Any]) -> tuple[SparseConfig, StateDict]:
    """Recognise a loaded checkpoint; its tensors by the names of the host's ControlNet, and of motion/formats.py after "motion.".

    Raises MotionFormatError, with what the file is, for anything that is not a usable SparseCtrl.
    """
    flat = {strip_prefixes(key): value for key, value in flatten(state).items()}
    kind = identify(flat)
    if kind is not FileKind.SPARSECTRL:
        raise MotionFormatError(wrong_kind_message(kind, expected=FileKind.SPARSECTRL))
    if not any(canonical_key(key) for key in flat):
        raise MotionFormatError(
            "This SparseCtrl has no motion modules, so it cannot carry a picture on. Get the original file again."
        )
    motion, motion_state = motion_modules(flat, unstored_length=MAX_FRAMES)
    image = {key: value for key, value in flat.items() if canonical_key(key) is None}
    try:
        config = _config(image, motion)
    except (KeyError, IndexError, StopIteration) as error:
        raise MotionFormatError(
            f"This SparseCtrl is incomplete or in an unknown layout ({error}). Get the file again."
        ) from None
    strangers = sorted(set(motion.sites) - set(config.sites.values()))
    if strangers:
        raise MotionFormatError(
            f"Expected motion modules on the way down alone, found one at {strangers[0]}. Get the original file."
        )
    layers = [layers for _, layers in config.levels]
    host = {host_key(key, layers): value for key, value in image.items()}
    return config, host | {f"motion.{key}": value for key, value in motion_state.items()}


def _config(image: StateDict, motion: MotionConfig) -> SparseConfig:
    levels, depths = [], []
    while f"down_blocks.{len(levels)}.resnets.0.conv1.weight" in image:
        root = f"down_blocks.{len(levels)}"
        layers = _count(image, f"{root}.resnets")
        levels.append((image[f"{root}.resnets.0.conv1.weight"].shape[0], layers))
        depths += [_count(image, f"{root}.attentions.{layer}.transformer_blocks") for layer in range(layers)]
    attention = next(key for key in image if key.endswith("transformer_blocks.0.attn2.to_k.weight"))
    proj_in = f"{attention.split('.transformer_blocks')[0]}.proj_in.weight"
    middle = _count(image, "mid_block.attentions.0.transformer_blocks")
    return SparseConfig(
        _kind(image),
        image["conv_in.weight"].shape[0],
        tuple(levels),
        tuple(depths),
        middle or -1,
        image[attention].shape[1],
        image[proj_in].ndim == 2,
        motion,
    )


def _kind(image: StateDict) -> SparseKind:
    single, stack = (image.get(f"controlnet_cond_embedding.{name}") for name in ("weight", "conv_in.weight"))
    kind, stem = (SparseKind.RGB, single) if single is not None else (SparseKind.SCRIBBLE, stack)
    if stem is None:
        raise KeyError("controlnet_cond_embedding.weight")
    if stem.shape[1] != kind.channels:
        raise MotionFormatError(
            f"controlnet_cond_embedding: expected {kind.channels} channels, {kind.label} and their mask; found {stem.shape[1]}. "
            "Get the original file, v3_sd15_sparsectrl_rgb or v3_sd15_sparsectrl_scribble."
        )
    return kind


def _count(image: StateDict, root: str) -> int:
    return len({key[len(root) + 1 :].split(".")[0] for key in image if key.startswith(f"{root}.")})


def _input_block(layers: list[int], level: int, layer: int) -> int:
    """The host counts the first convolution, every layer and every downsampler."""
    return 1 + sum(count + 1 for count in layers[:level]) + layer


def host_key(key: str, layers: list[int]) -> str:
    """The host's name, in its ControlNet, of a tensor of a file whose levels have so many layers; motion modules' go behind "motion."."""
    if canonical_key(key) is not None:
        return f"motion.{canonical_key(key)}"
    module, _, leaf = key.rpartition(".")
    if module in _SINGLE:
        return f"{_SINGLE[module]}.{leaf}"
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)", module):
        return f"zero_convs.{match[1]}.0.{leaf}"
    if match := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)", module):
        return f"input_hint_block.{2 * int(match[1]) + 2}.{leaf}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", module):
        return f"input_blocks.{_input_block(layers, int(match[1]), layers[int(match[1])])}.0.op.{leaf}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", module):
        block = f"input_blocks.{_input_block(layers, int(match[1]), int(match[3]))}.{int(match[2] == 'attentions')}"
        return f"{block}.{_RESNET.get(match[4], match[4])}.{leaf}"
    if match := re.fullmatch(r"mid_block\.(\w+\.\d+)\.(.+)", module):
        return f"{_MIDDLE.get(match[1], match[1])}.{_RESNET.get(match[2], match[2])}.{leaf}"
    return key
