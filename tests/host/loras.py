"""Seeded LoRAs for real layouts, written in the dialects that people's files come in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .oracle import diffusers_motion_key

Lora = dict[str, tuple[Tensor, Tensor]]  # module path -> (up, down)


def motion_lora(motion: Mapping[str, Tensor], rank: int, seed: int) -> Lora:
    """Over every attention matrix of a canonical motion model, as the official camera MotionLoRAs are."""
    targets = [key.removesuffix(".weight") for key in motion if ".to_" in key and key.endswith(".weight")]
    return _lora({target: motion[f"{target}.weight"] for target in targets}, rank, seed)


def spatial_lora(config: dict, unet: Mapping[str, Tensor], rank: int, seed: int) -> Lora:
    """Over attn1 and attn2 of every spatial transformer, with diffusers' names, as the v3 domain adapter is."""
    names = _diffusers_names(config)
    targets = [name for name in names if ".to_" in name and name.endswith(".weight") and names[name] in unet]
    return _lora({name.removesuffix(".weight"): unet[names[name]] for name in targets}, rank, seed)


def in_original_naming(lora: Lora, prefix: str = "") -> dict[str, Tensor]:
    """...attention_blocks.0.processor.to_q_lora.{down,up}.weight"""
    state = {}
    for path, (up, down) in lora.items():
        stem = prefix + path.replace(".to_", ".processor.to_").removesuffix(".0") + "_lora"
        state |= {f"{stem}.up.weight": up, f"{stem}.down.weight": down}
    return state


def in_diffusers_naming(lora: Lora, alpha: float) -> dict[str, Tensor]:
    """unet....attn1.to_q.lora_{A,B}.weight with an alpha"""
    state = {}
    for path, (up, down) in lora.items():
        stem = "unet." + diffusers_motion_key(path)
        state |= {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down, f"{stem}.alpha": torch.tensor(alpha)}
    return state


def merged(state: Mapping[str, Tensor], lora: Lora, strength: float) -> dict[str, Tensor]:
    return dict(state) | {
        f"{path}.weight": state[f"{path}.weight"] + strength * up @ down for path, (up, down) in lora.items()
    }


def with_host_names(config: dict, lora: Lora) -> Lora:
    names = _diffusers_names(config)
    return {names[f"{path}.weight"].removesuffix(".weight"): pair for path, pair in lora.items()}


def _diffusers_names(config: dict) -> dict[str, str]:
    from comfy.utils import unet_to_diffusers

    return unet_to_diffusers(config)


def _lora(weights: Mapping[str, Tensor], rank: int, seed: int) -> Lora:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * 0.5 * columns**-0.5

    return {path: (matrix(weight.shape[0], rank), matrix(rank, weight.shape[1])) for path, weight in weights.items()}
