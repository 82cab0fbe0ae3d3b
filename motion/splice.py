"""Binds motion models to a MODEL through ModelPatcher's patch API, and nothing else of the host is touched.

A handler for SpatialTransformer and one for ResBlock run the stock layer and then the motion modules that belong to
transformer_options["block"]; the motion models are attached as additional models, so the host loads, offloads and
counts them. Everything a sampling needs to know lies in one immutable MotionSplice per MODEL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    ResBlock,
    TimestepBlock,
    UNetModel,
    forward_timestep_embed,
)
from comfy.ldm.modules.diffusionmodules.util import make_beta_schedule
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled
from torch import Tensor, nn

from .module import MotionModel, MotionModelHandle, host_kernel
from .norms import over_clips
from .schedules import AUTO, BetaSchedule, schedule_for
from .topology import Block, UNetShape, match_blocks

KEY = "diffdirector"
SAMPLING_KEY = "diffdirector_sampling"
FEWEST_FRAMES = 8  # below this, modules trained on 16 frames give noise
SpatialTransformer = comfy.ldm.modules.attention.SpatialTransformer

NORM_AUTO, NORM_PER_FRAME = "auto", "per frame"
NORM_ACROSS_FRAMES = "across frames (original v1)"
NORM_EVERYWHERE = "across frames everywhere (AnimateDiff-Evolved's v1)"
GROUP_NORMS = [NORM_AUTO, NORM_PER_FRAME, NORM_ACROSS_FRAMES, NORM_EVERYWHERE]

Warn = Callable[[str], None]


@dataclass(frozen=True)
class AppliedMotion:
    """One motion model on one MODEL. sites: UNet block -> name of the motion module that follows it."""

    handle: MotionModelHandle
    sites: dict[Block, str]
    strength: float
    start_percent: float
    end_percent: float
    group_norm: str
    stretch_to: int

    @property
    def model(self) -> MotionModel:
        return self.handle.patcher.model

    @property
    def max_frames(self) -> int:
        return max(self.handle.config.max_frames, self.stretch_to)

    @property
    def ranged(self) -> bool:
        return self.start_percent > 0 or self.end_percent < 1

    def active(self, sigma: float | None, sampling: Any) -> bool:
        """At a step of this sigma of this noise schedule; None: a call from outside of any sampling."""
        if self.strength == 0 or sigma is None:
            return self.strength != 0
        return sampling.percent_to_sigma(self.end_percent) <= sigma <= sampling.percent_to_sigma(self.start_percent)


@dataclass(frozen=True)
class MotionSplice:
    """The motion models of one MODEL; several add their effects: x + sum of strength * motion(x)."""

    motions: tuple[AppliedMotion, ...]
    transformer_blocks: frozenset[Block]
    sampling: Any  # the noise schedule when the last motion model was applied
    warn: Warn

    def handlers(self) -> list[tuple[type, Callable[..., Tensor]]]:
        return [(SpatialTransformer, self.after_spatial_transformer), (ResBlock, self.after_resblock)]

    def after_spatial_transformer(
        self, layer: nn.Module, x: Tensor, emb: Tensor, context: Any, options: dict[str, Any], *rest: Any
    ) -> Tensor:
        x = _stock_layer(layer, x, emb, context, options, rest)
        return self._move(x, options)

    def after_resblock(
        self, layer: nn.Module, x: Tensor, emb: Tensor, context: Any, options: dict[str, Any], *rest: Any
    ) -> Tensor:
        x = _stock_layer(layer, x, emb, context, options, rest)
        return x if options["block"] in self.transformer_blocks else self._move(x, options)

    def _move(self, x: Tensor, options: dict[str, Any]) -> Tensor:
        site_of = [(motion, motion.sites.get(options["block"])) for motion in self.active(options)]
        modules = [(motion, motion.model.at(site)) for motion, site in site_of if site is not None]
        if not modules:
            return x
        frames = frames_per_clip(x, options)
        kernel = host_kernel(options)
        result = x
        for motion, module in modules:
            self._check_frames(frames, motion)
            moved = module(x, frames, motion.strength, motion.stretch_to, kernel)
            result = moved if result is x else result + (moved - x)
        return result

    def active(self, options: dict[str, Any]) -> list[AppliedMotion]:
        """The motion models at work at this step. The step's sigma is read from the device once per evaluation."""
        sigmas = options.get("sigmas")
        known, active = options.get(KEY, (None, None))
        if active is None or known is not sigmas:
            ranged = any(motion.ranged for motion in self.motions)
            sigma = float(sigmas.max()) if ranged and sigmas is not None else None
            sampling = options.get(SAMPLING_KEY, self.sampling)
            active = [motion for motion in self.motions if motion.active(sigma, sampling)]
            options[KEY] = (sigmas, active)
        return active

    def check_clip(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper: refuse or warn before anything is loaded or sampled."""
        guider = executor.class_obj
        # A later node may have changed the schedule: step ranges are judged by the one that is sampled.
        guider.model_options["transformer_options"][SAMPLING_KEY] = guider.model_patcher.get_model_object(
            "model_sampling"
        )
        frames = noise.shape[0]
        windows = guider.model_options.get("context_handler")
        source = "the batch has"
        if getattr(windows, "dim", None) == 0 and hasattr(windows, "context_length"):
            fixed = bool(getattr(windows, "causal_window_fix", False))
            window = f"a context window{' with causal_window_fix' if fixed else ''} has"
            frames, source = min((frames, source), (windows.context_length + fixed, window))
        limit = min(motion.max_frames for motion in self.motions)
        if frames > limit:
            self.warn(f"{frames} frames: this motion model takes at most {limit} at a time.")
        for motion in self.motions:
            self._check_frames(frames, motion, source)
        self.warn(
            f"{frames} frames: fewer than {FEWEST_FRAMES} give noise. Raise batch_size."
            if frames < FEWEST_FRAMES
            else ""
        )
        return executor(noise, *args, **kwargs)

    def _check_frames(self, frames: int, motion: AppliedMotion, source: str = "the batch has") -> None:
        if frames > motion.max_frames:
            raise ValueError(
                f"{motion.handle.name}: this motion model moves at most {motion.max_frames} frames at a time, {source} {frames}. "
                f"Use {motion.max_frames} frames or fewer, add Context Windows (of at most {motion.max_frames}), "
                "or stretch the positional encoding with stretch_to_frames."
            )

    def normalise_across_frames(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """DIFFUSION_MODEL wrapper: for this one evaluation, let the UNet's group norms see whole clips where a motion asks for it.

        Forward hooks on this UNet's own norms, removed right after; no class or function of torch or the host changes.
        """
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "patches" in a)
        active = self.active(options)
        modes = {motion.group_norm for motion in active}
        norms: list[nn.Module] = []
        if NORM_EVERYWHERE in modes:
            everywhere = (motion.model for motion in active if motion.group_norm == NORM_EVERYWHERE)
            roots = [executor.class_obj, *dict.fromkeys(everywhere)]
            norms = [module for root in roots for module in root.modules() if isinstance(module, nn.GroupNorm)]
        elif NORM_ACROSS_FRAMES in modes:
            norms = _resblock_norms(executor.class_obj)
        with over_clips(norms, frames_per_clip(x, options)):
            return executor(x, *args, **kwargs)


def apply_motion_model(
    model: ModelPatcher,
    handle: MotionModelHandle,
    *,
    beta_schedule: str = AUTO,
    strength: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    group_norm: str = NORM_AUTO,
    stretch_to: int = 0,
    warn: Warn | None = None,
) -> ModelPatcher:
    """A clone of model (a MODEL with an SD1.5 or SDXL UNet) whose batches of latents are the frames of one clip.

    Applying another motion model to the result adds its effect. stretch_to: interpolate the positional encoding over
    that many frames (0: as stored). warn: called with what the user should know when a sampling starts, with "" when all
    is well; the log by default. Raises ValueError when the two do not fit, before anything is sampled.
    """
    _check_host()
    check_checkpoint(model)
    unet: Any = model.model.diffusion_model
    sites = match_blocks(unet_shape(unet), handle.config, handle.name)
    result = model.clone()
    schedule = schedule_for(beta_schedule, handle.config)
    if schedule is not None:
        set_schedule(result, schedule)

    previous: MotionSplice | None = result.get_attachment(KEY)
    earlier = previous.motions if previous else ()
    if any(_same_module_other_weights(handle.patcher, other.handle.patcher) for other in earlier):
        handle = handle.reloaded()  # one module cannot hold two sets of patched weights
    if group_norm == NORM_AUTO:
        group_norm = NORM_ACROSS_FRAMES if handle.config.norm_across_frames else NORM_PER_FRAME
    logging.info("%s: %s; schedule %s, group norm %s", handle.name, handle.config.describe(), beta_schedule, group_norm)
    motion = AppliedMotion(handle, sites, strength, start_percent, end_percent, group_norm, stretch_to)
    sampling = result.get_model_object("model_sampling")
    _install(result, MotionSplice((*earlier, motion), _transformer_blocks(unet), sampling, warn or _log), previous)
    return result


def _same_module_other_weights(first: ModelPatcher, second: ModelPatcher) -> bool:
    return first.is_clone(second) and first.patches_uuid != second.patches_uuid


@cache
def _check_host() -> None:
    """Raise unless this ComfyUI runs handlers for ResBlock and SpatialTransformer; before 0.20 it passed them over in silence."""

    class Probe(TimestepBlock):
        def forward(self, x: Any, emb: Any) -> Any:
            return x

    patches = {"patches": {"forward_timestep_embed_patch": [(Probe, lambda *_: "handled")]}}
    if forward_timestep_embed([Probe()], "stock", None, transformer_options=patches) != "handled":
        raise RuntimeError(
            "DiffDirector needs ComfyUI 0.20.1 or newer: this one would sample without motion. Update ComfyUI."
        )


def _log(message: str) -> None:
    if message:
        logging.warning("DiffDirector: %s", message)


def frames_per_clip(x: Tensor, options: dict[str, Any]) -> int:
    """Frames in one clip of a batch that the host made of several conditionings. x: [conds * frames, ...]."""
    conds = len(options.get("cond_or_uncond") or [0])
    if x.shape[0] % conds:
        raise ValueError(
            f"Expected a batch of {conds} conditionings with the same number of frames each; found {x.shape[0]} latents."
        )
    return x.shape[0] // conds


def options_for_direct_call(model: ModelPatcher, **extra: Any) -> dict[str, Any]:
    """transformer_options with model's patches and wrappers, for calling its UNet outside the host's sampling."""
    options = comfy.model_patcher.create_model_options_clone(model.model_options)["transformer_options"]
    comfy.patcher_extension.merge_nested_dicts(options.setdefault("wrappers", {}), model.wrappers, copy_dict1=False)
    return options | extra


def _install(model: ModelPatcher, splice: MotionSplice, previous: MotionSplice | None) -> None:
    patches = model.model_options["transformer_options"].setdefault("patches", {})
    present = patches.get("forward_timestep_embed_patch", [])
    foreign = [entry for entry in present if previous is None or getattr(entry[1], "__self__", None) is not previous]
    # Ours come first: the host runs the first handler that matches, and _stock_layer passes on to the others.
    patches["forward_timestep_embed_patch"] = splice.handlers() + foreign
    model.set_attachments(KEY, splice)
    patchers = {id(motion.model): motion.handle.patcher for motion in splice.motions}
    model.set_additional_models(KEY, list(patchers.values()))  # each module once, however often it is applied
    wrappers = comfy.patcher_extension.WrappersMP
    for kind, function in (
        (wrappers.OUTER_SAMPLE, splice.check_clip),
        (wrappers.DIFFUSION_MODEL, splice.normalise_across_frames),
    ):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, function)


def _stock_layer(
    layer: Any, x: Tensor, emb: Tensor, context: Any, options: dict[str, Any], rest: tuple[Any, ...]
) -> Tensor:
    """What the host would have run for this layer, another pack's handler for its class included."""
    for kind, handler in options["patches"]["forward_timestep_embed_patch"]:
        if isinstance(layer, kind) and not isinstance(getattr(handler, "__self__", None), MotionSplice):
            return handler(layer, x, emb, context, options, *rest)
    if isinstance(layer, ResBlock):
        return layer(x, emb)
    x = layer(x, context, options)
    if "transformer_index" in options:
        options["transformer_index"] += 1
    return x


def check_checkpoint(model: ModelPatcher) -> None:
    """Raises ValueError for a model that motion models are not made for."""
    unet: Any = model.model.diffusion_model
    context_dim = model.model.model_config.unet_config.get("context_dim")
    if not isinstance(unet, UNetModel) or context_dim not in (768, 2048) or unet.use_temporal_resblocks:
        raise ValueError(
            f"Motion models animate SD1.5 and SDXL checkpoints; this model is {type(model.model.model_config).__name__}. "
            "Load an SD1.5 or SDXL checkpoint."
        )


def unet_shape(unet: Any) -> UNetShape:
    """The levels of a host UNet."""
    levels = [
        (unet.model_channels * multiple, count)
        for multiple, count in zip(unet.channel_mult, unet.num_res_blocks, strict=True)
    ]
    return UNetShape(levels, None if unet.middle_block is None else unet.middle_block[0].out_channels)


def _layers(unet: Any, block: Block) -> Any:
    group, index = block
    return unet.middle_block if group == "middle" else getattr(unet, f"{group}_blocks")[index]


def _transformer_blocks(unet: Any) -> frozenset[Block]:
    every = [("middle", 0)] if unet.middle_block is not None else []
    every += [(group, i) for group in ("input", "output") for i in range(len(getattr(unet, f"{group}_blocks")))]
    return frozenset(
        block for block in every if any(isinstance(layer, SpatialTransformer) for layer in _layers(unet, block))
    )


def _resblock_norms(unet: Any) -> list[nn.Module]:
    blocks = [module for module in unet.modules() if isinstance(module, ResBlock)]
    return [norm for block in blocks for norm in (block.in_layers[0], block.out_layers[0])] + [unet.out[0]]


def set_schedule(model: ModelPatcher, schedule: BetaSchedule) -> None:
    """Give model the noise schedule; its prediction type (eps, v, an LCM node's) stays what it is."""
    current = model.get_model_object("model_sampling")
    if not isinstance(current, comfy.model_sampling.ModelSamplingDiscrete) or isinstance(
        current, comfy.model_sampling.ModelSamplingDiscreteEDM
    ):
        logging.warning(
            "DiffDirector: %s is not a discrete noise schedule; the model keeps its own.", type(current).__name__
        )
        return
    # An earlier motion model's schedule stands on the checkpoint's; so does this one.
    own_kind = getattr(current, "diffdirector_own_kind", type(current))
    kind = own_kind if schedule.distilled_steps is None else _lcm_sampling(schedule.distilled_steps)
    zsnr = getattr(current, "zsnr", False)
    variants = [_schedule_variant(kind, schedule, host_name, zsnr) for host_name in schedule.host_names]
    sampling = variants[0]
    if len(variants) > 1:
        sampling.set_sigmas(torch.stack([variant.sigmas for variant in variants]).mean(0))
    sampling.diffdirector_own_kind = own_kind
    model.add_object_patch("model_sampling", sampling)


def _schedule_variant(kind: type, schedule: BetaSchedule, host_name: str, zsnr: bool) -> Any:
    by_numpy = (
        host_name == "squaredcos_cap_v2"
    )  # the host makes its betas with numpy and its own class then refuses them
    settings = {
        "beta_schedule": "linear" if by_numpy else host_name,
        "linear_start": schedule.linear_start,
        "linear_end": schedule.linear_end,
    }
    sampling = kind(SimpleNamespace(sampling_settings=settings), zsnr=zsnr)
    if by_numpy:
        sampling._register_schedule(given_betas=torch.as_tensor(make_beta_schedule(host_name, 1000)), zsnr=zsnr)
    return sampling


def _lcm_sampling(steps: int) -> type:
    class DistilledSampling(ModelSamplingDiscreteDistilled, LCM):
        original_timesteps = steps

    return DistilledSampling
