"""What a training run looks like from outside: clips sampled from the model being trained, by the host's own sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .animation import save_animation
from .loop import StepReport, Trainer
from .quality import Motion
from .samples import SamplePage, motion_of_dataset
from .sources import Clip

STEPS, CFG, SAMPLER, SCHEDULER = 20, 7.5, "euler", "normal"
FRAME_RATE = 8  # AnimateDiff's


@dataclass(frozen=True)
class Previews:
    """A clip after every so many steps (0: only after the last), handed to on_sample(images, step); before is called when
    sampling begins. frames, width, height: of the clip; images: [frames, h, w, 3] in 0..1. compared: the dataset's motion.

    positive, negative, vae: the host's conditioning of prompt, and its VAE; made before training, so that the text encoder may go.
    """

    positive: Any
    negative: Any
    vae: Any
    frames: int
    width: int
    height: int
    every: int = 0
    seed: int = 0
    cfg: float = CFG
    prompt: str = ""
    compared: Motion | None = None
    before: Callable[[], object] = lambda: None
    on_sample: Callable[[Tensor, int], object] = lambda images, step: None

    @classmethod
    def of(cls, prompt: str, clip: Any, vae: Any, sources: Sequence[Clip], *, frames: int, **settings: Any) -> Previews:
        """With the host's text encoder and VAE. sources: the clips of the dataset."""
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
        compared = motion_of_dataset(sources) if frames > 1 else None
        return cls(positive, negative, vae, frames, prompt=prompt, compared=compared, **settings)

    def due(self, step: int, steps: int) -> bool:
        return step == steps or bool(self.every and step % self.every == 0)

    def sample(self, model: ModelPatcher, control: Any = None) -> Tensor:
        """Images [frames, h, w, 3] of model as it is, on the CPU. control: one of the host's, with its pictures."""
        added = {} if control is None else {"control": control, "control_apply_to_uncond": False}
        positive, negative = (
            [[text, settings | added] for text, settings in condition] for condition in (self.positive, self.negative)
        )
        latent = torch.zeros(self.frames, model.model.latent_format.latent_channels, self.height // 8, self.width // 8)
        with torch.no_grad():
            samples = comfy.sample.sample(
                model, comfy.sample.prepare_noise(latent, self.seed), STEPS, self.cfg, SAMPLER, SCHEDULER,
                positive, negative, latent, disable_pbar=True, seed=self.seed,
            )  # fmt: skip
            return self.vae.decode(samples).cpu().clone()


def run_with_previews(
    trainer: Trainer,
    previews: Previews | None,
    sample: Callable[[Previews], Tensor],
    file: Path,
    on_step: Callable[[StepReport], None],
    on_save: Callable[[Trainer], None],
    on_best: Callable[[Trainer], None],
) -> None:
    """trainer.run(), and the previews that are due: what sample gives with the weights that are saved, in file and on its page."""
    if previews is None:
        trainer.run(on_step, on_save, on_best)
        return
    page = SamplePage(file, trainer, previews.prompt, previews.compared)

    def show() -> None:
        previews.before()
        with trainer.as_saved():
            images = sample(previews)
        save_animation(file, images, FRAME_RATE, quality=90)
        page.add(images)
        previews.on_sample(images, trainer.step)

    def after_step(report: StepReport) -> None:
        on_step(report)
        if previews.due(report.step, trainer.config.steps):
            show()

    was_complete = trainer.step >= trainer.config.steps
    trainer.run(after_step, on_save, on_best)
    if was_complete:
        show()
