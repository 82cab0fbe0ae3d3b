"""SparseCtrl on the host: an encoder that sees a few frames of a clip, as a control that every stock sampler takes.

Architecture: SparseCtrl (arXiv:2311.16933; github.com/guoyww/AnimateDiff, animatediff/models/sparse_controlnet.py).
"""

from __future__ import annotations

import copy
import os
from typing import Any, NamedTuple

import comfy.latent_formats
import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.cldm.cldm import ControlNet
from comfy.controlnet import ControlBase
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .anchors import frame_indices, pictures_of
from .attention import Kernel
from .formats import MotionFormatError
from .module import MotionModel, host_kernel, load_tensors, managed
from .moment import frames_of_clips
from .sparse_formats import HEADS, SparseConfig, SparseKind, read_sparse_ctrl

PIXELS = 8  # of a scribble's side, for each of a latent
ANY_LENGTH = 2**30  # a clip long enough for every index, where its length is not known yet


class SparseEncoder(ControlNet):
    """The host's ControlNet with a motion module after each layer on the way down, and the stem of its kind."""

    def __init__(self, config: SparseConfig, operations: Any, dtype: torch.dtype, device: torch.device | str) -> None:
        made: dict[str, Any] = {"dtype": dtype, "device": device}
        shape: dict[str, Any] = config.unet | {
            "transformer_depth": list(config.depths),
            "transformer_depth_middle": config.middle_depth,
            "use_linear_in_transformer": config.linear,
        }
        super().__init__(
            image_size=32, in_channels=4, hint_channels=config.kind.channels, num_heads=HEADS, use_spatial_transformer=True,
            legacy=False, operations=operations, **shape, **made,
        )  # fmt: skip
        if config.kind is SparseKind.RGB:
            self.input_hint_block = TimestepEmbedSequential(
                operations.conv_nd(2, config.kind.channels, config.model_channels, 3, padding=1, **made)
            )
        self.motion = MotionModel(config.motion, operations, dtype, device)
        self.sites = config.sites

    def encode(
        self,
        conditions: Tensor,
        shown: list[int],
        timesteps: Tensor,
        context: Tensor,
        frames: int,
        kernel: Kernel,
        motion_strength: float,
    ) -> dict[str, list[Tensor]]:
        """What is added to the UNet's skips and middle, from the noise level and the conditions; the noisy clip is not seen.

        conditions: [pictures, channels and mask, height, width]. shown: which of them each row has, [clips * frames], as
        timesteps [rows] and context [rows, tokens, dim].
        """
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(conditions.dtype))
        stem = self.input_hint_block(
            conditions, emb, context
        )  # each picture once, however many frames and clips show it
        h = self.input_blocks[0](stem.new_zeros(1, self.in_channels, *stem.shape[2:]), emb, context) + stem[shown]
        skips = [self.zero_convs[0](h, emb, context)]
        for index in range(1, len(self.input_blocks)):
            h = self.input_blocks[index](h, emb, context)
            if index in self.sites:
                h = self.motion.at(self.sites[index])(h, frames, motion_strength, kernel=kernel)
            skips.append(self.zero_convs[index](h, emb, context))
        h = self.middle_block(h, emb, context)
        return {"middle": [self.middle_block_out(h, emb, context)], "output": skips}


class Conditions(NamedTuple):
    """pictures: [n, 3, height, width] in 0 to 1; indices: the text that says at which frames."""

    pictures: Tensor
    indices: str
    motion_strength: float = 1.0


