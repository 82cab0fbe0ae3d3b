"""LoRA as the host's weight patches: applied when the host loads the model, gone when the node is."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..motion.curves import Curve
from ..motion.formats import MotionFormatError
from ..motion.identify import FileKind
from ..motion.live_lora import LiveLora
from ..motion.module import MotionModelHandle, load_tensors
from .formats import LoraFormatError, LoraLayer, check_shape, layer_name, read_lora
from .merge import merge


@dataclass(frozen=True)
class MotionLora:
    """One MotionLoRA with its strength; a MOTION_LORA of the graph is a tuple of them.

    over_frames, over_steps: factors on the strength, see motion/strength.py.
    """

    name: str
    layers: Mapping[str, LoraLayer]
    strength: float
    over_frames: Curve | None = None
    over_steps: Curve | None = None

    @property
    def changes(self) -> bool:
        return self.over_frames is not None or self.over_steps is not None


def load_lora(path: str, name: str, expected: FileKind) -> dict[str, LoraLayer]:
    """Read a LoRA file of any dialect. Raises LoraFormatError, naming the file."""
    try:
        state, metadata = load_tensors(path)
        return read_lora(state, expected, metadata)
    except (LoraFormatError, MotionFormatError) as error:
        raise LoraFormatError(f"{name}: {error}") from None


def merge_motion_loras(loras: Iterable[MotionLora], rank: int = 0) -> MotionLora:
    """A chain as one MotionLoRA of strength 1 that does the same; rank as merge takes it. Raises LoraFormatError."""
    loras = tuple(loras)
    for lora in loras:
        if lora.changes:
            raise LoraFormatError(
                f"{lora.name}: its strength changes over frames or steps, which a file cannot hold. Merge or save it without curves."
            )
    name = " + ".join(f"{lora.strength:g} x {lora.name}" for lora in loras)
    try:
        return MotionLora(name, merge([(_motion_layers(lora), lora.strength) for lora in loras], rank), 1.0)
    except LoraFormatError as error:
        raise LoraFormatError(f"{name}: {error}") from None


def with_motion_loras(handle: MotionModelHandle, loras: Iterable[MotionLora]) -> MotionModelHandle:
    """The motion model with MotionLoRAs; the given handle keeps its own weights.

    They are patched into the weights, but for those whose strength changes. Raises LoraFormatError when one does not fit.
    """
    loras = tuple(loras)
    if not loras:
        return handle
    patcher, live = handle.patcher.clone(), list[LiveLora]()
    weights = {name: value.shape for name, value in patcher.model.state_dict().items() if name.endswith(".weight")}
    targets = {layer_name(name.removesuffix(".weight")): name for name in weights}
    for lora in loras:
        layers = _motion_layers(lora)
        matched = _matched(layers, targets)
        unmatched = [name for name in layers if name not in matched]
        # v2 MotionLoRAs also train the middle block, which v1 and v3 modules do not have
        elsewhere = [name for name in unmatched if not name.startswith("mid_block_")]
        if elsewhere or not matched:
            strangers = unmatched or list(lora.layers)
            raise LoraFormatError(
                f"{lora.name} does not fit {handle.name} ({handle.config.describe()}): {len(strangers)} of its {len(lora.layers)} layers have no "
                f"counterpart, the first is {strangers[0]}. The official camera MotionLoRAs are made for v2 (mm_sd_v15_v2)."
            )
        if unmatched:
            logging.info(
                "%s: %d layers for the middle block left out, %s has none", lora.name, len(unmatched), handle.name
            )
        for name in matched:
            check_shape(f"{lora.name}: {name}", layers[name], weights[targets[name]])
        if lora.changes:
            factors = {targets[name].removesuffix(".weight"): _factors(layers[name]) for name in matched}
            live.append(LiveLora(factors, lora.strength, lora.over_frames, lora.over_steps))
        else:
            _add_patches(patcher, layers, targets, lora.strength)
    return replace(handle, patcher=patcher, live=(*handle.live, *live))


def apply_domain_adapter(
    model: ModelPatcher, name: str, layers: Mapping[str, LoraLayer], strength: float
) -> ModelPatcher:
    """A clone of model with a LoRA on its image UNet: the domain adapter of AnimateDiff v3 (arXiv:2307.04725, section 4.1).

    strength 0 returns model as it is: the adapter absorbs the look of the training videos and is meant to be removable.
    """
    if strength == 0:
        return model
    result = model.clone()
    targets = {}
    for diffusers_name, host_name in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items():
        if diffusers_name.endswith(".weight"):
            targets[layer_name(diffusers_name.removesuffix(".weight"))] = f"diffusion_model.{host_name}"
    weights = result.model.state_dict()
    targets = {name: key for name, key in targets.items() if key in weights}
    unmatched = [name for name in layers if name not in targets]
    if unmatched:
        raise LoraFormatError(
            f"{name} does not fit this checkpoint: {len(unmatched)} of its {len(layers)} layers have no counterpart in its UNet, the first is "
            f"{unmatched[0]}. The v3 adapter is made for SD1.5; other LoRAs are loaded with the LoRA loader."
        )
    for layer in layers:
        check_shape(f"{name}: {layer}", layers[layer], weights[targets[layer]].shape)
    _add_patches(result, layers, targets, strength)
    return result


def _motion_layers(lora: MotionLora) -> dict[str, LoraLayer]:
    layers = {name: layer for name, layer in lora.layers.items() if "motion_modules" in name}
    spatial = len(lora.layers) - len(layers)
    if spatial:
        logging.warning("%s also holds %d layers for the image model, which are left out", lora.name, spatial)
    return layers


def _factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """(up [out, rank], down [rank, in]) of a linear layer, alpha folded into up."""
    scale = 1.0 if layer.alpha is None else layer.alpha / layer.down.shape[0]
    return layer.up.flatten(1) * scale, layer.down.flatten(1)


def _matched(layers: Mapping[str, LoraLayer], targets: Mapping[str, str]) -> list[str]:
    return [name for name in layers if name in targets]


def _add_patches(
    patcher: ModelPatcher, layers: Mapping[str, LoraLayer], targets: Mapping[str, str], strength: float
) -> None:
    matched = _matched(layers, targets)
    state = {}
    for name in matched:
        layer = layers[name]
        state |= {f"{name}.lora_up.weight": layer.up, f"{name}.lora_down.weight": layer.down}
        if layer.alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(layer.alpha)
    patches = comfy.lora.load_lora(state, {name: targets[name] for name in matched})
    patcher.add_patches(patches, strength)
