"""One key mapper for every LoRA dialect: original AnimateDiff, MotionDirector's, diffusers, PEFT and kohya names, with or
without alpha. Pure: no host, no files.

Dialects of one and the same layer, down_blocks.0...attention_blocks.0.to_out.0 of a motion module:

    down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_out_lora.up.weight
    ... .attention_blocks.0.to_out.processor.0_lora.up.weight                                   (ExponentialML, kijai)
    unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight           (diffusers)
    base_model.model.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_out.0.lora_B.default.weight    (PEFT)
    lora_unet_down_blocks_0_motion_modules_0_..._attention_blocks_0_to_out_0.lora_up.weight                     (kohya)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..motion.identify import FileKind, flatten, identify, wrong_kind_message


class LoraFormatError(ValueError):
    """The file is not the LoRA that was asked for; the message says what it is and what to do."""


@dataclass(frozen=True)
class LoraLayer:
    """up [out, rank] (or [out, rank, 1, 1]) @ down [rank, in], times alpha / rank; alpha None means alpha == rank."""

    up: Tensor
    down: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


_SUFFIX = re.compile(r"^(?P<layer>.+?)[._](?:lora[._](?P<part>up|down|A|B)(?:\.[^.]+)??\.weight|(?P<alpha>alpha))$")
# A file may bring any pattern; an expression that backtracks without end would hang the host
_PLAIN_PATTERN = re.compile(r"(?:[\w|^$-]|\\\.|\.\*?)*")
_NOT_READ = "Other settings are not read: convert the file with the software that made it."
_PARTS = {"up": "up", "B": "up", "down": "down", "A": "down"}
# Applied to a layer's name with "_" for ".", in this order
_NAMES = (
    (re.compile(r"^.*?(?=(?:down_blocks|up_blocks|mid_block)_)"), ""),
    (re.compile(r"_processor(?=_)"), ""),
    (re.compile(r"_lora$"), ""),
    (re.compile(r"_to_out$"), "_to_out_0"),
)
_MOTION_NAMES = (
    (re.compile(r"temporal_attentions_"), "motion_modules_"),
    (re.compile(r"_temporal_transformer(?=_)"), ""),
    (re.compile(r"_attn(\d)_"), lambda match: f"_attention_blocks_{int(match[1]) - 1}_"),
)
_WRITTEN = (
    (re.compile(r"\.(to_[qkv])$"), r".processor.\1"),
    (re.compile(r"\.to_out\.0$"), ".processor.to_out"),
    (re.compile(r"(\.ff\.net\.0)\.proj$"), r"\1.processor.proj"),
    (re.compile(r"(\.ff\.net)\.2$"), r"\1.processor.2"),
)
_TO_DOTS = re.compile(r"(?<=\d)_|_(?=\d|motion_modules_|net_)")
_MOTION_PATH = re.compile(
    r"(?P<site>(?:(?:down|up)_blocks\.\d+|mid_block)\.motion_modules\.\d+)\."
    r"(?P<layer>proj_in|proj_out|transformer_blocks\.\d+\.(?:attention_blocks\.\d+\.(?:to_[qkv]|to_out\.0)|ff\.net\.(?:0\.proj|2)))"
)
ANIMATEDIFF, DIFFUSERS = "AnimateDiff", "diffusers"
DIALECTS = (ANIMATEDIFF, DIFFUSERS)


def layer_name(key: str) -> str:
    """The name that every dialect's key of one layer maps to: its path from the UNet's block on, "_" for ".".

    In a motion module: "down_blocks_0_motion_modules_0_transformer_blocks_0_attention_blocks_0_to_q".
    """
    name = key.replace(".", "_")
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    if "motion_modules_" in name or "temporal_attentions_" in name:
        for pattern, replacement in _MOTION_NAMES:
            name = pattern.sub(replacement, name)
    return name


def read_lora(
    state: Mapping[str, Any], expected: FileKind, metadata: Mapping[str, str] | None = None
) -> dict[str, LoraLayer]:
    """Layer name (see layer_name) -> its LoRA. expected: MOTION_LORA or SPATIAL_LORA.

    metadata: of a safetensors file; PEFT's alpha in it is honoured, as diffusers does. Raises LoraFormatError.
    """
    flat = flatten(state)
    kind = identify(flat)
    if kind is not expected:
        raise LoraFormatError(wrong_kind_message(kind, expected))
    peft = _peft_config(metadata or {})
    parts: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float | None] = {}
    for key, value in flat.items():
        match = _SUFFIX.match(key)
        if match is None and value.ndim == 0:
            continue  # a training step or the like
        if match is None:
            raise LoraFormatError(
                f"{key}: expected the up, down and alpha weights of a LoRA. Other kinds (LoHa, LoKr, DoRA) are not read by this node; "
                "the LoRA loader takes them for image models."
            )
        name, part = layer_name(match["layer"]), "alpha" if match["alpha"] else _PARTS[match["part"]]
        if part in parts.setdefault(name, {}):
            raise LoraFormatError(f"{name} is in the file twice: it holds several adapters. Save them one by one.")
        parts[name][part] = value
        if part == "alpha" and value.numel() != 1:
            raise LoraFormatError(f"{name}: expected one alpha, found {value.numel()}. The file is damaged.")
        if part == "down" and value.ndim:
            alphas[name] = _peft_alpha(peft, match["layer"], rank=value.shape[0])
    layers = {}
    for name, found in parts.items():
        if "up" not in found or "down" not in found:
            raise LoraFormatError(
                f"{name}: expected an up and a down weight, found only {', '.join(found)}. The file is incomplete: get it again."
            )
        layers[name] = LoraLayer(
            found["up"], found["down"], float(found["alpha"]) if "alpha" in found else alphas[name]
        )
    return layers


def lora_state(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """A trained LoRA's keys and weights. layers: by a layer's path in diffusers' UNet or the original's motion module.

    Layers of motion modules are named as the original and ExponentialML's MotionDirector name them, which AnimateDiff-Evolved and
    sd-webui-animatediff read; those of the image model as kohya does, which the host and diffusers read.
    There is no key for alpha in it: raises LoraFormatError for a layer whose alpha is not its rank.
    """
    state = {}
    for path, layer in layers.items():
        _check_folded(path, layer)
        if "motion_modules" in path:
            for pattern, replacement in _WRITTEN:
                path = pattern.sub(replacement, path)
            up, down = f"{path}_lora.up.weight", f"{path}_lora.down.weight"
        else:
            stem = "lora_unet_" + path.replace(".", "_")
            up, down = f"{stem}.lora_up.weight", f"{stem}.lora_down.weight"
        state |= {up: layer.up, down: layer.down}
    return state


def motion_lora_state(
    layers: Mapping[str, LoraLayer], dialect: str = ANIMATEDIFF, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A MotionLoRA file's keys and weights, one of DIALECTS; no alpha in it. layers: as read_lora gives them, alpha folded in.

    AnimateDiff: as lora_state names them; the original, AnimateDiff-Evolved and sd-webui-animatediff read it.
    diffusers: for AnimateDiffPipeline.load_lora_weights. Raises LoraFormatError.
    """
    if not layers:
        raise LoraFormatError("Expected a MotionLoRA with layers for motion modules, found none. Choose another file.")
    if dialect == DIFFUSERS:
        # diffusers 0.30 to 0.35 scale every layer as if it had the rank of the first, so all get the same
        rank = max(layer.rank for layer in layers.values())
        state = {}
        for name, layer in layers.items():
            _check_folded(name, layer)
            stem, missing = _diffusers_path(name), rank - layer.rank
            state[f"{stem}.lora.up.weight"] = F.pad(layer.up, (0, missing))
            state[f"{stem}.lora.down.weight"] = F.pad(layer.down, (0, 0, 0, missing))
    else:
        state = lora_state({_original_path(name): layer for name, layer in layers.items()})
    state = {key: value.to(dtype) for key, value in state.items()}
    for key, value in state.items():
        if not value.isfinite().all():
            raise LoraFormatError(
                f"{key}: expected finite numbers of at most {torch.finfo(dtype).max:g}, found others. Save it in fp32 or with smaller weights."
            )
    return state


