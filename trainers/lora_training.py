"""What recipes that train LoRAs beside frozen models have in common: models, layers, held-out clips, previews, files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor, nn

from ..lora.formats import lora_state
from ..lora.layers import TrainableLora
from ..lora.version import VERSION
from ..motion.module import MotionModelHandle
from ..motion.splice import KEY, MotionSplice, apply_motion_model, check_checkpoint
from . import host, processes
from .checkpoint import best_of, check_writable, save_tensors
from .config import ConfigError, LoraConfig
from .dataset import LatentClips
from .denoiser import Denoiser
from .loop import VALIDATION_SEED, StepReport, Trainer, described, step_generator
from .sampling import Previews, run_with_previews

LORA = "lora"  # where there is but one

Config = TypeVar("Config", bound=LoraConfig)


@dataclass(frozen=True)
class LoraFiles:
    """The file of each LoRA by its name, what a later run resumes from, and what it looks like."""

    loras: Mapping[str, Path]
    state: Path
    preview: Path

    @classmethod
    def of_one(cls, name: str, folder: Path) -> LoraFiles:
        return cls({LORA: folder / f"{name}.safetensors"}, folder / f"{name}.training", folder / f"{name}.webp")

    def __iter__(self) -> Iterator[Path]:
        return iter((*self.loras.values(), self.state, self.preview))

    def of_best(self) -> LoraFiles:
        return replace(self, loras={name: best_of(path) for name, path in self.loras.items()})

    def check_writable(self) -> None:
        """Raise SaveError for a folder that takes no files."""
        for folder in {path.parent for path in self}:
            check_writable(folder)


def check_models(model: ModelPatcher, motion_model: MotionModelHandle | None) -> None:
    """Raise ValueError for models that nothing can be trained on together, before anything takes time."""
    splice: MotionSplice | None = model.get_attachment(KEY)
    if splice is not None and splice.motions:
        raise ValueError(
            f"model: expected a checkpoint without a motion model, found one with {splice.motions[0].handle.name}. "
            "Connect what goes into Apply Motion Model, not what comes out of it."
        )
    if motion_model is None:
        check_checkpoint(model)
    else:
        apply_motion_model(model, motion_model)


class LoraTraining(ABC, Generic[Config]):
    """The pieces of one run; make and use it inside host.training().

    model_type: what the files say they are. Unless a recipe says otherwise: one LoRA, whole clips, the plain denoising loss.
    """

    model_type: ClassVar[str]

    def __init__(
        self, model: ModelPatcher, motion_model: MotionModelHandle | None, clips: LatentClips, config: Config
    ) -> None:
        check_models(model, motion_model)
        if motion_model is not None and clips.frames > motion_model.config.max_frames:
            raise ConfigError(
                f"frames: expected clips of at most {motion_model.config.max_frames}, as {motion_model.name} moves them, found {clips.frames}. "
                "Lower frames in the dataset."
            )
        base = host.trainable_copy(model)
        self.config = replace(config, precision=host.precision(base, config.precision))
        self.clips, self.held_out = clips.held_out(config.held_out) if config.held_out else (clips, None)
        self.about = {"base": host.name_of(model), "dataset": clips.digest, "held_out": str(config.held_out)}
        self.model, networks = base, [base.model.diffusion_model]
        if motion_model is not None:
            handle = motion_model.reloaded()
            self.about["motion_model"] = motion_model.name
            self.model, networks = apply_motion_model(base, handle), [*networks, handle.patcher.model]
        host.load(self.model)
        if config.gradient_checkpointing:
            host.recompute_activations(*networks)
        self.loras = self.make_loras(dict(networks[-1].named_modules()), step_generator(config.seed, -1))
        self.parameters = {
            f"{path}.{name}": value for path, lora in self.loras.items() for name, value in lora.parameters().items()
        }
        self.denoiser = Denoiser(self.model, self.config)

    @abstractmethod
    def make_loras(self, layers: Mapping[str, nn.Module], generator: Generator) -> dict[str, TrainableLora]:
        """The LoRAs to train by name, LORA where there is but one. layers: of the motion model, or of the UNet without one."""

    def drawn(
        self, clips: LatentClips, count: int, caption_dropout: float, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """count random clips to learn from [count, frames, c, h, w], and their text."""
        return clips.sample(generator, count, caption_dropout)

    def losses(self, generator: Generator) -> Iterator[tuple[str, Tensor]]:
        """Those of one random batch, one after the other."""
        config = self.config
        x, text = self.drawn(self.clips, config.batch_size, config.caption_dropout, generator)
        noised = self.denoiser.draw(x, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        with dropout_from(seed):
            yield "loss", self.denoiser.predict(noised, text).loss()

    @contextmanager
    def as_used(self) -> Iterator[None]:
        """While open the LoRAs are as they will be used."""
        for lora in self.loras.values():
            lora.train(False)
        yield
        for lora in self.loras.values():
            lora.train(True)

    def rate_of(self, parameter: str) -> float:
        """Learning rate of a parameter against the config's."""
        return 1.0

    def run(
        self, files: LoraFiles, resume: bool, on_step: Callable[[StepReport], None], previews: Previews | None = None
    ) -> None:
        trainer = Trainer(
            self.parameters, self.losses, self.config, files.state, resume,
            rate_of=self.rate_of,
            validation=None if self.held_out is None else self.validation_loss,
            about=self.about | {"alpha": str(self.config.alpha)},
        )  # fmt: skip

        run_with_previews(
            trainer, previews, self.sample, files.preview, on_step,
            lambda trainer: self.save(files, trainer), lambda trainer: self.save(files.of_best(), trainer),
        )  # fmt: skip

    def sample(self, previews: Previews) -> Tensor:
        with self.as_used():
            images = previews.sample(self.model)
        host.load(self.model)  # the VAE may have pushed it off the device
        return images

    def validation_loss(self, batches: int = 4) -> float:
        """Of the clips held out; the same noise and timesteps every time."""
        assert self.held_out is not None
        generator = step_generator(VALIDATION_SEED, 0)
        with self.as_used():
            losses = [
                float(self.denoiser.loss(*self.drawn(self.held_out, 1, 0.0, generator), generator))
                for _ in range(batches)
            ]
        return sum(losses) / batches

    def save(self, files: LoraFiles, trainer: Trainer) -> None:
        """The LoRAs under the names that other software reads, alpha folded in; by one process."""
        if not processes.is_first():
            return
        trained = trainer.weights()
        for path, file in files.loras.items():
            layers = self.loras[path].layers(
                {name.removeprefix(f"{path}."): value for name, value in trained.items() if name.startswith(f"{path}.")}
            )
            metadata = described(self.config) | self.about | trainer.reached()
            metadata |= {"model_type": self.model_type, "diffdirector": VERSION}
            save_tensors(file, lora_state(layers), metadata)

    def lora_over(
        self, layers: Mapping[str, nn.Module], targets: tuple[str, ...], generator: Generator
    ) -> TrainableLora:
        """A LoRA over the layers whose name ends in one of targets."""
        chosen = {name: layer for name, layer in layers.items() if name.endswith(targets) and _is_matrix(layer)}
        if not chosen:
            raise ConfigError(f"targets: expected the end of a layer's name, such as to_q; found {', '.join(targets)}")
        config = self.config
        return TrainableLora(chosen, config.rank, config.alpha or config.rank, config.dropout, generator)


def train_loras(
    start: Callable[[], LoraTraining],
    files: LoraFiles,
    resume: bool,
    on_step: Callable[[StepReport], None],
    previews: Previews | None,
) -> None:
    """One run of what start makes, and its files; the models leave the device at its end, however that comes."""
    files.check_writable()
    with host.training():
        training = start()
        try:
            training.run(files, resume, on_step, previews)
        finally:
            host.unload(training.model)


@contextmanager
def dropout_from(seed: int) -> Iterator[None]:
    """While open, LoRA dropout, which draws from the global generator, repeats itself with the seed.

    In each process differently: here alone several differ from one with the same batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed + processes.rank())
        yield


def _is_matrix(layer: nn.Module) -> bool:
    """Whether it is linear or a 1x1 convolution, which a LoRA can stand beside."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 1 and weight.shape[2:].numel() == 1
