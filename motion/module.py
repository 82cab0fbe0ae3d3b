"""The temporal transformer, built from a MotionConfig with the host's ops.

Architecture: AnimateDiff (arXiv:2307.04725; github.com/guoyww/AnimateDiff, animatediff/models/motion_module.py).
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor, autocast, nn

from .attention import Kernel, attend, positions_per_chunk
from .formats import NORM_GROUPS, PICTURE_CHANNELS, MotionConfig, MotionFormatError, SiteConfig, read_motion_model
from .live_lora import LiveLora

SHORT = 32  # frames; of longer clips PyTorch's kernel on a CPU is no slower, and keeps no scores


class MotionModel(nn.Module):
    """All motion modules of one checkpoint; its state dict has the canonical keys of motion/formats.py."""

    def __init__(self, config: MotionConfig, operations: Any, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        factory = {"operations": operations, "dtype": dtype, "device": device}
        if config.takes_picture:
            made = {"dtype": dtype, "device": device}
            width = config.down_channels[0]
            self.conv_in = operations.Conv2d(PICTURE_CHANNELS, width, 3, padding=1, bias=False, **made)
        for site, shape in config.sites.items():
            *parents, leaf = f"{site}.temporal_transformer".split(".")
            parent: nn.Module = self
            for name in parents:
                if name not in parent._modules:
                    parent.add_module(name, nn.Module())
                parent = parent.get_submodule(name)
            parent.add_module(leaf, TemporalTransformer(shape, config.heads, config.max_frames, factory))

    def at(self, site: str) -> TemporalTransformer:
        module = self.get_submodule(f"{site}.temporal_transformer")
        assert isinstance(module, TemporalTransformer)
        return module


class TemporalTransformer(nn.Module):
    """One motion module: normalise each frame, then let every pixel position attend over the frames."""

    def __init__(self, shape: SiteConfig, heads: int, max_frames: int, factory: dict[str, Any]) -> None:
        super().__init__()
        ops, made = factory["operations"], {key: factory[key] for key in ("dtype", "device")}
        self.norm = ops.GroupNorm(NORM_GROUPS, shape.channels, eps=1e-6, **made)
        self.proj_in = ops.Linear(shape.channels, shape.inner, **made)
        self.transformer_blocks = nn.ModuleList(
            TemporalBlock(shape, heads, max_frames, factory) for _ in range(shape.depth)
        )
        self.proj_out = ops.Linear(shape.inner, shape.channels, **made)
        self.widest = 2 * shape.ff_inner

    def forward(
        self,
        x: Tensor,
        frames: int,
        strength: float = 1.0,
        stretch_to: int = 0,
        kernel: Kernel | None = None,
        attention: float | Tensor = 1.0,
    ) -> Tensor:
        """x + strength * motion(x).

        x: [clips * frames, channels, height, width], the frames of a clip together. stretch_to: see PositionalEncoding.
        attention: factor on the queries, also [clips * frames, 1, 1 or height, 1 or width].
        Attention over time treats positions alone, so taking them in chunks gives the same numbers.
        """
        if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
            x = x.contiguous()
        clips, (channels, height, width) = x.shape[0] // frames, x.shape[1:]
        kernel = kernel or host_kernel()
        # [clips, positions, frames, channels], a view: each chunk is copied once, in the order attention wants
        tokens = self.norm(x).view(clips, frames, channels, height * width).permute(0, 3, 1, 2)
        step = positions_per_chunk(x.device, x.element_size(), frames, self.widest)
        scale = _per_token(attention, clips, frames, height, width)
        if torch.is_grad_enabled() or step >= clips * height * width:
            motion = self._motion(tokens, stretch_to, kernel, scale)
            source = x.view(clips, frames, channels, height * width)
            return torch.add(source, motion.permute(0, 2, 3, 1), alpha=strength).reshape_as(x)
        out = torch.empty_like(x)
        source, target = (t.view(clips, frames, channels, height * width).permute(0, 3, 1, 2) for t in (x, out))
        for clip in range(clips):
            for start in range(0, height * width, step):
                chunk = clip, slice(start, start + step)
                torch.add(
                    source[chunk],
                    self._motion(
                        tokens[chunk], stretch_to, kernel, scale[chunk] if isinstance(scale, Tensor) else scale
                    ),
                    alpha=strength,
                    out=target[chunk],
                )
        return out

    def _motion(self, tokens: Tensor, stretch_to: int, kernel: Kernel, scale: float | Tensor | None) -> Tensor:
        """Of tokens [..., frames, channels], each row of them by itself; the same shape."""
        rows = self.proj_in(tokens.reshape(-1, *tokens.shape[-2:]).contiguous())
        scale = scale.reshape(-1, *scale.shape[-2:]) if isinstance(scale, Tensor) else scale
        for block in self.transformer_blocks:
            rows = block(rows, stretch_to, kernel, scale)
        return self.proj_out(rows).view(tokens.shape)


def _per_token(factor: float | Tensor, clips: int, frames: int, height: int, width: int) -> float | Tensor | None:
    """[clips, height * width, frames, 1]; a number as it is, None for a factor of 1."""
    if not isinstance(factor, Tensor):
        return None if factor == 1 else factor
    everywhere = factor.expand(-1, -1, height, width)
    return everywhere.reshape(clips, frames, 1, height * width).permute(0, 3, 1, 2)


class TemporalBlock(nn.Module):
    """Self-attentions over time, then a GEGLU feed-forward; pre-norm residuals. Tokens: [rows, frames, inner]."""

    def __init__(self, shape: SiteConfig, heads: int, max_frames: int, factory: dict[str, Any]) -> None:
        super().__init__()
        ops, made = factory["operations"], {key: factory[key] for key in ("dtype", "device")}
        inner, count = shape.inner, shape.attentions
        self.attention_blocks = nn.ModuleList(
            TemporalAttention(inner, heads, max_frames, ops, made) for _ in range(count)
        )
        self.norms = nn.ModuleList(ops.LayerNorm(inner, **made) for _ in range(count))
        self.ff = FeedForward(inner, shape.ff_inner, ops, made)
        self.ff_norm = ops.LayerNorm(inner, **made)

    def forward(self, x: Tensor, stretch_to: int, kernel: Kernel, scale: float | Tensor | None) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = attention(norm(x), stretch_to, kernel, scale) + x
        return self.ff(self.ff_norm(x)) + x


class TemporalAttention(nn.Module):
    """Self-attention over the frames of one pixel position, with an absolute positional encoding."""

    def __init__(self, inner: int, heads: int, max_frames: int, ops: Any, made: dict[str, Any]) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = ops.Linear(inner, inner, bias=False, **made)
        self.to_k = ops.Linear(inner, inner, bias=False, **made)
        self.to_v = ops.Linear(inner, inner, bias=False, **made)
        self.to_out = nn.Sequential(ops.Linear(inner, inner, **made))
        self.pos_encoder = PositionalEncoding(max_frames, inner, made["device"])

    def forward(self, x: Tensor, stretch_to: int, kernel: Kernel, scale: float | Tensor | None) -> Tensor:
        """scale: a factor on the queries, also [rows, frames, 1]."""
        x = x + self.pos_encoder(x, stretch_to)
        query = self.to_q(x) if scale is None else self.to_q(x) * scale
        return self.to_out(attend(query, self.to_k(x), self.to_v(x), self.heads, kernel))


class PositionalEncoding(nn.Module):
    """The stored encoding, in float32 whatever the weights are: it is used as stored, and small."""

    pe: Tensor

    def __init__(self, max_frames: int, inner: int, device: torch.device | str) -> None:
        super().__init__()
        self.register_buffer("pe", torch.empty(1, max_frames, inner, dtype=torch.float32, device=device))

    def forward(self, x: Tensor, stretch_to: int) -> Tensor:
        """The encoding of x's frames, [1, frames, inner]; interpolated over stretch_to frames when that is longer.

        Cast to x's device: the host's partial loading moves modules with parameters only, so a buffer may stay behind.
        """
        pe = self.pe
        if stretch_to > pe.shape[1]:
            pe = F.interpolate(pe.transpose(1, 2), size=stretch_to, mode="linear", align_corners=True).transpose(1, 2)
        return pe[:, : x.shape[1]].to(device=x.device, dtype=x.dtype)


class FeedForward(nn.Module):
    """Its keys, net.0.proj and net.2, are the original's."""

    def __init__(self, inner: int, ff_inner: int, ops: Any, made: dict[str, Any]) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(inner, ff_inner, ops, made), nn.Identity(), ops.Linear(ff_inner, inner, **made))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class GEGLU(nn.Module):
    """Half of a projection, gated by the GELU of its other half (arXiv:2002.05202)."""

    def __init__(self, inner: int, ff_inner: int, ops: Any, made: dict[str, Any]) -> None:
        super().__init__()
        self.proj = ops.Linear(inner, 2 * ff_inner, **made)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


