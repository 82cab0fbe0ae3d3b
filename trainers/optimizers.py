"""Optimizers by name, from torch and from libraries that are used where they are installed. Pure: no host."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import ConfigError
from .sharding import parts_as, whole


@dataclass(frozen=True)
class Kind:
    """name: of a class in module, which pip installs as package. settings: beside the learning rate and weight decay.

    rate, decay: factors on the config's, so that its values mean about the same for every kind. finds_rate: it finds the
    learning rate itself and takes the config's schedule only.
    """

    package: str
    module: str
    name: str
    settings: dict[str, Any]
    rate: float = 1.0
    decay: float = 1.0
    finds_rate: bool = False


KINDS = {
    "AdamW": Kind("torch", "torch.optim", "AdamW", {}),
    # its steps have the size of the learning rate: smaller by about ten, and the decay larger by as much (arXiv:2302.06675, section 5)
    "Lion": Kind("pytorch-optimizer", "pytorch_optimizer", "Lion", {}, rate=0.1, decay=10.0),
    "AdamW8bit": Kind("bitsandbytes", "bitsandbytes.optim", "AdamW8bit", {}),
    "Prodigy": Kind("pytorch-optimizer", "pytorch_optimizer", "Prodigy", {"safeguard_warmup": True}, finds_rate=True),
    # steps in proportion to a weight's size would hardly move a LoRA, which starts at zero
    "Adafactor": Kind(
        "pytorch-optimizer", "pytorch_optimizer", "AdaFactor", {"scale_parameter": False, "relative_step": False}
    ),
}


class NamedOptimizer:
    """The optimizer of that name over parameters, whose learning rate is set before each step.

    rate: this group's learning rate against the config's, for which full_rate stands. Raises ConfigError for a name that
    is not known or whose library is not installed.
    """

    def __init__(
        self, name: str, parameters: Sequence[Tensor], full_rate: float, weight_decay: float, rate: float
    ) -> None:
        if name not in KINDS:
            raise ConfigError(f"optimizer: expected one of {', '.join(KINDS)}, found {name!r}")
        kind = KINDS[name]
        try:
            made = getattr(importlib.import_module(kind.module), kind.name)
        except ImportError as error:
            raise ConfigError(
                f"optimizer: {name} needs {kind.package}, which is not installed ({error}). Install it into ComfyUI's Python with "
                f'"pip install {kind.package}", or choose AdamW.'
            ) from None
        self.factor = 1 / full_rate if kind.finds_rate else kind.rate * rate
        self._optimizer: torch.optim.Optimizer = made(
            list(parameters), lr=self.factor * full_rate, weight_decay=kind.decay * weight_decay, **kind.settings
        )

    def step(self, learning_rate: float) -> None:
        """learning_rate: the config's at this step."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * self.factor
        self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """Whole, whatever is sharded: every process must ask for it."""
        found = self._optimizer.state_dict()
        known = {number: {name: whole(value) for name, value in of.items()} for number, of in found["state"].items()}
        return found | {"state": known}

    def restore(self, state: dict[str, Any]) -> None:
        parameters = [value for group in self._optimizer.param_groups for value in group["params"]]
        known = {
            number: {name: parts_as(parameters[number], value) for name, value in of.items()}
            for number, of in state["state"].items()
        }
        self._optimizer.load_state_dict(state | {"state": known})
