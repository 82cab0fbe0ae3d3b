"""Recipe: a MotionLoRA (stage 3 of AnimateDiff, arXiv:2307.04725, section 4.3): a LoRA on the self-attention of a motion model, for
a kind of motion that 20 to 50 clips have in common. Clips for a camera's move are cut from any footage by camera.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from comfy.model_patcher import ModelPatcher
from torch import Generator, nn

from ..lora.layers import TrainableLora
from ..motion.module import MotionModelHandle
from .config import MotionLoraConfig
from .dataset import LatentClips
from .loop import StepReport
from .lora_training import LORA, LoraFiles, LoraTraining, train_loras
from .sampling import Previews


def train_motion_lora(
    model: ModelPatcher,
    motion_model: MotionModelHandle,
    clips: LatentClips,
    config: MotionLoraConfig,
    files: LoraFiles,
    *,
    resume: bool = True,
    on_step: Callable[[StepReport], None] = lambda report: None,
    previews: Previews | None = None,
) -> Path:
    """Train on clips under model with motion_model (both frozen) and return the MotionLoRA's file. As train_motion_director otherwise."""
    train_loras(lambda: MotionLoraTraining(model, motion_model, clips, config), files, resume, on_step, previews)
    return files.loras[LORA]


class MotionLoraTraining(LoraTraining[MotionLoraConfig]):
    """The pieces of one run; make and use it inside host.training()."""

    model_type = "motion_lora"

    def make_loras(self, layers: Mapping[str, nn.Module], generator: Generator) -> dict[str, TrainableLora]:
        return {LORA: self.lora_over(layers, self.config.targets, generator)}
