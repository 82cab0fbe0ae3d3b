"""Trainable LoRA (arXiv:2106.09685) beside frozen layers, which stay what and where they are. Pure: no host."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .formats import LoraLayer


class LoraBranch(nn.Module):
    """up @ down * alpha / rank, added to a frozen linear layer or 1x1 convolution. down is random, up zero: it starts as nothing."""

    def __init__(self, layer: nn.Module, rank: int, alpha: float, dropout: float, generator: Generator) -> None:
        super().__init__()
        weight: Tensor = layer.weight  # type: ignore[assignment]
        out_width, in_width = weight.shape[:2]
        self.rank, self.scale, self.dropout = rank, alpha / rank, dropout
        self.is_convolution = weight.ndim == 4
        down = torch.randn(rank, in_width, generator=generator) / rank
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(out_width, rank, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """What to add to the layer's output for its input x."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.down.dtype)
        x = F.dropout(x, self.dropout, self.training)
        if self.is_convolution:
            hidden = F.conv2d(x, self.down[..., None, None])
            return self.scale * F.conv2d(hidden, self.up[..., None, None])
        return self.scale * F.linear(F.linear(x, self.down), self.up)


class TrainableLora:
    """One LoRA over several layers of a model: branch by name, switched on and off together.

    Works by forward hooks on these very layers until detach(). Weights are in float32, whatever the layers are in.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], rank: int, alpha: float, dropout: float, generator: Generator
    ) -> None:
        self.branches = {
            name: LoraBranch(layer, rank, alpha, dropout, generator) for name, layer in sorted(layers.items())
        }
        self.enabled = True
        self._hooks = [
            layer.register_forward_hook(self._hook(self.branches[name])) for name, layer in sorted(layers.items())
        ]

    def parameters(self) -> dict[str, nn.Parameter]:
        """ "<layer>.up" and "<layer>.down" of every branch."""
        return {
            f"{name}.{part}": parameter
            for name, branch in self.branches.items()
            for part, parameter in branch.named_parameters()
        }

    def requires_grad_(self, required: bool) -> None:
        for parameter in self.parameters().values():
            parameter.requires_grad_(required)

    def train(self, training: bool) -> None:
        """With dropout, or without it."""
        for branch in self.branches.values():
            branch.train(training)

    def layers(self, weights: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
        """For a file, from weights named as parameters() names them, shaped like the layers they are for.

        alpha is folded into up: not every reader knows it.
        """
        found = {}
        for name, branch in self.branches.items():
            up, down = branch.scale * weights[f"{name}.up"].detach(), weights[f"{name}.down"].detach()
            if branch.is_convolution:
                up, down = up[..., None, None], down[..., None, None]
            found[name] = LoraLayer(up, down)
        return found

    def detach(self) -> None:
        """Take it off; the layers are as they were."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, branch: LoraBranch):
        def add(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return output + branch(arguments[0]).to(output.dtype) if self.enabled else None

        return add
