"""Recipe: train a SparseCtrl (arXiv:2311.16933): an encoder that sees a few frames of a clip and tells the frozen model of them.

The paper gives no distribution of the frames that are shown, and no code was published; here it is SparseCtrlConfig's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor

from ..lora.version import VERSION
from ..motion.formats import MotionConfig, SiteConfig, Version
from ..motion.module import MotionModelHandle, host_kernel
from ..motion.scribbles import scribbles
from ..motion.sparse_export import diffusers_config, in_diffusers_layout
from ..motion.sparse_formats import SparseKind, host_key
from ..motion.sparsectrl import PIXELS, SparseControl, sparse_ctrl_from_state
from ..motion.splice import apply_motion_model, unet_shape
from . import host, processes
from .checkpoint import check_writable, save_tensors, write_atomically
from .config import DIFFUSERS, ConfigError, SparseCtrlConfig
from .dataset import Encoder, LatentClips
from .denoiser import Denoiser
from .loop import VALIDATION_SEED, StepReport, Trainer, described, step_generator
from .motion_module import new_motion_state
from .sampling import Previews, run_with_previews

STEM, HINT = "controlnet_cond_embedding", "input_hint_block."  # in files, and in the host's ControlNet
STEM_CHANNELS = (16, 32, 96, 256)  # of the scribbles' stem, as ControlNet (arXiv:2302.05543) has it


def train_sparse_ctrl(
    model: ModelPatcher,
    motion: MotionModelHandle,
    clips: LatentClips,
    config: SparseCtrlConfig,
    folder: Path,
    *,
    start_from: SparseControl | None = None,
    resume: bool = True,
    on_step: Callable[[StepReport], None] = lambda report: None,
    previews: Previews | None = None,
) -> Path:
    """Train on clips under model (SD1.5) with motion, both frozen, and return the SparseCtrl's file, result_in(folder, config).

    clips: of the encoder that encoder_for() gives. start_from: the SparseCtrl to fine-tune; one of the other kind gives all
    but the stem. Without one the UNet's encoder is copied. on_step as for train_motion_module.
    """
    check_writable(folder)
    with host.training():
        training = SparseCtrlTraining(model, motion, clips, config, start_from)
        try:
            return training.run(folder, resume, on_step, previews)
        finally:
            host.unload(training.model, training.control.patcher)


class SparseCtrlTraining:
    """The pieces of one run; make and use it inside host.training()."""

    def __init__(
        self,
        model: ModelPatcher,
        motion: MotionModelHandle,
        clips: LatentClips,
        config: SparseCtrlConfig,
        start_from: SparseControl | None = None,
    ) -> None:
        self.kind = SparseKind[config.kind.upper()]
        check_trainable(model, motion, clips.longest, config, start_from)
        _check_channels(clips, self.kind)
        base = host.trainable_copy(model)
        max_frames = start_from.config.motion.max_frames if start_from else config.max_frames
        state = new_sparse_ctrl_state(base, self.kind, max_frames, step_generator(config.seed, -1))
        self.control = sparse_ctrl_from_state(state, config.name, dtype=torch.float32)
        self.for_diffusers = diffusers_config(self.control.config) if config.layout == DIFFUSERS else None
        layers = [layers for _, layers in self.control.config.levels]
        self.names = {host_key(key, layers): key for key in state}
        self.encoder: Any = self.control.patcher.model
        if start_from is not None:
            if _shapes(start_from) != _shapes(self.control):
                raise ConfigError(
                    f"start_from: expected a SparseCtrl for a UNet as this checkpoint's, {self.control.config.unet}; {start_from.name} is made for "
                    f"one of another shape, {start_from.config.unet}. Start from another SparseCtrl, or from none."
                )
            known = start_from.patcher.model.state_dict()
            other_stem = start_from.config.kind is not self.kind
            kept = {key: value for key, value in known.items() if not (other_stem and key.startswith(HINT))}
            self.encoder.load_state_dict(kept, strict=not other_stem)
        self.config = replace(config, precision=host.precision(base, config.precision))
        self.about = {
            "base": host.name_of(model),
            "motion": motion.name,
            "dataset": clips.digest,
            "held_out": str(config.held_out),
        }
        self.clips, self.held_out = clips.held_out(config.held_out) if config.held_out else (clips, None)
        handle = motion.reloaded()  # weights of inference mode know no gradients
        self.model = apply_motion_model(base, handle)
        host.load(self.model, self.control.patcher)
        unet = self.model.model.diffusion_model
        if config.gradient_checkpointing:
            host.recompute_activations(unet, handle.patcher.model, self.encoder)
        for layers in (self.encoder, unet):
            layers.to(memory_format=torch.channels_last)  # a third less time for their convolutions
        self.parameters = {
            name: parameter.requires_grad_()
            for name, parameter in self.encoder.named_parameters()
            if any(part in self.names[name] for part in config.trainable)
        }
        if not self.parameters:
            raise ConfigError(
                f"trainable: expected parts of the weights' names, found {config.trainable}, which are in none."
            )
        self.denoiser = Denoiser(self.model, config)

    def run(
        self, folder: Path, resume: bool, on_step: Callable[[StepReport], None], previews: Previews | None = None
    ) -> Path:
        path = result_in(folder, self.config)
        best = result_in(folder, replace(self.config, name=f"{self.config.name}.best"))
        trainer = Trainer(
            self.parameters, self.losses, self.config, folder / f"{self.config.name}.training", resume,
            validation=None if self.held_out is None else self.validation_loss,
            about=self.about,
        )  # fmt: skip
        run_with_previews(
            trainer, previews, self.sample, folder / f"{self.config.name}.webp", on_step,
            lambda trainer: self.save(path, trainer), lambda trainer: self.save(best, trainer),
        )  # fmt: skip
        return path

    def sample(self, previews: Previews) -> Tensor:
        """A preview that is shown the first frame of a clip, one held out if there are any."""
        frame = (self.held_out or self.clips).latents[0][:1]
        if self.kind is SparseKind.RGB:
            with torch.no_grad():
                latents: Any = self.model.model.process_latent_out(frame[:, :4])
                picture = previews.vae.decode(latents).movedim(-1, 1)
        else:
            picture = self._conditions(frame)
        images = previews.sample(self.model, self.control.conditioned(picture, "0", vae=previews.vae))
        host.load(self.model, self.control.patcher)  # the VAE may have pushed them off the device
        return images

    def save(self, path: Path, trainer: Trainer) -> None:
        """In the layout that was asked for, half precision; by one process."""
        if not processes.is_first():
            return
        state = self.encoder.state_dict() | trainer.weights()
        halved = {self.names[key]: value if key.endswith(".pe") else value.half() for key, value in state.items()}
        if self.for_diffusers is not None:
            halved, text = in_diffusers_layout(halved), json.dumps(self.for_diffusers, indent=2)
            write_atomically(path.with_name("config.json"), lambda name: Path(name).write_text(text, encoding="utf-8"))
        save_tensors(
            path,
            halved,
            described(self.config)
            | self.about
            | trainer.reached()
            | {"model_type": f"sparsectrl_{self.config.kind}", "diffdirector": VERSION},
        )

    def losses(self, generator: Generator) -> Iterator[tuple[str, Tensor]]:
        yield "loss", self.loss(self.clips, generator)

    def loss(self, source: LatentClips, generator: Generator) -> Tensor:
        """The denoising loss of one random batch of clips, some of whose frames are shown."""
        x, text = source.sample(generator, self.config.batch_size, self.config.caption_dropout)
        clips, frames = x.shape[:2]
        shown = processes.share([shown_frames(frames, self.config, generator) for _ in range(self.config.batch_size)])
        noised = self.denoiser.draw(x[:, :, :4], generator)
        device = self.model.load_device
        pictures = torch.cat([self._conditions(x[clip, places]) for clip, places in enumerate(shown)])
        seen = F.pad(pictures, (0, 0, 0, 0, 0, 1), value=1.0)
        seen = torch.cat([seen, torch.zeros_like(seen[:1])]).to(device)
        numbers = iter(range(len(pictures)))
        order = {(clip, place): next(numbers) for clip, places in enumerate(shown) for place in places}
        control = self.encoder.encode(
            seen,
            torch.ones(len(seen), device=device),
            [order.get((clip, frame), -1) for clip in range(clips) for frame in range(frames)],
            noised.t.float().to(device).repeat_interleave(frames),
            text.to(device).repeat_interleave(frames, dim=0),
            frames,
            host_kernel(),
            1.0,
        )
        return self.denoiser.predict(noised, text, control).loss()

    def validation_loss(self, batches: int = 4) -> float:
        """Of the clips held out: the loss of the same batches, noise, timesteps and shown frames every time."""
        assert self.held_out is not None
        generator = step_generator(VALIDATION_SEED, 0)
        return sum(float(self.loss(self.held_out, generator)) for _ in range(batches)) / batches

    def _conditions(self, frames: Tensor) -> Tensor:
        """What the stem sees of frames of the dataset [n, c, h, w], without the mask."""
        if self.kind is SparseKind.RGB:
            return frames[:, :4]
        return F.pixel_shuffle(frames[:, 4:], PIXELS).expand(-1, 3, -1, -1)


def shown_frames(frames: int, config: SparseCtrlConfig, generator: Generator) -> list[int]:
    """Which of a clip's frames are shown: in config.ends of all clips the first, the last or both, else 1 to config.shown of any."""
    if torch.rand((), generator=generator) < config.ends:
        return [[0], [frames - 1], [0, frames - 1]][int(torch.randint(3, (), generator=generator))]
    count = int(torch.randint(1, min(config.shown, frames) + 1, (), generator=generator))
    return torch.randperm(frames, generator=generator)[:count].tolist()