class SparseControl(ControlBase):
    """A SparseCtrl (CONTROL_NET): stock samplers take it, alone or in a chain with ControlNets.

    It works on clips: each clip of a batch has the conditions of its own frames; one that has none is left as it is.
    """

    def __init__(self, name: str, config: SparseConfig, patcher: ModelPatcher) -> None:
        super().__init__()
        self.name, self.config, self.patcher = name, config, patcher
        self.upscale_algorithm = "bilinear"
        self.conditions: Conditions | None = None
        self._prepared: dict[Any, tuple[Tensor, dict[int, int]]] = {}  # shared with the copies for context windows
        self._sampling: Any = None
        self._dtype = torch.float32

    def conditioned(
        self,
        pictures: Tensor,
        indices: str,
        *,
        vae: Any = None,
        strength: float = 1.0,
        percent_range: tuple[float, float] = (0.0, 1.0),
        motion_strength: float = 1.0,
    ) -> SparseControl:
        """A copy with pictures [n, 3, height, width] in 0 to 1 at the frames that indices names (motion/anchors.py).

        Raises ValueError where these do not fit, as far as it shows without the clip's length.
        """
        frame_indices(indices, ANY_LENGTH)
        if self.config.kind is SparseKind.RGB and vae is None:
            raise ValueError(
                f"vae: {self.name} is conditioned on pictures, which have to be encoded; found no VAE. Connect the checkpoint's."
            )
        result = self.copy()
        result.conditions = Conditions(pictures, indices, motion_strength)
        result.vae = vae if self.config.kind is SparseKind.RGB else None
        result.strength, result.timestep_percent_range = strength, percent_range
        return result

    def set_cond_hint(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            f"control_net: {self.name} is a SparseCtrl, which has to know the frames of its pictures. Apply it with DiffDirector's Apply SparseCtrl."
        )

    def copy(self) -> SparseControl:
        result = SparseControl(self.name, self.config, self.patcher)
        self.copy_to(result)
        result.conditions = self.conditions
        return result

    def get_models(self) -> list[ModelPatcher]:
        return [*super().get_models(), self.patcher]

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> SparseControl:
        result = self.copy()
        offload_device = comfy.model_management.unet_offload_device()
        result.patcher = ModelPatcher(copy.deepcopy(self.patcher.model), load_device, offload_device)
        if autoregister:
            self.multigpu_clones[load_device] = result
        return result

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Raises ValueError for a model that this one is not made for, before anything is sampled."""
        super().pre_run(model, percent_to_timestep_function)
        given, unet = self.config.unet, model.model_config.unet_config
        if any(unet.get(key) != value for key, value in given.items()):
            raise ValueError(
                f"{self.name}: this SparseCtrl is made for an SD1.5 UNet with {_shape(given)}; the model is {type(model.model_config).__name__} "
                f"with {_shape(unet)}. Use it with the checkpoints that it is made for."
            )
        self._sampling, self._dtype = model.model_sampling, model.get_dtype_inference()

    def cleanup(self) -> None:
        super().cleanup()
        self._prepared.clear()
        self._sampling = None

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: dict[str, Any], batched_number: int, transformer_options: dict[str, Any]
    ) -> Any:
        """As the host asks: what is added to the UNet for x_noisy [clips * frames, c, h, w], with the controls before this one."""
        previous: Any = self.previous_controlnet
        before = previous and previous.get_control(x_noisy, t, cond, batched_number, transformer_options)
        clips = frames_of_clips(x_noisy, transformer_options)
        if clips.length > self.config.motion.max_frames:
            raise ValueError(
                f"{self.name}: this SparseCtrl sees at most {self.config.motion.max_frames} frames at a time, found {clips.length}. "
                "Put Context Windows before the sampler."
            )
        conditions, picture_of = self._prepare(clips.total, x_noisy)
        shown = [[picture_of.get(frame, -1) for frame in clip] for clip in clips.clips]  # -1: the empty one at the end
        seeing = [clip for clip, pictures in enumerate(shown) if max(pictures) >= 0]
        if not seeing or not self._active(t):
            return before
        rows = torch.arange(len(x_noisy), device=x_noisy.device).view(-1, clips.length)[seeing].flatten()
        context = cond.get("crossattn_controlnet", cond["c_crossattn"])
        assert self.conditions is not None
        found = self.patcher.model.encode(
            conditions,
            [picture for clip in seeing for picture in shown[clip]],
            self._sampling.timestep(t)[rows],
            context.to(conditions)[rows],
            clips.length,
            host_kernel(transformer_options),
            self.conditions.motion_strength,
        )
        if len(seeing) < len(shown):
            found = {place: [_among(part, rows, len(x_noisy)) for part in parts] for place, parts in found.items()}
        return self.control_merge(found, before, output_dtype=None)

    def _active(self, t: Tensor) -> bool:
        return self.timestep_range is None or bool(self.timestep_range[0] >= t[0] >= self.timestep_range[1])

    def _prepare(self, frames: int, x: Tensor) -> tuple[Tensor, dict[int, int]]:
        """The conditions with their mask, an empty one at the end, and which of them is at which of the clip's frames."""
        if self.conditions is None:
            raise ValueError(
                f"{self.name}: this SparseCtrl has no pictures. Apply it with DiffDirector's Apply SparseCtrl."
            )
        key = frames, *x.shape[2:]
        if key not in self._prepared:
            given, indices, _ = self.conditions
            places = frame_indices(indices, frames)
            chosen = pictures_of(places, frames, len(given))
            used = sorted(set(chosen))
            seen = self._fitted(given[used], *x.shape[2:])
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            seen = torch.cat([seen, torch.zeros_like(seen[:1])])
            picture_of = {place: used.index(picture) for place, picture in zip(places, chosen, strict=True)}
            self._prepared[key] = seen.to(device=x.device, dtype=self._dtype), picture_of
        return self._prepared[key]

    def _fitted(self, pictures: Tensor, height: int, width: int) -> Tensor:
        """Pictures as the stem takes them, for latents of height and width: scaled and cut as the host does for hints."""
        scale = PIXELS if self.vae is None else self.vae.spacial_compression_encode()
        pictures = comfy.utils.common_upscale(pictures, width * scale, height * scale, self.upscale_algorithm, "center")
        if self.vae is None:
            return pictures
        loaded = comfy.model_management.loaded_models(only_currently_used=True)
        latents = self.vae.encode(pictures.movedim(1, -1))
        comfy.model_management.load_models_gpu(loaded)
        if latents.shape[1:] != (4, height, width):
            raise ValueError(
                f"vae: expected one that makes {[4, height, width]} of a picture, as SD1.5's does; found {list(latents.shape[1:])}. "
                "Connect the checkpoint's."
            )
        return comfy.latent_formats.SD15().process_in(latents)