def _check_folded(name: str, layer: LoraLayer) -> None:
    if layer.alpha not in (None, layer.rank):
        raise LoraFormatError(f"{name}: expected alpha folded into up, found alpha {layer.alpha}, rank {layer.rank}")


def _motion_path(name: str) -> tuple[str, str]:
    """layer_name undone: (where a motion module is, the layer's path in its transformer)."""
    match = _MOTION_PATH.fullmatch(_TO_DOTS.sub(".", name))
    if match is None:
        raise LoraFormatError(
            f"{name}: expected an attention, feed-forward or projection layer of a motion module, as "
            "down_blocks_0_motion_modules_0_transformer_blocks_0_attention_blocks_0_to_q; other layers have no name in MotionLoRA files. "
            "Use the file it came from as it is."
        )
    return match["site"], match["layer"]


def _original_path(name: str) -> str:
    return ".temporal_transformer.".join(_motion_path(name))


def _diffusers_path(name: str) -> str:
    path = ".".join(("unet", *_motion_path(name)))
    return re.sub(r"attention_blocks\.(\d+)", lambda match: f"attn{int(match[1]) + 1}", path)


def check_shape(name: str, layer: LoraLayer, weight_shape: torch.Size) -> None:
    """Raise LoraFormatError unless up @ down has the weight's shape (1x1 convolutions count as matrices)."""
    if layer.up.ndim < 2 or layer.down.ndim < 2 or layer.up.shape[1] != layer.rank:
        shapes = f"{list(layer.up.shape)} and {list(layer.down.shape)}"
        raise LoraFormatError(
            f"{name}: expected up [out, rank] and down [rank, in], found {shapes}. The file is damaged."
        )
    found = (layer.up.shape[0], layer.down.shape[1])
    if found != tuple(weight_shape[:2]):
        raise LoraFormatError(
            f"{name}: expected a LoRA for a {' x '.join(map(str, weight_shape[:2]))} matrix, found {' x '.join(map(str, found))}. "
            "It was made for another model family (SD1.5, SDXL)."
        )


def _peft_config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's LoraConfig of the UNet, as diffusers (>= 0.34) stores it; {} without one."""
    try:
        config = json.loads(metadata["lora_adapter_metadata"])
    except (KeyError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict):
        return {}
    of_unet = {key.removeprefix("unet."): value for key, value in config.items() if key.startswith("unet.")}
    return of_unet or {key: value for key, value in config.items() if "." not in key}


def _is_plain(pattern: str) -> bool:
    return _PLAIN_PATTERN.fullmatch(pattern) is not None and pattern.count("*") <= 3


def _peft_alpha(config: Mapping[str, Any], layer: str, rank: int) -> float | None:
    """alpha of a layer, its pattern and rank-stabilised scale (arXiv:2312.03732) as PEFT applies them; None: alpha is rank."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(_is_plain(key) for key in patterns):
        raise LoraFormatError(
            f"alpha_pattern: expected layer names with . and .* only, found {list(patterns)[:3]}. {_NOT_READ}"
        )
    matching = [value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)]
    alpha = matching[0] if matching else config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        return None
    return alpha * rank**0.5 if config.get("use_rslora") else float(alpha)
