"""The training loop that every recipe runs in: optimizer, learning rate, averaging, checkpoints, interruption.

Randomness of a step comes from a generator seeded with (seed, step) alone. So a run that was killed and resumed sees
what it would have seen, and on a CPU ends with the same weights bit for bit. Of several processes (processes.py)
the first writes what is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, autocast

from . import processes
from .checkpoint import load_state, save_state
from .config import ConfigError, TrainConfig
from .errors import TrainingDiverged, TrainingOutOfMemory, is_out_of_memory
from .optimizers import NamedOptimizer
from .sharding import is_sharded, parts_as, whole

VALIDATION_SEED = 987_654_321

StepLosses = Callable[[Generator], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True)
class StepReport:
    """After each step: steps done, each loss as the mean of its batches, learning rate, norm of the gradient before clipping,
    and the loss of the clips held out where this step measured it."""

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    validation: float | None = None


class Trainer:
    """Trains named parameters to lower the losses of each step.

    step_losses: yields each loss of a batch with its name. What it does between two of them happens after the backward
    pass of the first: one path's graph is gone before the next is built. state_path: where the resumable state is kept;
    resume continues from it when it exists. rate_of: learning rate of a parameter against the config's. validation: the
    loss of what is held out, measured every config.validate_every steps and after the last, with the weights that are saved.
    about: what the run learns from, by name; a run that learns from something else is not resumed. Losses of all steps so
    far are in `losses`.
    config.precision "auto" is float32 here; a recipe that knows its device replaces it.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        step_losses: StepLosses,
        config: TrainConfig,
        state_path: Path,
        resume: bool,
        rate_of: Callable[[str], float] = lambda name: 1.0,
        validation: Callable[[], float] | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.parameters, self.step_losses, self.config = dict(parameters), step_losses, config
        self.state_path, self.validation, self.about = state_path, validation, dict(about or {})
        self.device = next(iter(self.parameters.values())).device
        by_rate: dict[float, list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            by_rate.setdefault(rate_of(name), []).append(parameter)
        self.optimizers = [
            NamedOptimizer(config.optimizer, group, config.learning_rate, config.weight_decay, rate)
            for rate, group in by_rate.items()
        ]
        self.averaged = (
            {name: value.detach().clone() for name, value in self.parameters.items()} if config.ema_decay else {}
        )
        self.step, self.losses = 0, list[dict[str, float]]()
        self._logs = _tensorboard(state_path) if config.tensorboard and processes.is_first() else None
        if resume and state_path.exists():
            self._restore(load_state(state_path))
        processes.check_alike(
            {"step": self.step, **self.about},
            f"Have all of them read the same videos and {state_path.name}, from a folder that their machines share.",
        )
        self._averaging = processes.Averaging(self.parameters.values())

    def run(
        self,
        on_step: Callable[[StepReport], None],
        on_save: Callable[[Trainer], None],
        on_best: Callable[[Trainer], None] = lambda trainer: None,
    ) -> None:
        """Train to config.steps. Whatever interrupts it (on_step may raise), what was learnt is saved first: where weights are
        sharded, only what interrupts all processes at once, for it takes all of them to save.

        on_best: lets the recipe write a result that validation finds better than all before, those of resumed runs included.
        """
        together = not any(map(is_sharded, self.parameters.values()))
        try:
            with processes.stopped_together():
                while self.step < self.config.steps:
                    report = self._measured(self._one_step())
                    self._log(report)
                    if report.validation is not None and self.best == (report.validation, self.step):
                        on_best(self)
                    on_step(report)
                    if self.config.save_every and self.step % self.config.save_every == 0:
                        self.save(on_save)
            together = True
        except (KeyboardInterrupt, TrainingDiverged):
            together = True
            raise
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._forget_gradients()
            raise TrainingOutOfMemory(self.step + 1, self.config) from error
        finally:
            if together:
                self.save(on_save)
            if self._logs:
                self._logs.flush()

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters, averaged over time when ema_decay is set."""
        return {name: whole(value) for name, value in (self.averaged or self.parameters).items()}

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """While open the parameters have the values that weights() gives."""
        self._exchange_averaged()
        try:
            yield
        finally:
            self._exchange_averaged()

    @property
    def best(self) -> tuple[float, int] | None:
        """The lowest validation loss so far and after which step it was measured; None before there is one."""
        measured = [(losses.get("validation", math.inf), step) for step, losses in enumerate(self.losses, 1)]
        return min((pair for pair in measured if math.isfinite(pair[0])), default=None)

    def reached(self) -> dict[str, str]:
        """As metadata for a file: the step, and the validation loss where it was measured after it."""
        result = {"trained_steps": str(self.step)}
        if self.losses and "validation" in self.losses[-1]:
            result["validation_loss"] = str(self.losses[-1]["validation"])
        return result

    def log_sample(self, images: Tensor, values: Mapping[str, float]) -> None:
        """For TensorBoard, where it is on: the frames [n, h, w, 3] that were sampled after this step, and numbers about them."""
        if self._logs is None:
            return
        self._logs.add_images("sample", images.clamp(0, 1), self.step, dataformats="NHWC")
        for name, value in values.items():
            self._logs.add_scalar(name, value, self.step)

    def save(self, on_save: Callable[[Trainer], None]) -> None:
        """Write the resumable state, then let the recipe write its result."""
        state = {
            "step": self.step,
            "seed": self.config.seed,
            "about": self.about,
            "losses": self.losses,
            "parameters": {name: whole(value.detach()) for name, value in self.parameters.items()},
            "averaged": {name: whole(value) for name, value in self.averaged.items()},
            "optimizer": self.config.optimizer,
            "optimizers": [optimizer.state() for optimizer in self.optimizers],
        }
        if processes.is_first():
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
        for last in (batch == config.accumulate - 1 for batch in range(config.accumulate)):
            paths = self.step_losses(generator)
            while True:
                with self._autocast():
                    named_loss = next(paths, None)
                if named_loss is None:
                    break
                name, loss = named_loss[0], named_loss[1] / config.accumulate
                self._averaging.backward(loss, last)
                losses[name] = losses.get(name, 0.0) + float(loss.detach())
        losses = processes.average_losses(losses)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm))
        if not norm.isfinite():
            self._forget_gradients()
            raise TrainingDiverged(self.step + 1, losses, rate)
        for optimizer in self.optimizers:
            optimizer.step(rate)
        self._forget_gradients()
        self.step += 1
        self.losses.append(losses)
        self._average()
        return StepReport(self.step, losses, rate, float(norm))

    def _forget_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def _measured(self, report: StepReport) -> StepReport:
        if self.validation is None or (self.step % self.config.validate_every and self.step < self.config.steps):
            return report
        with self.as_saved(), torch.no_grad(), self._autocast(), processes.alone():  # the others would only wait
            loss = self.validation()
        self.losses[-1]["validation"] = loss
        return replace(report, validation=loss)

    def _log(self, report: StepReport) -> None:
        if self._logs is None:
            return
        values = {"learning_rate": report.learning_rate, "gradient_norm": report.grad_norm, **self.losses[-1]}
        for name, value in values.items():
            self._logs.add_scalar(name, value, report.step)

    def _autocast(self) -> autocast:
        return autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    @torch.no_grad()
    def _average(self) -> None:
        # a short memory at first, so that the start does not linger in the average
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.averaged.items():
            value.lerp_(self.parameters[name], 1 - decay)

    @torch.no_grad()
    def _exchange_averaged(self) -> None:
        for name, value in self.averaged.items():
            kept = self.parameters[name].clone()
            self.parameters[name].copy_(value)
            value.copy_(kept)

    def _restore(self, state: dict) -> None:
        shapes, stored = (
            {name: value.shape for name, value in of.items()} for of in (self.parameters, state["parameters"])
        )
        wanted, found = ((of["seed"], of["optimizer"]) for of in (asdict(self.config), state))
        if wanted != found or stored != shapes:
            raise ConfigError(
                f"{self.state_path.name}: expected the state of a run with seed {wanted[0]}, {wanted[1]} and {len(shapes)} trained weights, "
                f"found seed {found[0]}, {found[1]} and {len(stored)} weights, {sum(stored[name] == shapes.get(name) for name in stored)} of them "
                "of the same name and size. Choose another name, or start without resume."
            )
        others = {key: value for key, value in state["about"].items() if self.about.get(key, value) != value}
        if others:
            raise ConfigError(
                f"{self.state_path.name}: expected a run that learnt from the same {' and '.join(others)}, found one with "
                f"{', '.join(f'{key} {value}' for key, value in others.items())}. Choose another name for what is new, or start without resume."
            )
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(parts_as(value, state["parameters"][name]))
            for name, value in self.averaged.items():
                value.copy_(parts_as(value, state["averaged"].get(name, state["parameters"][name])))
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.restore(stored)
        self.step, self.losses = state["step"], list(state["losses"])


def _tensorboard(state_path: Path) -> Any:
    """A writer of logs in the folder tensorboard/<name> beside the state."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            'tensorboard: it is not installed. Install it into ComfyUI\'s Python with "pip install tensorboard", or switch it off.'
        ) from None
    return SummaryWriter(str(state_path.parent / "tensorboard" / state_path.stem))


def step_generator(seed: int, step: int) -> Generator:
    """The generator of one step; neighbouring seeds and steps share nothing."""
    return Generator().manual_seed((seed * 1_000_003 + step) * 2_654_435_761 % 2**63)


def described(config: TrainConfig) -> dict[str, str]:
    """The settings as metadata for a file."""
    return {key: str(value) for key, value in asdict(config).items()}