def with_scribbles(encoder: Encoder, method: str, threshold: float) -> Encoder:
    """encoder whose latents have each frame's scribble after them, its pixels as further channels."""

    def latents(pixels: Tensor) -> Tensor:
        lines = scribbles(pixels.movedim(1, -1), method, threshold)[..., :1].movedim(-1, 1)
        return torch.cat([encoder.latents(pixels), F.pixel_unshuffle(lines, PIXELS)], dim=1)

    return replace(encoder, latents=latents, key=f"{encoder.key}-{method}-{threshold:g}")


def encoder_for(config: SparseCtrlConfig, encoder: Encoder) -> Encoder:
    """encoder with what this training wants to see of the clips."""
    if config.kind == "rgb":
        return encoder
    return with_scribbles(encoder, config.scribble_method, config.scribble_threshold)


def result_in(folder: Path, config: SparseCtrlConfig) -> Path:
    """The file that is written; in diffusers' layout its names are diffusers', in a folder of its own."""
    if config.layout == DIFFUSERS:
        return folder / config.name / "diffusion_pytorch_model.safetensors"
    return folder / f"{config.name}.safetensors"


def check_trainable(
    model: ModelPatcher,
    motion: MotionModelHandle,
    frames: int,
    config: SparseCtrlConfig,
    start_from: SparseControl | None,
) -> None:
    """Raise ConfigError where no SparseCtrl can be trained on clips of so many frames under model with motion."""
    if host.is_sdxl(model):
        raise ConfigError("SparseCtrls are trained on SD1.5 checkpoints; this one is SDXL.")
    limits = {
        motion.name: motion.config.max_frames,
        "the SparseCtrl": start_from.config.motion.max_frames if start_from else config.max_frames,
    }
    name = min(limits, key=lambda name: limits[name])
    if frames > limits[name]:
        raise ConfigError(
            f"dataset: expected clips of at most {limits[name]} frames, as many as {name} takes; found {frames}. Lower the dataset's frames."
        )


