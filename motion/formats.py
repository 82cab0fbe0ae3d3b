"""Any motion checkpoint -> (MotionConfig, canonical state dict). Pure: no host, no files.

A file is recognised by its keys and shapes, never by its name. The canonical layout is that of the original
AnimateDiff (github.com/guoyww/AnimateDiff, animatediff/models/motion_module.py), without any prefix:

    {down_blocks.I | mid_block | up_blocks.I}.motion_modules.J.temporal_transformer.
        norm, proj_in, proj_out
        transformer_blocks.K.attention_blocks.A.{to_q, to_k, to_v, to_out.0, pos_encoder.pe}
        transformer_blocks.K.{norms.A, ff.net.0.proj, ff.net.2, ff_norm}

A PIA has one tensor more, conv_in.weight: the 5 of its 9 channels that see the picture. The other 4 and the bias are the
checkpoint's, as in the original with a checkpoint of one's own (motion/pia.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from .identify import PIA_CHANNELS, FileKind, StateDict, flatten, identify, pia_convolution, wrong_kind_message

SINUSOIDAL_LENGTH = 64  # AnimateLCM stores no encoding and was trained with one this long
NORM_GROUPS = 32
PICTURE_CHANNELS = 5  # of a PIA: how like the picture a frame shall be, and the picture's latent
VERSION_KEY = "motion_version"  # in the metadata of files of ours
DEFAULT_HEADS = 8  # not readable from shapes; every published motion module has 8

_DAMAGED = "The file is damaged or of an unknown kind."
_MOTION_KEY = re.compile(
    r"(?:^|\.)(?P<block>(?:down_blocks|up_blocks)\.\d+|mid_block)"
    r"\.(?:motion_modules|temporal_attentions)\.(?P<index>\d+)"
    r"\.(?:temporal_transformer\.)?(?P<rest>.+)$"
)
# diffusers' MotionAdapter names, inside transformer_blocks.K
_DIFFUSERS_NAMES = (
    (re.compile(r"\battn1\."), "attention_blocks.0."),
    (re.compile(r"\battn2\."), "attention_blocks.1."),
    (re.compile(r"\bnorm1\."), "norms.0."),
    (re.compile(r"\bnorm2\."), "norms.1."),
    (re.compile(r"\bnorm3\."), "ff_norm."),
    (re.compile(r"\bpos_encoder\.positional_encoding$"), "pos_encoder.pe"),  # HotShot-XL
)


class MotionFormatError(ValueError):
    """The file is not a motion model that can be used; the message says what it is and what to do."""


class Version(str, Enum):
    """The families of motion modules, as far as their content tells them apart."""

    V1 = "AnimateDiff v1"
    V2 = "AnimateDiff v2"
    V3 = "AnimateDiff v3"
    SDXL = "AnimateDiff SDXL-beta"
    HOTSHOT = "HotShot-XL"
    LCM = "AnimateLCM"
    PIA = "PIA"


_ALIKE = {Version.V1: Version.V3, Version.V3: Version.V1}  # told apart by their lengths, which training may change


@dataclass(frozen=True)
class SiteConfig:
    """The shape of one motion module: where it sits is its key in MotionConfig.sites."""

    channels: int
    inner: int
    ff_inner: int
    depth: int
    attentions: int


@dataclass(frozen=True)
class MotionConfig:
    """What a motion checkpoint holds, read from its tensors.

    sites: canonical prefix ("down_blocks.0.motion_modules.1", "mid_block.motion_modules.0", ...) -> shape.
    max_frames: length of the positional encoding, the longest clip one window can hold.
    """

    version: Version
    sites: Mapping[str, SiteConfig]
    max_frames: int
    heads: int = DEFAULT_HEADS
    stored_positions: bool = True

    @property
    def down_channels(self) -> tuple[int, ...]:
        """Channels per down block: (320, 640, 1280, 1280) for SD1.5."""
        levels = {
            int(site.split(".")[1]): shape.channels
            for site, shape in self.sites.items()
            if site.startswith("down_blocks.")
        }
        return tuple(levels[level] for level in sorted(levels))

    @property
    def norm_across_frames(self) -> bool:
        """Whether the original normalises the UNet's ResBlocks across the frames of a clip.

        AnimateDiff v1 (use_inflated_groupnorm: false), and HotShot-XL, whose ResnetBlock3D applies a plain
        GroupNorm to [b, c, f, h, w] (github.com/hotshotco/Hotshot-XL, hotshot_xl/models/resnet.py). PIA too
        (github.com/open-mmlab/PIA, animatediff/models/resnet.py), though diffusers takes its frames one by one.
        """
        return self.version in (Version.V1, Version.HOTSHOT, Version.PIA)

    @property
    def takes_picture(self) -> bool:
        return self.version is Version.PIA

    def describe(self) -> str:
        return f"{self.version.value}, {len(self.sites)} modules, up to {self.max_frames} frames"


def canonical_key(key: str) -> str | None:
    """The canonical name of a key of any dialect, whatever its prefix, or None when it belongs to no motion module."""
    match = _MOTION_KEY.search(key)
    if match is None:
        return None
    rest = match["rest"]
    for pattern, replacement in _DIFFUSERS_NAMES:
        rest = pattern.sub(replacement, rest)
    return f"{match['block']}.motion_modules.{match['index']}.temporal_transformer.{rest}"


def read_motion_model(
    state: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> tuple[MotionConfig, StateDict]:
    """Recognise a loaded checkpoint and bring it into the canonical layout.

    state: key -> tensor, or a training checkpoint that holds one ("state_dict"). metadata: of a safetensors file;
    "num_attention_heads" and VERSION_KEY are honoured. Raises MotionFormatError for anything that is not a usable motion model.
    """
    flat = flatten(state)
    kind = identify(flat)
    if kind not in (FileKind.MOTION_MODEL, FileKind.PIA):
        raise MotionFormatError(wrong_kind_message(kind, expected=FileKind.MOTION_MODEL))
    metadata = metadata or {}
    config, canonical = motion_modules(flat, metadata.get("num_attention_heads", DEFAULT_HEADS))
    other = _ALIKE.get(config.version)
    if other is not None and other.name == metadata.get(VERSION_KEY):
        config = replace(config, version=other)
    convolution = pia_convolution(flat)
    if convolution is None:
        return config, canonical
    expected = [*config.down_channels[:1], PIA_CHANNELS, 3, 3]
    if list(convolution.shape) != expected:
        raise MotionFormatError(
            f"conv_in.weight: expected shape {expected}, found {list(convolution.shape)}. {_DAMAGED}"
        )
    canonical["conv_in.weight"] = convolution[:, -PICTURE_CHANNELS:].contiguous()
    return replace(config, version=Version.PIA), canonical


def motion_modules(
    flat: StateDict, heads: str | int = DEFAULT_HEADS, unstored_length: int = SINUSOIDAL_LENGTH
) -> tuple[MotionConfig, StateDict]:
    """The motion modules among the tensors of a file, whatever else it holds, in the canonical layout.

    unstored_length: of the positional encoding where the file stores none. Raises MotionFormatError.
    """
    canonical = _canonical_state(flat)
    sites = _sites(canonical)
    if not sites:
        raise MotionFormatError(wrong_kind_message(FileKind.UNKNOWN, expected=FileKind.MOTION_MODEL))
    lengths = {value.shape[1] for key, value in canonical.items() if key.endswith("pos_encoder.pe")}
    version = _version(flat, sites, lengths)
    config = MotionConfig(
        version, sites, min(lengths, default=unstored_length), _heads(heads, sites), stored_positions=bool(lengths)
    )
    if not lengths:
        canonical |= _sinusoidal_positions(config)
    _check_complete(config, canonical)
    return config, canonical


def expected_shapes(config: MotionConfig) -> dict[str, tuple[int, ...]]:
    """Every canonical key of a motion model of this config with its shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    if config.takes_picture:
        shapes["conv_in.weight"] = (config.down_channels[0], PICTURE_CHANNELS, 3, 3)
    for site, shape in config.sites.items():
        root = f"{site}.temporal_transformer"
        c, inner = shape.channels, shape.inner
        shapes |= (
            _affine(f"{root}.norm", (c,))
            | _affine(f"{root}.proj_in", (inner, c))
            | _affine(f"{root}.proj_out", (c, inner))
        )
        for depth in range(shape.depth):
            block = f"{root}.transformer_blocks.{depth}"
            for index in range(shape.attentions):
                attention = f"{block}.attention_blocks.{index}"
                shapes |= {f"{attention}.to_{name}.weight": (inner, inner) for name in "qkv"}
                shapes |= _affine(f"{attention}.to_out.0", (inner, inner)) | _affine(f"{block}.norms.{index}", (inner,))
                shapes[f"{attention}.pos_encoder.pe"] = (1, config.max_frames, inner)
            shapes |= _affine(f"{block}.ff.net.0.proj", (2 * shape.ff_inner, inner))
            shapes |= _affine(f"{block}.ff.net.2", (inner, shape.ff_inner)) | _affine(f"{block}.ff_norm", (inner,))
    return shapes


