"""Recipe: MotionDirector (arXiv:2310.08465), the motion of one or a few videos as a LoRA, apart from their looks.

Two paths a step. The spatial path sees one frame and trains a spatial LoRA on how things look. The temporal path sees the
clip with that LoRA in place and trains a temporal one on what is left: how things move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor, nn

from ..lora.layers import TrainableLora
from ..motion.module import MotionModelHandle
from . import host, objectives, processes
from .config import MotionDirectorConfig
from .dataset import LatentClips
from .loop import StepReport
from .lora_training import LoraFiles, LoraTraining, dropout_from, train_loras
from .sampling import Previews

SPATIAL, TEMPORAL = "spatial", "temporal"


@dataclass(frozen=True)
class MotionDirectorFiles(LoraFiles):
    """A temporal LoRA for Motion LoRA, a spatial one for any LoRA loader, what a later run resumes from, and what it looks like."""

    @classmethod
    def in_folders(cls, name: str, temporal: Path, spatial: Path) -> MotionDirectorFiles:
        loras = {TEMPORAL: temporal / f"{name}.safetensors", SPATIAL: spatial / f"{name}-spatial.safetensors"}
        return cls(loras, temporal / f"{name}.training", temporal / f"{name}.webp")

    @property
    def temporal(self) -> Path:
        return self.loras[TEMPORAL]

    @property
    def spatial(self) -> Path:
        return self.loras[SPATIAL]


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
    train_loras(lambda: MotionDirectorTraining(model, motion_model, clips, config), files, resume, on_step, previews)
    return files


class MotionDirectorTraining(LoraTraining[MotionDirectorConfig]):
    """The pieces of one run; make and use it inside host.training()."""

    model_type = "motion_director"

    def make_loras(self, layers: Mapping[str, nn.Module], generator: Generator) -> dict[str, TrainableLora]:
        config, looks = self.config, host.spatial_layers(self.model)
        return {
            SPATIAL: self.lora_over(looks, config.spatial_targets, generator),
            TEMPORAL: self.lora_over(layers, config.temporal_targets, generator),
        }

    def rate_of(self, parameter: str) -> float:
        return self.config.spatial_learning_rate / self.config.learning_rate if parameter.startswith(SPATIAL) else 1.0

    @contextmanager
    def as_used(self) -> Iterator[None]:
        """The temporal LoRA alone: on another subject than the clip's."""
        self._at_work(spatial=False, temporal=True, trained=TEMPORAL)
        with super().as_used():
            yield

    def losses(self, generator: Generator) -> Iterator[tuple[str, Tensor]]:
        """The paths' losses of one random batch, one after the other."""
        config = self.config
        x, context = self.drawn(self.clips, config.batch_size, config.caption_dropout, generator)
        noised = self.denoiser.draw(x, generator)
        frame, anchor = (
            processes.share(torch.randint(x.shape[1], (config.batch_size,), generator=generator)) for _ in range(2)
        )
        seed = int(torch.randint(2**62, (), generator=generator))
        looks = bool(torch.rand((), generator=generator) < config.spatial_probability)
        with dropout_from(seed):
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

    def _at_work(self, *, spatial: bool, temporal: bool, trained: str) -> None:
        self.loras[SPATIAL].enabled, self.loras[TEMPORAL].enabled = spatial, temporal
        for path, lora in self.loras.items():
            lora.requires_grad_(path == trained)