def _shapes(control: SparseControl) -> dict[str, torch.Size]:
    """Of all but the stem."""
    state = control.patcher.model.state_dict()
    return {key: value.shape for key, value in state.items() if not key.startswith(HINT)}


def _check_channels(clips: LatentClips, kind: SparseKind) -> None:
    channels = clips.latents[0].shape[1]
    if kind is SparseKind.SCRIBBLE and channels != 4 + PIXELS**2:
        raise ConfigError(
            f"clips: expected latents with a scribble of each frame, {4 + PIXELS**2} channels, found {channels}. "
            "Encode them with encoder_for()."
        )


def new_sparse_ctrl_state(
    model: ModelPatcher, kind: SparseKind, max_frames: int, generator: Generator
) -> dict[str, Tensor]:
    """An untrained SparseCtrl in the original's naming: the encoder of model's UNet, motion modules of one attention each,
    and zeros wherever it speaks to the UNet. Where the UNet has no middle it gets one of a single layer."""
    unet: Any = model.model.diffusion_model
    names, weights = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config), unet.state_dict()
    state = {
        key: weights[name].detach().float().clone()
        for key, name in names.items()
        if key.startswith(("conv_in.", "time_embedding.", "down_blocks.", "mid_block.")) and name in weights
    }
    places = {site: width for site, (_, width) in unet_shape(unet).blocks().items() if site.startswith("down_blocks.")}
    sites = {site: SiteConfig(width, width, 4 * width, depth=1, attentions=1) for site, width in places.items()}
    state |= new_motion_state(MotionConfig(Version.V3, sites, max_frames), generator)
    widths = [block[0].out_channels for block in unet.input_blocks]
    if unet.middle_block is None:
        state |= _new_layer(
            "mid_block.resnets.0", widths[-1], state["time_embedding.linear_2.weight"].shape[0], generator
        )
    for place, width in [*enumerate(widths), (None, widths[-1])]:
        root = "controlnet_mid_block" if place is None else f"controlnet_down_blocks.{place}"
        state |= {f"{root}.weight": torch.zeros(width, width, 1, 1), f"{root}.bias": torch.zeros(width)}
    if kind is SparseKind.RGB:
        return state | _convolution(STEM, kind.channels, widths[0], None)
    state |= _convolution(f"{STEM}.conv_in", kind.channels, STEM_CHANNELS[0], generator)
    for number, (narrow, wide) in enumerate(zip(STEM_CHANNELS[:-1], STEM_CHANNELS[1:], strict=True)):
        state |= _convolution(f"{STEM}.blocks.{2 * number}", narrow, narrow, generator)
        state |= _convolution(f"{STEM}.blocks.{2 * number + 1}", narrow, wide, generator)
    return state | _convolution(f"{STEM}.conv_out", STEM_CHANNELS[-1], widths[0], None)


def _new_layer(name: str, width: int, emb: int, generator: Generator) -> dict[str, Tensor]:
    """A residual layer that gives on what it gets."""
    projection = torch.empty(width, emb).uniform_(-(emb**-0.5), emb**-0.5, generator=generator)
    state = {f"{name}.time_emb_proj.weight": projection, f"{name}.time_emb_proj.bias": torch.zeros(width)}
    for norm in ("norm1", "norm2"):
        state |= {f"{name}.{norm}.weight": torch.ones(width), f"{name}.{norm}.bias": torch.zeros(width)}
    return (
        state
        | _convolution(f"{name}.conv1", width, width, generator)
        | _convolution(f"{name}.conv2", width, width, None)
    )


def _convolution(name: str, narrow: int, wide: int, generator: Generator | None) -> dict[str, Tensor]:
    """As PyTorch begins with; zeros without a generator."""
    weight = torch.zeros(wide, narrow, 3, 3)
    if generator is not None:
        bound = math.sqrt(1 / (9 * narrow))
        weight.uniform_(-bound, bound, generator=generator)
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(wide)}
