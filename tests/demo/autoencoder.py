"""The demo's autoencoder: TAESD's shape (github.com/madebyollin/taesd), trained on the demo's world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from diffdirector.trainers.config import TrainConfig
from diffdirector.trainers.loop import StepReport, Trainer, step_generator

from . import world

SD_SCALE = 0.18215  # the host multiplies SD1.5's latents by it
CONFIG = TrainConfig(
    "autoencoder", steps=3600, batch_size=32, learning_rate=1e-3, weight_decay=0.0, warmup_steps=50,
    lr_schedule="cosine", ema_decay=0.995, precision="bfloat16", save_every=200,
)  # fmt: skip
WHOLE_FROM = 2600  # steps until then see a quarter of the picture, around the body; later ones the whole
LATENT_NOISE = 0.05  # what a sampler leaves behind must not show


def train(folder: Path, on_step: Callable[[StepReport], None]) -> dict[str, Tensor]:
    """The trained state as a checkpoint has it after "first_stage_model."; resumes from folder."""
    import comfy.model_management
    from comfy.taesd.taesd import TAESD

    model = TAESD(latent_channels=4)
    generator = step_generator(CONFIG.seed, -1)
    for value in model.parameters():
        if value.ndim:
            bound = (value[0].numel() if value.ndim > 1 else 64 * 9) ** -0.5
            value.data.uniform_(-bound, bound, generator=generator)
    device = comfy.model_management.get_torch_device()
    model.to(device, memory_format=torch.channels_last)
    parameters = {name: value for name, value in model.named_parameters() if value.ndim}

    def losses(generator: Generator) -> Iterator[tuple[str, Tensor]]:
        whole = trainer.step >= WHOLE_FROM
        pictures, background = random_pictures(generator, CONFIG.batch_size // 2 if whole else CONFIG.batch_size)
        if not whole:
            pictures = _crops(pictures, background, generator)
        pictures, background = pictures.to(device), background.to(device)
        latents = model.taesd_encoder(pictures.contiguous(memory_format=torch.channels_last))
        noise = torch.randn(latents.shape, generator=generator)
        restored = model.taesd_decoder(latents + LATENT_NOISE * noise.to(device))
        cover = (pictures - background).abs().amax(1, keepdim=True)
        near = F.max_pool2d((cover > 0.02).float(), 5, stride=1, padding=2)
        weight = 1 + 4 * near / cover.amax((2, 3), keepdim=True)  # little contrast counts as much as a lot
        error = restored.float() - pictures
        spread = (latents.float().square().mean() - 1).relu() + latents.float().mean().square()
        yield "loss", (weight * (error.abs() + error.square())).mean() + 0.01 * spread

    trainer = Trainer(parameters, losses, CONFIG, folder / "autoencoder.training", resume=True)
    trainer.run(on_step, lambda trainer: None)
    model.load_state_dict(trainer.weights(), strict=False)
    with torch.no_grad():
        latents = model.taesd_encoder(random_pictures(step_generator(CONFIG.seed, -2), 256)[0].to(device))
        model.vae_scale.fill_(SD_SCALE * latents.std())
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def random_pictures(generator: Generator, count: int) -> tuple[Tensor, Tensor]:
    """Pictures [count, 3, 64, 64] in 0..1 and their backgrounds [count, 3, 1, 1]: bodies anywhere, headed anywhere."""
    kinds = [list(kind) for kind in (world.SHAPES, world.COLOURS, world.BACKGROUNDS)]
    picks = [torch.randint(len(kind), (count,), generator=generator).tolist() for kind in kinds]
    bodies = [world.Scene(kinds[0][a], kinds[1][b], kinds[2][c], "still") for a, b, c in zip(*picks, strict=True)]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    travels, grows = torch.rand(count, generator=generator) < 0.65, torch.randint(-1, 2, (count,), generator=generator)
    straight = (uniform(0, 4).floor() * torch.pi / 2, uniform(-torch.pi, torch.pi))
    heading = torch.where(uniform(0, 1) < 0.6, *straight)
    upright = torch.full_like(heading, world.UP)
    pose = world.Pose(
        uniform(0.2, 0.8), uniform(0.2, 0.8), world.SIZE * uniform(0.7, 1.3),
        torch.where(travels, heading, upright), travels.float(), grows * ~travels,
    )  # fmt: skip
    background = torch.tensor([world.BACKGROUNDS[body.background] for body in bodies])[:, :, None, None]
    return world.draw(bodies, pose, 64), background


def _crops(pictures: Tensor, background: Tensor, generator: Generator) -> Tensor:
    """32x32 of each, where the body is, give or take."""
    cover = (pictures - background).abs().sum(1)
    crops = []
    for picture, mass in zip(pictures, cover, strict=True):
        corner = []
        for dim in (0, 1):
            centre = (mass.sum(dim) * torch.arange(64)).sum() / mass.sum()
            corner.append(int((centre - 16 + torch.randint(-8, 9, (), generator=generator)).clamp(0, 32)))
        crops.append(picture[:, corner[1] : corner[1] + 32, corner[0] : corner[0] + 32])
    return torch.stack(crops)
