"""Recipe: MotionDirector (arXiv:2310.08465), the motion of one or a few videos as a LoRA, apart from their looks.

Two paths a step. The spatial path sees one frame and trains a spatial LoRA on how things look. The temporal path sees the
clip with that LoRA in place and trains a temporal one on what is left: how things move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor, nn

from ..lora.formats import lora_state
from ..lora.layers import TrainableLora
from ..lora.version import VERSION
from ..motion.module import MotionModelHandle
from ..motion.splice import apply_motion_model
from . import host, objectives
from .animation import save_animation
from .checkpoint import check_writable, save_tensors
from .config import ConfigError, MotionDirectorConfig
from .dataset import LatentClips
from .denoiser import Denoiser
from .loop import VALIDATION_SEED, StepReport, Trainer, described, step_generator
from .sampling import FRAME_RATE, Previews

SPATIAL, TEMPORAL = "spatial", "temporal"


class MotionDirectorFiles(NamedTuple):
    """A temporal LoRA for Motion LoRA, a spatial one for any LoRA loader, what a later run resumes from, and what it looks like."""

    temporal: Path
    spatial: Path
    state: Path
    preview: Path

    @classmethod
    def in_folders(cls, name: str, temporal: Path, spatial: Path) -> MotionDirectorFiles:
        return cls(
            temporal / f"{name}.safetensors", spatial / f"{name}-spatial.safetensors",
            temporal / f"{name}.training", temporal / f"{name}.webp",
        )  # fmt: skip

    def check_writable(self) -> None:
        """Raise SaveError for a folder that takes no files."""
        for folder in {path.parent for path in self}:
            check_writable(folder)


def train_motion_director(
    model: ModelPatcher,
    motion_model: MotionModelHandle,
    clips: LatentClips,
    config: MotionDirectorConfig,
    files: MotionDirectorFiles,
    *,
    resume: bool = True,
    on_step: Callable[[StepReport], None] = lambda report: None,
    previews: Previews | None = None,
) -> MotionDirectorFiles:
    """Train on clips under model with motion_model (both stay as they are) and write files.

    on_step may raise to stop: what was learnt until then is saved, and a later call with resume goes on from it bit for bit.
    Raises SaveError before anything else for a folder that takes no files; ConfigError; TrainingDiverged; TrainingOutOfMemory.
    """
    files.check_writable()
    with host.training():
        training = MotionDirectorTraining(model, motion_model, clips, config)
        try:
            training.run(files, resume, on_step, previews)
        finally:
            host.unload(training.model)
    return files


class MotionDirectorTraining:
    """The pieces of one run; make and use it inside host.training()."""

    def __init__(
        self, model: ModelPatcher, motion_model: MotionModelHandle, clips: LatentClips, config: MotionDirectorConfig
    ) -> None:
        base, handle = host.trainable_copy(model), motion_model.reloaded()
        self.config = replace(config, precision=host.precision(base, config.precision))
        self.clips, self.held_out = clips.held_out(config.held_out) if config.held_out else (clips, None)
        self.about = {"base": host.name_of(model), "motion_model": motion_model.name, "dataset": clips.digest}
        self.model = apply_motion_model(base, handle)
        host.load(self.model)
        if config.gradient_checkpointing:
            host.recompute_activations(self.model, handle.patcher.model)
        generator = step_generator(config.seed, -1)
        self.loras = {
            SPATIAL: self._lora(host.spatial_layers(self.model), config.spatial_targets, generator),
            TEMPORAL: self._lora(dict(handle.patcher.model.named_modules()), config.temporal_targets, generator),
        }
        self.parameters = {
            f"{path}.{name}": value for path, lora in self.loras.items() for name, value in lora.parameters().items()
        }
        self.denoiser = Denoiser(self.model, self.config)

    def run(
        self,
        files: MotionDirectorFiles,
        resume: bool,
        on_step: Callable[[StepReport], None],
        previews: Previews | None = None,
    ) -> None:
        spatial_rate = self.config.spatial_learning_rate / self.config.learning_rate
        trainer = Trainer(
            self.parameters, self.losses, self.config, files.state, resume,
            rate_of=lambda name: spatial_rate if name.startswith(SPATIAL) else 1.0,
            validation=None if self.held_out is None else self.validation_loss,
            about=self.about | {"alpha": str(self.config.alpha)},
        )  # fmt: skip

        def after_step(report: StepReport) -> None:
            on_step(report)
            if previews is not None and previews.due(report.step, self.config.steps):
                self.show(previews, report.step, files.preview)

        was_complete = trainer.step >= self.config.steps
        trainer.run(after_step, lambda trainer: self.save(files, trainer))
        if previews is not None and was_complete:
            self.show(previews, trainer.step, files.preview)

    def show(self, previews: Previews, step: int, file: Path) -> None:
        """Sample with the temporal LoRA alone, as it will be used: on another subject than the clip's."""
        self._at_work(spatial=False, temporal=True, trained=TEMPORAL)
        self.loras[TEMPORAL].train(False)
        previews.before()
        images = previews.sample(self.model)
        self.loras[TEMPORAL].train(True)
        host.load(self.model)  # the VAE may have pushed it off the device
        save_animation(file, images, FRAME_RATE, quality=90)
        previews.on_sample(images, step)

    def validation_loss(self, batches: int = 4) -> float:
        """Of the clips held out, with the temporal LoRA alone; the same noise and timesteps every time."""
        assert self.held_out is not None
        self._at_work(spatial=False, temporal=True, trained=TEMPORAL)
        self.loras[TEMPORAL].train(False)
        generator = step_generator(VALIDATION_SEED, 0)
        losses = [
            float(self.denoiser.loss(*self.held_out.sample(generator, 1, caption_dropout=0.0), generator))
            for _ in range(batches)
        ]
        self.loras[TEMPORAL].train(True)
        return sum(losses) / batches

    def losses(self, generator: Generator) -> Iterator[tuple[str, Tensor]]:
        """The paths' losses of one random batch, one after the other."""
        config = self.config
        x, context = self.clips.sample(generator, config.batch_size, config.caption_dropout)
        noised = self.denoiser.draw(x, generator)
        frame, anchor = (torch.randint(x.shape[1], (len(x),), generator=generator) for _ in range(2))
        seed = int(torch.randint(2**62, (), generator=generator))
        looks = bool(torch.rand((), generator=generator) < config.spatial_probability)
        with torch.random.fork_rng():  # LoRA dropout draws from the global generator
            torch.manual_seed(seed)
            if looks:
                self._at_work(spatial=True, temporal=False, trained=SPATIAL)
                yield SPATIAL, self.denoiser.predict(noised.frame(frame), context).loss()
            self._at_work(spatial=looks, temporal=True, trained=TEMPORAL)
            made = self.denoiser.predict(noised, context)
            yield (
                TEMPORAL,
                objectives.debiased_temporal_loss(
                    made.predicted, made.expected, anchor.to(made.predicted.device), made.weight, config.debias
                ),
            )

    def save(self, files: MotionDirectorFiles, trainer: Trainer) -> None:
        """Both LoRAs under the names that other software reads, alpha folded in."""
        trained = trainer.weights()
        for path, target in ((TEMPORAL, files.temporal), (SPATIAL, files.spatial)):
            layers = self.loras[path].layers(
                {name.removeprefix(f"{path}."): value for name, value in trained.items() if name.startswith(path)}
            )
            metadata = described(self.config) | self.about
            metadata |= {"model_type": "motion_director", "trained_steps": str(trainer.step), "diffdirector": VERSION}
            save_tensors(target, lora_state(layers), metadata)

    def _at_work(self, *, spatial: bool, temporal: bool, trained: str) -> None:
        self.loras[SPATIAL].enabled, self.loras[TEMPORAL].enabled = spatial, temporal
        for path, lora in self.loras.items():
            lora.requires_grad_(path == trained)

    def _lora(self, layers: Mapping[str, nn.Module], targets: tuple[str, ...], generator: Generator) -> TrainableLora:
        chosen = {name: layer for name, layer in layers.items() if name.endswith(targets) and hasattr(layer, "weight")}
        if not chosen:
            raise ConfigError(f"targets: expected the end of a layer's name, such as to_q; found {', '.join(targets)}")
        config = self.config
        return TrainableLora(chosen, config.rank, config.alpha or config.rank, config.dropout, generator)
