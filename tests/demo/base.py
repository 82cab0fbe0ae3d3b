"""The demo's base: the smallest UNet that the stock loader takes for SD1.5's, trained on the world's pictures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from diffdirector.motion.schedules import SCHEDULES
from diffdirector.tests.host.weights import load_unet, unet_config
from diffdirector.trainers.checkpoint import save_tensors
from diffdirector.trainers.config import TrainConfig
from diffdirector.trainers.loop import StepReport, Trainer, step_generator

from . import world

UNET = {
    "channel_mult": [1], "num_res_blocks": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1],
    "transformer_depth_middle": -2,
}  # fmt: skip
CONFIG = TrainConfig(
    "base", steps=3000, batch_size=32, learning_rate=4e-4, weight_decay=1e-2, warmup_steps=100, lr_schedule="cosine",
    truncated_snr_cap=5.0, ema_decay=0.998, precision="bfloat16", save_every=250,
)  # fmt: skip
PICTURES = 32 * 1024
SILENCE = 0.2  # share of captions that leave one attribute to chance
SCHEDULE = SCHEDULES["sqrt_linear (AnimateDiff)"]  # of pictures too: the module's clips are denoised on it


def train(
    latents: Tensor, captions: list[str], text: dict[str, Tensor], folder: Path, on_step: Callable[[StepReport], None]
) -> dict[str, Tensor]:
    """The trained state as a checkpoint has it after "model.diffusion_model."; resumes from folder.

    latents: [n, 4, 8, 8] of the pictures that captions describe; text: each caption's and the empty one's, [77, 768].
    """
    from diffdirector.motion.model_sampling import set_schedule
    from diffdirector.trainers import host
    from diffdirector.trainers.denoiser import Denoiser

    rows = {caption: row for row, caption in enumerate(text)}
    table, row_of = torch.stack(list(text.values())), torch.tensor([rows[caption] for caption in captions])
    with host.training():
        model = load_unet(new_state(), torch.float32)
        set_schedule(model, SCHEDULE)
        host.load(model)
        denoiser, unet = Denoiser(model, CONFIG), model.model.diffusion_model
        unet.requires_grad_().to(memory_format=torch.channels_last)

        def losses(generator: Generator) -> Iterator[tuple[str, Tensor]]:
            chosen = torch.randint(len(latents), (CONFIG.batch_size,), generator=generator)
            dropped = torch.rand(len(chosen), generator=generator) < CONFIG.caption_dropout
            context = table[torch.where(dropped, rows[""], row_of[chosen])]
            yield "loss", denoiser.loss(latents[chosen][:, None], context, generator)

        trainer = Trainer(dict(unet.named_parameters()), losses, CONFIG, folder / "base.training", resume=True)
        trainer.run(on_step, lambda trainer: save_tensors(folder / "base.safetensors", trainer.weights(), {}))
    return load_file(folder / "base.safetensors")


def new_state() -> dict[str, Tensor]:
    """Untrained weights: uniform by fan-in as PyTorch's layers, zero in every block's last layer."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    generator = step_generator(CONFIG.seed, -1)
    skeleton = UNetModel(**unet_config("sd15", **UNET), device="meta").state_dict()
    state = {}
    for key, value in skeleton.items():
        if (
            any(part in key for part in ("out_layers.3.", ".proj_out."))
            or key.startswith("out.2.")
            or key.endswith("bias")
        ):
            state[key] = torch.zeros(value.shape)
        elif value.ndim == 1:
            state[key] = torch.ones(value.shape)
        else:
            bound = value[0].numel() ** -0.5
            state[key] = torch.empty(value.shape).uniform_(-bound, bound, generator=generator)
    return state


def pictures(encode: Callable[[Tensor], Tensor], folder: Path) -> tuple[Tensor, list[str]]:
    """Latents [PICTURES, 4, 8, 8] of the world at random moments, and their captions; made once."""
    source = random.Random(CONFIG.seed)
    chosen = world.scenes(CONFIG.seed, PICTURES)
    fractions = [source.random() for _ in chosen]
    silent_on = [source.choice(world.ATTRIBUTES) if source.random() < SILENCE else "" for _ in chosen]
    captions = [world.caption(scene, silent) for scene, silent in zip(chosen, silent_on, strict=True)]
    path = folder / "pictures.safetensors"
    if not path.exists():
        parts = [encode(world.render_stills(chosen[i : i + 16], fractions[i : i + 16])) for i in range(0, PICTURES, 16)]
        save_tensors(path, {"latents": torch.cat(parts)}, {})
    return load_file(path)["latents"], captions