def sinusoidal_encoding(length: int, dim: int) -> Tensor:
    """The encoding of "Attention Is All You Need" as AnimateDiff computes it: [1, length, dim]."""
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000.0) / dim))
    encoding = torch.zeros(1, length, dim)
    encoding[0, :, 0::2] = torch.sin(position * frequency)
    encoding[0, :, 1::2] = torch.cos(position * frequency)
    return encoding


def _affine(name: str, weight_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight_shape, f"{name}.bias": weight_shape[:1]}


def _canonical_state(flat: StateDict) -> StateDict:
    canonical: StateDict = {}
    shared_positions: StateDict = {}
    for key, value in flat.items():
        name = canonical_key(key)
        if name is None:
            continue
        if name.endswith(".pe") and value.ndim == 2:
            value = value.unsqueeze(0)
        if name.endswith(".pe") and (value.ndim != 3 or value.numel() == 0):
            raise MotionFormatError(
                f"{name}: expected shape [1, frames, channels], found {list(value.shape)}. {_DAMAGED}"
            )
        if name.endswith(".pos_embed.pe"):  # diffusers keeps one per transformer block, for both attentions
            shared_positions[name.removesuffix("pos_embed.pe")] = value
            continue
        if value.ndim == 4 and value.shape[2:] == (1, 1):  # a linear layer stored as a 1x1 convolution
            value = value[:, :, 0, 0]
        canonical[name] = value
    for block, value in shared_positions.items():
        indices = {key[len(block) :].split(".")[1] for key in canonical if key.startswith(f"{block}attention_blocks.")}
        canonical |= {f"{block}attention_blocks.{index}.pos_encoder.pe": value for index in indices}
    return canonical


