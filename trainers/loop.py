"""The training loop that every recipe runs in: optimizer, learning rate, averaging, checkpoints, interruption.

Randomness of a step comes from a generator seeded with (seed, step) alone. So a run that was killed and resumed sees
what it would have seen, and on a CPU ends with the same weights bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from .checkpoint import load_state, save_state
from .config import ConfigError, TrainConfig

StepLoss = Callable[[Generator], Tensor]


@dataclass(frozen=True)
class StepReport:
    """After each step: steps done, mean loss of its batches, learning rate, norm of the gradient before clipping."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float


class Trainer:
    """Trains named parameters to lower step_loss.

    state_path: where the resumable state is kept; resume continues from it when it exists. Losses of all steps so far
    are in `losses`.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], step_loss: StepLoss, config: TrainConfig, state_path: Path, resume: bool
    ) -> None:
        self.parameters, self.step_loss, self.config, self.state_path = dict(parameters), step_loss, config, state_path
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.averaged = (
            {name: value.detach().clone() for name, value in self.parameters.items()} if config.ema_decay else {}
        )
        self.step, self.losses = 0, list[float]()
        if resume and state_path.exists():
            self._restore(load_state(state_path))

    def run(self, on_step: Callable[[StepReport], None], on_save: Callable[[Trainer], None]) -> None:
        """Train to config.steps. Whatever interrupts it (on_step may raise), what was learnt is saved first."""
        try:
            while self.step < self.config.steps:
                on_step(self._one_step())
                if self.config.save_every and self.step % self.config.save_every == 0:
                    self.save(on_save)
        finally:
            self.save(on_save)

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters, averaged over time when ema_decay is set."""
        return dict(self.averaged or self.parameters)

    def save(self, on_save: Callable[[Trainer], None]) -> None:
        """Write the resumable state, then let the recipe write its result."""
        state = {
            "step": self.step,
            "seed": self.config.seed,
            "losses": self.losses,
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(self.state_path, state)
        on_save(self)

    def learning_rate(self, step: int) -> float:
        """Of the step with this number, counted from 0."""
        config = self.config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        if config.lr_schedule == "constant":
            return config.learning_rate
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _one_step(self) -> StepReport:
        config, rate = self.config, self.learning_rate(self.step)
        generator = step_generator(config.seed, self.step)
        loss = 0.0
        for _ in range(config.accumulate):
            batch_loss = self.step_loss(generator) / config.accumulate
            batch_loss.backward()
            loss += float(batch_loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm, error_if_nonfinite=True)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.losses.append(loss)
        self._average()
        return StepReport(self.step, loss, rate, float(norm))

    @torch.no_grad()
    def _average(self) -> None:
        # a short memory at first, so that the start does not linger in the average
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.averaged.items():
            value.lerp_(self.parameters[name], 1 - decay)

    def _restore(self, state: dict) -> None:
        if state["seed"] != self.config.seed or set(state["parameters"]) != set(self.parameters):
            raise ConfigError(
                f"{self.state_path.name}: expected the state of a run with seed {self.config.seed} and {len(self.parameters)} trained weights, "
                f"found seed {state['seed']} and {len(state['parameters'])}. Choose another name, or start without resume."
            )
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["parameters"][name])
            for name, value in self.averaged.items():
                value.copy_(state["averaged"].get(name, state["parameters"][name]))
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses = state["step"], list(state["losses"])


def step_generator(seed: int, step: int) -> Generator:
    """The generator of one step; neighbouring seeds and steps share nothing."""
    return Generator().manual_seed((seed * 1_000_003 + step) * 2_654_435_761 % 2**63)


def described(config: TrainConfig) -> dict[str, str]:
    """The settings as metadata for a file."""
    return {key: str(value) for key, value in asdict(config).items()}
