"""MotionLoRAs whose strength changes over the steps or from frame to frame: computed beside the weights, not merged into them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .curves import Curve


@dataclass(frozen=True, eq=False)
class LiveLora:
    """layers: linear layer of the motion model -> (up [out, rank], down [rank, in]), alpha folded in."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    strength: float
    over_frames: Curve | None
    over_steps: Curve | None

    def factor(self, x: Tensor, percent: float, frames: list[int], total: int) -> float | Tensor:
        """Of one clip with these of total frames, this far into the sampling (0 to 1): a number, or [frames, 1]."""
        constant = self.strength * (1.0 if self.over_steps is None else self.over_steps.at(percent))
        if self.over_frames is None:
            return constant
        values = self.over_frames.over_frames(total)
        return constant * x.new_tensor([values[frame] for frame in frames]).view(-1, 1)


@contextmanager
def loras_at_work(
    module: nn.Module, site: str, loras: Sequence[LiveLora], x: Tensor, percent: float, frames: list[int], total: int
) -> Iterator[None]:
    """While open, the motion module at site has these LoRAs, for clips that all show these of total frames.

    Forward hooks on its own layers, which see tokens [rows, frames, channels] of x's device and dtype.
    """
    with ExitStack() as hooks:
        for lora in loras:
            factor = lora.factor(x, percent, frames, total)
            for name, (up, down) in lora.layers.items():
                if name.startswith(f"{site}."):
                    layer = module.get_submodule(name.removeprefix(f"{site}.temporal_transformer."))
                    hook = layer.register_forward_hook(_adding(up.to(x), down.to(x), factor))
                    hooks.callback(hook.remove)
        yield


def _adding(up: Tensor, down: Tensor, factor: float | Tensor):
    def add(_: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        return output + F.linear(F.linear(arguments[0], down) * factor, up)

    return add
