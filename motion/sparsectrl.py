"""SparseCtrl on the host: an encoder that sees a few frames of a clip, as a control that every stock sampler takes.

Architecture: SparseCtrl (arXiv:2311.16933; github.com/guoyww/AnimateDiff, animatediff/models/sparse_controlnet.py).
"""

from __future__ import annotations

import copy
import itertools
import os
from typing import Any, NamedTuple

import comfy.latent_formats
import comfy.model_management
import comfy.ops
import torch
from comfy.cldm.cldm import ControlNet
from comfy.controlnet import ControlBase
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .attention import Kernel
from .fitted import cut, encoded
from .formats import MotionFormatError
from .indices import Placing, parse_indices
from .module import MotionModel, host_kernel, load_tensors, managed
from .moment import frames_of_clips
from .sparse_formats import HEADS, SparseConfig, SparseKind, read_sparse_ctrl

PIXELS = 8  # of a scribble's side, for each of a latent


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
        strengths: Tensor,
        shown: list[int],
        timesteps: Tensor,
        context: Tensor,
        frames: int,
        kernel: Kernel,
        motion_strength: float,
        attention: float = 1.0,
    ) -> dict[str, list[Tensor]]:
        """What is added to the UNet's skips and middle, from the noise level and the conditions; the noisy clip is not seen.

        conditions: [pictures, channels and mask, height, width], the last one empty. strengths [pictures]: 0 is as the empty
        one, 1 as it is. shown: which of them each row has, [clips * frames], as timesteps [rows] and context [rows, tokens, dim].
        Up to the first motion module a row depends on its picture, its text and the timestep alone: rows that are alike
        there, such as all without a picture, are computed once.
        """
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(conditions.dtype))
        stem = self.input_hint_block(conditions, emb, context)
        stem = torch.lerp(stem[-1:], stem, strengths.to(stem).view(-1, 1, 1, 1))
        first, among = _alike(shown, timesteps, context)
        seen = emb[first], context[first]
        nothing = stem.new_zeros(1, self.in_channels, *stem.shape[2:])
        h = self.input_blocks[0](nothing, *seen) + stem[[shown[row] for row in first]]
        skips = [self.zero_convs[0](h, *seen)]
        for index in range(1, len(self.input_blocks)):
            h = self.input_blocks[index](h, *seen)
            if index in self.sites:
                if index == min(self.sites):
                    h, seen, skips = h[among], (emb, context), [skip[among] for skip in skips]
                h = self.motion.at(self.sites[index])(h, frames, motion_strength, kernel=kernel, attention=attention)
            skips.append(self.zero_convs[index](h, *seen))
        h = self.middle_block(h, *seen)
        return {"middle": [self.middle_block_out(h, *seen)], "output": skips}


class Conditions(NamedTuple):
    """pictures: [n, 3, height, width] in 0 to 1; indices: at which frames."""

    pictures: Tensor
    indices: Placing
    motion_strength: float = 1.0
    nearest: bool = False
    attention: float = 1.0


class Prepared(NamedTuple):
    """What the encoder is given: conditions with their mask and strengths, an empty one at the end, and which of them each
    frame has that has one."""

    conditions: Tensor
    strengths: Tensor
    of_frame: dict[int, int]