def load_sparse_ctrl(path: str, name: str | None = None) -> SparseControl:
    """Load a SparseCtrl (see motion/sparse_formats.py). Pickles are read with weights_only=True.

    Raises MotionFormatError, naming the file, when it cannot be read or is something else.
    """
    name = name or os.path.basename(path)
    try:
        return sparse_ctrl_from_state(load_tensors(path)[0], name)
    except MotionFormatError as error:
        raise MotionFormatError(f"{name}: {error}") from None


def sparse_ctrl_from_state(state: dict[str, Tensor], name: str) -> SparseControl:
    """The same from tensors in memory."""
    config, tensors = read_sparse_ctrl(state)
    expected = SparseEncoder(config, comfy.ops.manual_cast, torch.float32, "meta").state_dict()
    for words, keys in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has an unknown", tensors.keys() - expected.keys()),
    ):
        if keys:
            raise MotionFormatError(
                f"This SparseCtrl {words} {min(keys)} ({len(keys)} such tensors). Get the original file again."
            )
    for key, value in expected.items():
        if value.shape != tensors[key].shape:
            raise MotionFormatError(
                f"{key}: expected shape {list(value.shape)}, found {list(tensors[key].shape)}. Get the file again."
            )
    return SparseControl(name, config, managed(lambda *made: SparseEncoder(config, *made), tensors))


def _among(part: Tensor, rows: Tensor, count: int) -> Tensor:
    """part [rows, ...] at its rows of count, zeros at the others."""
    return part.new_zeros(count, *part.shape[1:]).index_copy_(0, rows, part)


def _shape(unet: dict[str, Any]) -> str:
    return f"levels {unet.get('channel_mult')} of {unet.get('num_res_blocks')} layers and text of {unet.get('context_dim')} channels"