def host_kernel(transformer_options: dict[str, Any] | None = None) -> Kernel:
    """The host's attention function, honouring an optimized_attention_override in transformer_options.

    Where the host chose a kernel made to save memory on long sequences, PyTorch's is both smaller and faster here:
    a sequence is one clip. SageAttention's 8-bit path is declined: at 16 to 32 tokens it would cost exactness for nothing.
    Where gradients are wanted on a CPU, so short a sequence takes the host's plain attention a seventh of the time.
    """
    chosen = host_attention.optimized_attention
    if chosen in (host_attention.attention_sub_quad, host_attention.attention_split):
        chosen = host_attention.attention_pytorch

    def kernel(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        if torch.is_grad_enabled() and q.device.type == "cpu" and q.shape[1] <= SHORT:
            with autocast("cpu", enabled=False):  # as PyTorch's kernel, which rounds nothing on its way
                plain = host_attention.attention_basic(
                    q.float(), k.float(), v.float(), heads, transformer_options=transformer_options
                )
            return plain.to(q.dtype)
        return chosen(q, k, v, heads, low_precision_attention=False, transformer_options=transformer_options)

    return kernel


@dataclass(frozen=True)
class MotionModelHandle:
    """A motion model that the host manages (MOTION_MODEL). source makes it again, with the weights as in the file."""

    name: str
    config: MotionConfig
    patcher: ModelPatcher
    source: Callable[[], ModelPatcher]
    live: tuple[LiveLora, ...] = ()  # MotionLoRAs that no weight patch can be

    def reloaded(self) -> MotionModelHandle:
        """The same model with the same patches on weights of its own."""
        fresh = self.source()
        return replace(self, patcher=self.patcher.clone(model_override=fresh.get_clone_model_override()))


def load_motion_model(path: str, name: str | None = None) -> MotionModelHandle:
    """Load any motion checkpoint (see motion/formats.py). Pickles are read with weights_only=True.

    Raises MotionFormatError, naming the file, when it cannot be read or is something else.
    """
    name = name or os.path.basename(path)
    try:
        state, metadata = load_tensors(path)
        config, canonical = read_motion_model(state, metadata)
    except MotionFormatError as error:
        raise MotionFormatError(f"{name}: {error}") from None
    return MotionModelHandle(
        name, config, _make_patcher(config, canonical), lambda: load_motion_model(path, name).patcher
    )


def motion_model_from_state(
    state: dict[str, Tensor], name: str, dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
) -> MotionModelHandle:
    """The same from tensors in memory, which are kept for as long as the handle is. dtype: the host's choice by default.

    metadata: as of a file.
    """
    config, canonical = read_motion_model(state, metadata)

    def make() -> ModelPatcher:
        return _make_patcher(config, canonical, dtype)

    return MotionModelHandle(name, config, make(), make)


def load_tensors(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(what the file holds, its metadata). Raises MotionFormatError with what to do when it cannot be read."""
    try:
        state, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except pickle.UnpicklingError:
        # torch's own message advises to lift the protection; ours does not repeat it
        raise MotionFormatError(
            "This file holds Python objects besides tensors, or is no model file at all, and was not opened: it could run code. "
            "Get a .safetensors version of it, or the original file again."
        ) from None
    except (FileNotFoundError, PermissionError) as error:
        raise MotionFormatError(f"This file cannot be opened: {error.strerror or error}.") from None
    except Exception as error:  # torch and safetensors raise a dozen kinds for a damaged file
        raise MotionFormatError(
            f"This file cannot be read; the download was probably cut short. Get it again. ({error})"
        ) from None
    if not isinstance(state, dict):
        raise MotionFormatError(f"Expected a file of named tensors, found a {type(state).__name__}.")
    return state, _sidecar_metadata(path) | (metadata or {})


def _sidecar_metadata(path: str) -> dict[str, str]:
    """What diffusers and PEFT write beside a file of their own naming and not into it: heads, LoRA scales."""
    folder, name = os.path.split(path)
    try:
        if name.startswith("diffusion_pytorch_model"):
            with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
                heads = json.load(file).get("motion_num_attention_heads")
            return {} if heads is None else {"num_attention_heads": str(heads)}
        if name.startswith("adapter_model"):
            with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as file:
                return {"lora_adapter_metadata": file.read()}
    except (OSError, ValueError, AttributeError):
        pass  # no sidecar, or none of theirs
    return {}


def _make_patcher(config: MotionConfig, canonical: dict[str, Tensor], dtype: torch.dtype | None = None) -> ModelPatcher:
    return managed(lambda *made: MotionModel(config, *made), canonical, dtype)


def managed(
    build: Callable[[Any, torch.dtype, torch.device], nn.Module],
    state: dict[str, Tensor],
    dtype: torch.dtype | None = None,
) -> ModelPatcher:
    """What build(operations, dtype, device) makes, with these weights, for the host to load, offload and count."""
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    dtype = dtype or _storage_dtype(state, device)
    model = build(comfy.ops.manual_cast, dtype, offload_device)
    model.eval().requires_grad_(False)
    # By attribute: the host replaces CoreModelPatcher at start when it manages memory dynamically.
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=offload_device)
    eight_bit = dtype.itemsize == 1
    if patcher.is_dynamic() or eight_bit:
        # Norms and biases are small and lose the most: in 8 bits only the matrices are kept.
        state = {
            key: value.float() if key.endswith(".pe") else value.to(dtype) if value.ndim > 1 or not eight_bit else value
            for key, value in state.items()
        }
        model.load_state_dict(state, assign=True)
    else:
        model.load_state_dict(state)
    return patcher


def _storage_dtype(state: dict[str, Tensor], device: torch.device) -> torch.dtype:
    """As the host would keep an image UNet of this file, its --fp16-unet and like flags included; 8-bit files stay 8-bit."""
    stored = comfy.utils.weight_dtype(state)
    if stored is not None and stored.itemsize == 1:
        return stored
    parameters = sum(value.numel() for value in state.values())
    return comfy.model_management.unet_dtype(device=device, model_params=parameters, weight_dtype=stored)