class SparseControl(ControlBase):
    """A SparseCtrl (CONTROL_NET): stock samplers take it, alone or in a chain with ControlNets.

    It works on clips: each clip of a batch has the conditions of its own frames; one that has none is left as it is.
    """

    def __init__(self, name: str, config: SparseConfig, patcher: ModelPatcher) -> None:
        super().__init__()
        self.name, self.config, self.patcher = name, config, patcher
        self.conditions: Conditions | None = None
        self._prepared: dict[Any, Prepared] = {}  # shared with the copies for context windows
        self._sampling: Any = None
        self._dtype = torch.float32

    def conditioned(
        self,
        pictures: Tensor,
        indices: str | Placing,
        *,
        vae: Any = None,
        strength: float = 1.0,
        percent_range: tuple[float, float] = (0.0, 1.0),
        motion_strength: float = 1.0,
        nearest: bool = False,
        attention: float = 1.0,
    ) -> SparseControl:
        """A copy with pictures [n, 3, height, width] in 0 to 1 at the frames that indices names (motion/indices.py).

        nearest: a context window that has none is shown the one nearest to it, at its frame that is nearest to that.
        motion_strength, attention: of its motion modules; see motion/strength.py.

        Raises ValueError where these do not fit, as far as it shows without the clip's length.
        """
        placing = parse_indices(indices) if isinstance(indices, str) else indices
        if self.config.kind is SparseKind.RGB and vae is None:
            raise ValueError(
                f"vae: {self.name} is conditioned on pictures, which have to be encoded; found no VAE. Connect the checkpoint's."
            )
        result = self.copy()
        result.conditions = Conditions(pictures, placing, motion_strength, nearest, attention)
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
        prepared = self._prepare(clips.total, x_noisy)
        shown = [self._shown(clip, prepared.of_frame) for clip in clips.clips]
        seeing = [clip for clip, pictures in enumerate(shown) if max(pictures) >= 0]
        if not seeing or not self._active(t):
            return before
        rows = torch.arange(len(x_noisy), device=x_noisy.device).view(-1, clips.length)[seeing].flatten()
        context = cond.get("crossattn_controlnet", cond["c_crossattn"])
        assert self.conditions is not None
        found = self.patcher.model.encode(
            prepared.conditions,
            prepared.strengths,
            [picture for clip in seeing for picture in shown[clip]],
            self._sampling.timestep(t)[rows],
            context.to(prepared.conditions)[rows],
            clips.length,
            host_kernel(transformer_options),
            self.conditions.motion_strength,
            self.conditions.attention,
        )
        if len(seeing) < len(shown):
            found = {place: [_among(part, rows, len(x_noisy)) for part in parts] for place, parts in found.items()}
        return self.control_merge(found, before, output_dtype=None)

    def _active(self, t: Tensor) -> bool:
        return self.timestep_range is None or bool(self.timestep_range[0] >= t[0] >= self.timestep_range[1])

    def _shown(self, clip: list[int], of_frame: dict[int, int]) -> list[int]:
        """Of a window's frames each one's condition; -1 is the empty one."""
        shown = [of_frame.get(frame, -1) for frame in clip]
        assert self.conditions is not None
        if self.conditions.nearest and of_frame and max(shown) < 0:
            given, frame = min(itertools.product(of_frame, clip), key=lambda pair: abs(pair[0] - pair[1]))
            shown[clip.index(frame)] = of_frame[given]
        return shown

    def _prepare(self, frames: int, x: Tensor) -> Prepared:
        if self.conditions is None:
            raise ValueError(
                f"{self.name}: this SparseCtrl has no pictures. Apply it with DiffDirector's Apply SparseCtrl."
            )
        key = frames, *x.shape[2:]
        if key not in self._prepared:
            given, indices = self.conditions[:2]
            places = [place for place in indices.places(frames, len(given)) if place.strength]
            used = sorted({place.picture for place in places})
            kinds = sorted({(place.picture, place.strength) for place in places})
            seen = (
                self._fitted(given[used], *x.shape[2:]) if used else x.new_zeros(0, self.config.kind.channels - 1, 1, 1)
            )
            seen = seen[[used.index(picture) for picture, _ in kinds]]
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            seen = torch.cat([seen, seen.new_zeros(1, *seen.shape[1:])])
            strengths = torch.tensor([*(strength for _, strength in kinds), 0.0])
            of_frame = {place.frame: kinds.index((place.picture, place.strength)) for place in places}
            self._prepared[key] = Prepared(seen.to(x.device, self._dtype), strengths.to(x.device), of_frame)
        return self._prepared[key]

    def _fitted(self, pictures: Tensor, height: int, width: int) -> Tensor:
        """Pictures as the stem takes them, for latents of height and width."""
        if self.vae is None:
            return cut(pictures, height * PIXELS, width * PIXELS)
        loaded = comfy.model_management.loaded_models(only_currently_used=True)
        latents = encoded(pictures, self.vae, height, width)
        comfy.model_management.load_models_gpu(loaded)
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


def sparse_ctrl_from_state(state: dict[str, Tensor], name: str, dtype: torch.dtype | None = None) -> SparseControl:
    """The same from tensors in memory. dtype: to keep them in, rather than as the host would."""
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
    return SparseControl(name, config, managed(lambda *made: SparseEncoder(config, *made), tensors, dtype))


def _alike(shown: list[int], timesteps: Tensor, context: Tensor) -> tuple[list[int], list[int]]:
    """(the first of each kind of row, which of those each row is like); a row's text is compared with that of the row before."""
    changes = (context[1:] != context[:-1]).flatten(1).any(1) | (timesteps[1:] != timesteps[:-1])
    kinds = list(zip(shown, [0, *changes.cumsum(0).tolist()], strict=True))
    first = {kind: row for row, kind in reversed(list(enumerate(kinds)))}
    order = {kind: number for number, kind in enumerate(first)}
    return list(first.values()), [order[kind] for kind in kinds]


def _among(part: Tensor, rows: Tensor, count: int) -> Tensor:
    """part [rows, ...] at its rows of count, zeros at the others."""
    return part.new_zeros(count, *part.shape[1:]).index_copy_(0, rows, part)


def _shape(unet: dict[str, Any]) -> str:
    return f"levels {unet.get('channel_mult')} of {unet.get('num_res_blocks')} layers and text of {unet.get('context_dim')} channels"
