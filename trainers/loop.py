"""The training loop that every recipe runs in: optimizer, learning rate, averaging, checkpoints, interruption.

Randomness of a step comes from a generator seeded with (seed, step) alone. So a run that was killed and resumed sees
what it would have seen, and on a CPU ends with the same weights bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from .checkpoint import load_state, save_state
from .config import ConfigError, TrainConfig

StepLosses = Callable[[Generator], Iterator[tuple[str, Tensor]]]


class TrainingDiverged(ArithmeticError):
    """A loss or its gradient is no number any more; the message says what is kept and what to change."""


@dataclass(frozen=True)
class StepReport:
    """After each step: steps done, each loss as the mean of its batches, learning rate, norm of the gradient before clipping."""

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    grad_norm: float


class Trainer:
    """Trains named parameters to lower the losses of each step.

    step_losses: yields each loss of a batch with its name. What it does between two of them happens after the backward
    pass of the first: one path's graph is gone before the next is built. state_path: where the resumable state is kept;
    resume continues from it when it exists. rate_of: learning rate of a parameter against the config's. Losses of all
    steps so far are in `losses`. config.precision "auto" is float32 here; a recipe that knows its device replaces it.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        step_losses: StepLosses,
        config: TrainConfig,
        state_path: Path,
        resume: bool,
        rate_of: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        self.parameters, self.step_losses, self.config = dict(parameters), step_losses, config
        self.state_path = state_path
        self.device = next(iter(self.parameters.values())).device
        by_rate: dict[float, list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            by_rate.setdefault(rate_of(name), []).append(parameter)
        groups = [{"params": group, "rate": rate} for rate, group in by_rate.items()]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.averaged = (
            {name: value.detach().clone() for name, value in self.parameters.items()} if config.ema_decay else {}
        )
        self.step, self.losses = 0, list[dict[str, float]]()
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
        losses: dict[str, float] = {}
        for _ in range(config.accumulate):
            paths = self.step_losses(generator)
            while True:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    named_loss = next(paths, None)
                if named_loss is None:
                    break
                name, loss = named_loss[0], named_loss[1] / config.accumulate
                loss.backward()
                losses[name] = losses.get(name, 0.0) + float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm)
        if not norm.isfinite():
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingDiverged(
                f"Step {self.step + 1}: expected a finite gradient, found losses {losses}. What was learnt until step {self.step} is "
                f'kept. Lower learning_rate (it is {rate:g}), or set precision to "float32", and run again.'
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.losses.append(losses)
        self._average()
        return StepReport(self.step, losses, rate, float(norm))

    @torch.no_grad()
    def _average(self) -> None:
        # a short memory at first, so that the start does not linger in the average
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.averaged.items():
            value.lerp_(self.parameters[name], 1 - decay)

    def _restore(self, state: dict) -> None:
        shapes, stored = (
            {name: value.shape for name, value in of.items()} for of in (self.parameters, state["parameters"])
        )
        if state["seed"] != self.config.seed or stored != shapes:
            raise ConfigError(
                f"{self.state_path.name}: expected the state of a run with seed {self.config.seed} and {len(shapes)} trained weights, "
                f"found seed {state['seed']} and {len(stored)}, {sum(stored[name] == shapes.get(name) for name in stored)} of them of the same "
                "name and size. Choose another name, or start without resume."
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
