"""Recipe: train a motion module (stage 2 of AnimateDiff, arXiv:2307.04725), from scratch or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor

from ..lora.version import VERSION
from ..motion.formats import MotionConfig, SiteConfig, Version, expected_shapes, sinusoidal_encoding
from ..motion.module import MotionModelHandle, motion_model_from_state
from ..motion.splice import apply_motion_model, unet_shape
from . import host
from .checkpoint import check_writable, save_tensors
from .config import ConfigError, MotionModuleConfig
from .dataset import LatentClips
from .denoiser import Denoiser
from .loop import VALIDATION_SEED, StepReport, Trainer, described, step_generator


def train_motion_module(
    model: ModelPatcher,
    clips: LatentClips,
    config: MotionModuleConfig,
    folder: Path,
    *,
    start_from: MotionModelHandle | None = None,
    resume: bool = True,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> Path:
    """Train on clips under model (SD1.5, frozen) and return the motion model's file, folder/<name>.safetensors.

    start_from: the motion model to fine-tune; without one a new one is made for every block of the UNet. on_step may
    raise to stop: what was learnt until then is saved, and a later call with resume goes on from it bit for bit.
    """
    check_writable(folder)
    with host.training():
        training = MotionModuleTraining(model, clips, config, start_from)
        try:
            return training.run(folder, resume, on_step)
        finally:
            host.unload(training.model)


class MotionModuleTraining:
    """The pieces of one run; make and use it inside host.training()."""

    def __init__(
        self,
        model: ModelPatcher,
        clips: LatentClips,
        config: MotionModuleConfig,
        start_from: MotionModelHandle | None = None,
    ) -> None:
        base = host.trainable_copy(model)
        if base.model.diffusion_model.num_classes is not None:
            raise ValueError("Motion modules are trained on SD1.5 checkpoints for now; this one is SDXL.")
        if start_from is not None and start_from.config.takes_picture:
            raise ConfigError(
                f"motion_model: expected one that animates a prompt, found {start_from.name}, a PIA, which is trained with pictures. "
                "Start from an AnimateDiff motion model, or from none."
            )
        if start_from is None:
            state = new_motion_state(motion_config_for(base, config.max_frames), step_generator(config.seed, -1))
        else:
            state = {key: value.clone() for key, value in start_from.patcher.model.state_dict().items()}
        self.config = replace(config, precision=host.precision(base, config.precision))
        self.about = {"base": host.name_of(model), "dataset": clips.digest}
        self.clips, self.held_out = clips.held_out(config.held_out) if config.held_out else (clips, None)
        self.handle = motion_model_from_state(state, config.name, dtype=torch.float32)
        self.model = apply_motion_model(base, self.handle, beta_schedule="sqrt_linear (AnimateDiff)")
        host.load(self.model)
        self.parameters = dict(self._chosen_parameters())
        self.denoiser = Denoiser(self.model, config)

    def run(self, folder: Path, resume: bool, on_step: Callable[[StepReport], None]) -> Path:
        path = folder / f"{self.config.name}.safetensors"
        trainer = Trainer(
            self.parameters, self.losses, self.config, folder / f"{self.config.name}.training", resume,
            validation=None if self.held_out is None else self.validation_loss,
            about=self.about,
        )  # fmt: skip
        trainer.run(on_step, lambda trainer: self.save(path, trainer))
        return path

    def save(self, path: Path, trainer: Trainer) -> None:
        """The whole motion model in the original's layout, half precision, positional encoding included."""
        state = self.handle.patcher.model.state_dict() | trainer.weights()
        halved = {key: value if key.endswith(".pe") else value.half() for key, value in state.items()}
        save_tensors(
            path,
            halved,
            described(self.config)
            | self.about
            | {"model_type": "motion_module", "trained_steps": str(trainer.step), "diffdirector": VERSION},
        )

    def losses(self, generator: Generator) -> Iterator[tuple[str, Tensor]]:
        yield "loss", self.loss(self.clips, generator)

    def loss(self, clips: LatentClips, generator: Generator) -> Tensor:
        """The denoising loss of one random batch of clips."""
        config = self.config
        x, context = clips.sample(generator, config.batch_size, config.caption_dropout)
        if torch.rand((), generator=generator) < config.image_fraction:
            context = context.repeat_interleave(x.shape[1], dim=0)
            x = x.flatten(0, 1).unsqueeze(1)
        return self.denoiser.loss(x, context, generator)

    @torch.no_grad()
    def validation_loss(self, batches: int = 4) -> float:
        """Of the clips held out, or else of all: the loss of the same batches, noise and timesteps every time."""
        generator = step_generator(VALIDATION_SEED, 0)
        return sum(float(self.loss(self.held_out or self.clips, generator)) for _ in range(batches)) / batches

    def _chosen_parameters(self):
        for name, parameter in self.handle.patcher.model.named_parameters():
            if any(part in name for part in self.config.trainable):
                parameter.requires_grad_()
                yield name, parameter


def motion_config_for(model: ModelPatcher, max_frames: int) -> MotionConfig:
    """The config of a motion model with a module at every block of model's UNet, as AnimateDiff v2 has them."""
    places = unet_shape(model.model.diffusion_model).blocks()
    sites = {site: SiteConfig(width, width, 4 * width, depth=1, attentions=2) for site, (_, width) in places.items()}
    return MotionConfig(Version.V2, sites, max_frames)


def new_motion_state(config: MotionConfig, generator: Generator) -> dict[str, Tensor]:
    """Untrained weights: matrices uniform as PyTorch's linear layers, zeros in proj_out, so that training starts from no motion."""
    state = {}
    for key, shape in expected_shapes(config).items():
        if key.endswith(".pe"):
            state[key] = sinusoidal_encoding(shape[1], shape[2])
        elif ".proj_out." in key or key.endswith(".bias"):
            state[key] = torch.zeros(shape)
        elif len(shape) == 1:
            state[key] = torch.ones(shape)
        else:
            bound = shape[1] ** -0.5
            state[key] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return state