def _sites(canonical: StateDict) -> dict[str, SiteConfig]:
    sites: dict[str, SiteConfig] = {}
    roots = sorted({key.split(".temporal_transformer.")[0] for key in canonical}, key=_site_order)
    for site in roots:
        root = f"{site}.temporal_transformer"
        blocks = {key[len(root) :].split(".")[2] for key in canonical if key.startswith(f"{root}.transformer_blocks.")}
        first = f"{root}.transformer_blocks.0"
        attentions = {
            key[len(first) :].split(".")[2] for key in canonical if key.startswith(f"{first}.attention_blocks.")
        }
        try:
            inner, channels = canonical[f"{root}.proj_in.weight"].shape
            ff_inner = canonical[f"{first}.ff.net.2.weight"].shape[1]
        except (KeyError, ValueError, IndexError) as error:
            raise MotionFormatError(_incomplete(f"{site}: {error}")) from None
        if channels % NORM_GROUPS:
            raise MotionFormatError(
                f"{site}: expected a multiple of {NORM_GROUPS} channels, found {channels}. {_DAMAGED}"
            )
        sites[site] = SiteConfig(channels, inner, ff_inner, len(blocks), len(attentions))
    return sites


def _site_order(site: str) -> tuple[int, int, int]:
    parts = site.split(".")
    return (
        ("down_blocks", "mid_block", "up_blocks").index(parts[0]),
        int(parts[1]) if len(parts) == 4 else 0,
        int(parts[-1]),
    )


def _version(flat: StateDict, sites: Mapping[str, SiteConfig], lengths: set[int]) -> Version:
    if any(".temporal_attentions." in key for key in flat):
        return Version.HOTSHOT
    levels = 1 + max((int(site.split(".")[1]) for site in sites if "_blocks." in site.split(".motion")[0]), default=0)
    if levels == 3:
        return Version.SDXL
    if any(site.startswith("mid_block.") for site in sites):
        # Files of v2 store their encoding; AnimateLCM, of the same structure, is published without.
        return Version.V2 if lengths else Version.LCM
    # v3 is published with 32; fine-tunes of v1 come with other lengths
    return Version.V3 if lengths <= {32} else Version.V1


def _sinusoidal_positions(config: MotionConfig) -> StateDict:
    shapes = expected_shapes(config)
    return {key: sinusoidal_encoding(*shape[1:]) for key, shape in shapes.items() if key.endswith("pos_encoder.pe")}


def _check_complete(config: MotionConfig, canonical: StateDict) -> None:
    shapes = expected_shapes(config)
    missing = [key for key in shapes if key not in canonical]
    if missing:
        raise MotionFormatError(
            _incomplete(f"{len(missing)} of {len(shapes)} tensors missing, the first is {missing[0]}")
        )
    unknown = [key for key in canonical if key not in shapes]
    if unknown:
        raise MotionFormatError(
            f"This motion model holds parts that DiffDirector does not know, so its result would be wrong: {unknown[0]} "
            f"({len(unknown)} such tensors). Expected the modules of AnimateDiff v1, v2, v3, SDXL-beta, HotShot-XL or AnimateLCM."
        )
    for key, shape in shapes.items():
        found = tuple(canonical[key].shape)
        if found != shape and not (key.endswith(".pe") and found[0::2] == shape[0::2]):
            raise MotionFormatError(f"{key}: expected shape {list(shape)}, found {list(found)}. {_DAMAGED}")
        if key.endswith(".pe"):
            canonical[key] = canonical[key][:, : config.max_frames]


def _heads(given: str | int, sites: Mapping[str, SiteConfig]) -> int:
    heads = int(given) if str(given).isdecimal() else 0
    if heads < 1 or any(shape.inner % heads for shape in sites.values()):
        raise MotionFormatError(
            f"The file's metadata gives {given!r} attention heads, which cannot be; expected a divisor of its channels."
        )
    return heads


def _incomplete(detail: str) -> str:
    return f"This motion model is incomplete ({detail}). The download was probably cut short: compare the file's size and get it again."
