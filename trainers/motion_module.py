"""Recipe: train a motion module (stage 2 of AnimateDiff, arXiv:2307.04725), from scratch or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor

from ..lora.version import VERSION
from ..motion.formats import VERSION_KEY, MotionConfig, SiteConfig, Version, expected_shapes, sinusoidal_encoding
from ..motion.module import MotionModelHandle, TemporalTransformer, motion_model_from_state
from ..motion.splice import apply_motion_model, unet_shape
from . import host, processes
from .checkpoint import best_of, check_writable, save_tensors
from .config import NEW_MODULE_FRAMES, ConfigError, MotionModuleConfig
from .dataset import LatentClips
from .denoiser import Denoiser
from .loop import VALIDATION_SEED, StepReport, Trainer, described, step_generator
from .sampling import Previews, run_with_previews
from .sharding import check_shardable, shard, whole

ROUNDING = 5e-3  # of an encoding that a file keeps in half precision


def train_motion_module(
    model: ModelPatcher,
    clips: LatentClips,
    config: MotionModuleConfig,
    folder: Path,
    *,
    start_from: MotionModelHandle | None = None,
    resume: bool = True,
    on_step: Callable[[StepReport], None] = lambda report: None,
    previews: Previews | None = None,
) -> Path:
    """Train on clips under model (SD1.5, frozen) and return the motion model's file, folder/<name>.safetensors.

    start_from: the motion model to fine-tune; without one a new one is made for every block of the UNet. on_step may
    raise to stop: what was learnt until then is saved, and a later call with resume goes on from it bit for bit.
    """
    check_writable(folder)
    with host.training():
        training = MotionModuleTraining(model, clips, config, start_from)
        try:
            return training.run(folder, resume, on_step, previews)
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
            raise ConfigError("Motion modules are trained on SD1.5 checkpoints for now; this one is SDXL.")
        if start_from is not None and start_from.config.takes_picture:
            raise ConfigError(
                f"motion_model: expected one that animates a prompt, found {start_from.name}, a PIA, which is trained with pictures. "
                "Start from an AnimateDiff motion model, or from none."
            )
        check_length(clips.longest, config, start_from)
        metadata = {}
        if start_from is None:
            shape = motion_config_for(base, config.max_frames or NEW_MODULE_FRAMES, config.middle)
            state = new_motion_state(shape, step_generator(config.seed, -1))
        else:
            state = lengthened(start_from.patcher.model.state_dict(), config.max_frames, start_from.name)
            metadata[VERSION_KEY] = start_from.config.version.name
        self.config = replace(config, precision=host.precision(base, config.precision))
        self.about = {"base": host.name_of(model), "dataset": clips.digest, "held_out": str(config.held_out)}
        self.clips, self.held_out = clips.held_out(config.held_out) if config.held_out else (clips, None)
        self.handle = motion_model_from_state(state, config.name, dtype=torch.float32, metadata=metadata)
        self.model = apply_motion_model(base, self.handle, beta_schedule="sqrt_linear (AnimateDiff)")
        host.load(self.model)
        if config.gradient_checkpointing:
            # a GPU may wait for the bookkeeping longer than it would compute
            cpu = self.model.load_device.type == "cpu"
            host.recompute_activations(base.model.diffusion_model, self.handle.patcher.model, keep_costly=cpu)
        if config.sharded:
            check_shardable(config.optimizer)
            shard(block for block in self.handle.patcher.model.modules() if isinstance(block, TemporalTransformer))
        self.parameters = dict(self._chosen_parameters())
        if not self.parameters:
            raise ConfigError(
                f"trainable: expected parts of the weights' names, such as motion_modules. or to_q; found {', '.join(config.trainable)}, which are in none."
            )
        self.denoiser = Denoiser(self.model, config)

    def run(
        self, folder: Path, resume: bool, on_step: Callable[[StepReport], None], previews: Previews | None = None
    ) -> Path:
        path = folder / f"{self.config.name}.safetensors"
        trainer = Trainer(
            self.parameters, self.losses, self.config, folder / f"{self.config.name}.training", resume,
            validation=None if self.held_out is None else self.validation_loss,
            about=self.about,
        )  # fmt: skip
        run_with_previews(
            trainer, previews, self.sample, path.with_suffix(".webp"), on_step,
            lambda trainer: self.save(path, trainer), lambda trainer: self.save(best_of(path), trainer),
        )  # fmt: skip
        return path

    def sample(self, previews: Previews) -> Tensor:
        images = previews.sample(self.model)
        host.load(self.model)  # the VAE may have pushed it off the device
        return images

    def save(self, path: Path, trainer: Trainer) -> None:
        """The whole motion model in the original's layout, half precision, positional encoding included; by one process."""
        own, trained = self.handle.patcher.model.state_dict(), trainer.weights()
        state = {key: trained[key] if key in trained else whole(value) for key, value in own.items()}
        if not processes.is_first():
            return
        halved = {key: value if key.endswith(".pe") else value.half() for key, value in state.items()}
        save_tensors(
            path,
            halved,
            described(self.config)
            | self.about
            | trainer.reached()
            | {"model_type": "motion_module", "diffdirector": VERSION}
            | {VERSION_KEY: self.handle.config.version.name},
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


def check_length(frames: int, config: MotionModuleConfig, start_from: MotionModelHandle | None) -> None:
    """Raise ConfigError where the motion model can never see clips of so many frames."""
    limit = max(config.max_frames, start_from.config.max_frames) if start_from else config.max_frames or NEW_MODULE_FRAMES  # fmt: skip
    if frames > limit:
        raise ConfigError(
            f"max_frames: expected at least {frames}, as many as a clip of the dataset has; the motion model takes {limit}. "
            "Raise max_frames, or lower the dataset's frames."
        )


def lengthened(state: Mapping[str, Tensor], frames: int, name: str) -> dict[str, Tensor]:
    """A copy of a motion model's tensors with positional encodings for at least so many frames: what is stored stays, and
    after it the sinusoid goes on (arXiv:1706.03762, section 3.5). Raises ConfigError for an encoding that is none."""
    longer = {}
    for key, value in state.items():
        longer[key] = value.clone()
        if key.endswith(".pe") and frames > value.shape[1]:
            expected, length = sinusoidal_encoding(frames, value.shape[2]).to(value), value.shape[1]
            if not torch.allclose(value, expected[:, :length], rtol=0, atol=ROUNDING):
                raise ConfigError(
                    f"max_frames: {name} has a positional encoding of its own for {length} frames, not the original's sinusoid, so nothing "
                    f"says how it goes on to {frames}. Set max_frames to {length} or 0, or start from another motion model."
                )
            longer[key] = torch.cat([value, expected[:, length:]], dim=1)
    return longer


def motion_config_for(model: ModelPatcher, max_frames: int, middle: bool) -> MotionConfig:
    """The config of a motion model with a module at every block of model's UNet, as AnimateDiff v2 has them; without
    those of the middle as v1 and v3."""
    places = unet_shape(model.model.diffusion_model).blocks()
    sites = {
        site: SiteConfig(width, width, 4 * width, depth=1, attentions=2)
        for site, (_, width) in places.items()
        if middle or not site.startswith("mid_block.")
    }
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
