"""Recipe: a domain adapter (stage 1 of AnimateDiff, arXiv:2307.04725, section 4.1): a LoRA on the image model's attention, trained
on single frames of videos without a motion module. It takes up how these videos look, blur and logos included, so that a motion
module trained beside it need not; taken away for sampling, or weakened, it leaves the motion and the checkpoint's own looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor, nn

from ..lora.layers import TrainableLora
from . import host, processes
from .config import DomainAdapterConfig
from .dataset import LatentClips
from .loop import StepReport
from .lora_training import LORA, LoraFiles, LoraTraining, train_loras
from .sampling import Previews


def train_domain_adapter(
    model: ModelPatcher,
    clips: LatentClips,
    config: DomainAdapterConfig,
    files: LoraFiles,
    *,
    resume: bool = True,
    on_step: Callable[[StepReport], None] = lambda report: None,
    previews: Previews | None = None,
) -> Path:
    """Train on frames of clips under model (SD1.5 or SDXL, frozen) and return the adapter's file. As train_motion_director otherwise."""
    train_loras(lambda: DomainAdapterTraining(model, None, clips, config), files, resume, on_step, previews)
    return files.loras[LORA]


class DomainAdapterTraining(LoraTraining[DomainAdapterConfig]):
    """The pieces of one run; make and use it inside host.training()."""

    model_type = "domain_adapter"

    def make_loras(self, layers: Mapping[str, nn.Module], generator: Generator) -> dict[str, TrainableLora]:
        return {LORA: self.lora_over(host.spatial_layers(self.model), self.config.targets, generator)}

    def drawn(
        self, clips: LatentClips, count: int, caption_dropout: float, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """One random frame of each clip."""
        x, text = super().drawn(clips, count, caption_dropout, generator)
        frame = processes.share(torch.randint(x.shape[1], (count,), generator=generator))
        return x[torch.arange(len(x)), frame].unsqueeze(1), text
