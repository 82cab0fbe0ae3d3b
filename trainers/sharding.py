"""Weights, gradients and optimizer state shared out among processes, each block of layers whole only while it computes
(FSDP, arXiv:2304.11277, by torch.distributed.fsdp.fully_shard). No host import."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from torch import Tensor, nn

from . import processes
from .config import ConfigError

Value = TypeVar("Value")


def check_shardable(optimizer: str) -> None:
    """Raise ConfigError where there is nobody to share with, or an optimizer that looks at a whole tensor."""
    if processes.count() == 1:
        raise ConfigError(
            "sharded: expected several processes to share the weights among, found one. Start them with torchrun, or set it to false."
        )
    if optimizer != "AdamW":
        raise ConfigError(
            f"sharded: expected the optimizer AdamW, found {optimizer}. Choose AdamW, or set sharded to false."
        )


def shard(blocks: Iterable[nn.Module]) -> None:
    """Leave every process a part of each block's weights; the names stay, the parameters become others."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for block in blocks:
        device = next(block.parameters()).device
        # to be gathered once more in the backward pass: that is what makes it small
        fully_shard(block, mesh=init_device_mesh(device.type, (processes.count(),)), reshard_after_forward=True)


def is_sharded(value: object) -> bool:
    return hasattr(value, "full_tensor")


def whole(value: Value) -> Value:
    """A tensor gathered from its parts, by all processes together; anything else as it is."""
    sharded: Any = value
    return sharded.full_tensor() if is_sharded(value) else value


def parts_as(like: Tensor, value: Value) -> Value:
    """Of a whole tensor the part that this process has of like, which is of its shape; anything else as it is."""
    if not is_sharded(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(value.to(like.device), sharded.device_mesh, sharded.placements)  # pyright: ignore[reportReturnType]
