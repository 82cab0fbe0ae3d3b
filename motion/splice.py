"""Binds motion models to a MODEL through ModelPatcher's patch API, and nothing else of the host is touched.

A handler for SpatialTransformer and one for ResBlock run the stock layer and then the motion modules that belong to
transformer_options["block"]; the motion models are attached as additional models, so the host loads, offloads and
counts them. Everything a sampling needs to know lies in one immutable MotionSplice per MODEL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    ResBlock,
    TimestepBlock,
    UNetModel,
    forward_timestep_embed,
)
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .applied import AppliedMotion
from .model_sampling import set_schedule
from .module import MotionModelHandle, host_kernel
from .moment import VIEWS, ClipFrames, frames_of_clips, frames_per_clip, percent_of, step_number
from .norms import over_clips
from .schedules import AUTO, schedule_for
from .strength import MotionStrength
from .topology import Block, UNetShape, match_blocks
from .windows import Windows, plan

KEY = "diffdirector"
SAMPLING_KEY = "diffdirector_sampling"
FEWEST_FRAMES = 8  # below this, modules trained on 16 frames give noise
FIRST_CONVOLUTION = ("input", 0)
SpatialTransformer = comfy.ldm.modules.attention.SpatialTransformer

NORM_AUTO, NORM_PER_FRAME = "auto", "per frame"
NORM_ACROSS_FRAMES = "across frames (original v1)"
NORM_EVERYWHERE = "across frames everywhere (AnimateDiff-Evolved's v1)"
GROUP_NORMS = [NORM_AUTO, NORM_PER_FRAME, NORM_ACROSS_FRAMES, NORM_EVERYWHERE]

Warn = Callable[[str], None]


class _Moment(NamedTuple):
    """What is the same for all blocks of an evaluation."""

    sigmas: Tensor | None
    active: list[AppliedMotion]
    step: int
    percent: float  # of the sampling that is done, 0 to 1, as start_percent counts it


@dataclass(frozen=True)
class MotionSplice:
    """The motion models of one MODEL; several add their effects: x + sum of strength * motion(x)."""

    motions: tuple[AppliedMotion, ...]
    transformer_blocks: frozenset[Block]
    sampling: Any  # the noise schedule when the last motion model was applied
    warn: Warn

    def handlers(self) -> list[tuple[type, Callable[..., Tensor]]]:
        handlers = [(SpatialTransformer, self.after_spatial_transformer), (ResBlock, self.after_resblock)]
        if any(motion.picture is not None for motion in self.motions):
            handlers.append((nn.Conv2d, self.after_convolution))
        return handlers

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

    def after_convolution(
        self, layer: nn.Module, x: Tensor, emb: Tensor, context: Any, options: dict[str, Any], *rest: Any
    ) -> Tensor:
        x = _stock_layer(layer, x, emb, context, options, rest)
        if options["block"] == FIRST_CONVOLUTION:
            for motion in self.moment(options).active:
                if motion.picture is not None:
                    x = motion.picture.shown(x, motion.model.conv_in, frames_of_clips(x, options))
        return x

    def _move(self, x: Tensor, options: dict[str, Any]) -> Tensor:
        moment = self.moment(options)
        if not any(options["block"] in motion.sites for motion in moment.active):
            return x
        shown = frames_of_clips(x, options)
        views: Windows | None = options.get(VIEWS)
        if views is None or not views.needed(shown.length):
            return self._moved(x, shown, moment, options)
        plan_of_views = plan(views, shown.length, moment.step)
        clips = x.view(-1, shown.length, *x.shape[1:])
        effect = torch.zeros_like(clips)
        every_weight = x.new_tensor(plan_of_views.weights)
        for window, weights in zip(plan_of_views.windows, every_weight, strict=True):
            frames = clips[:, list(window)]
            seen = frames.flatten(0, 1)
            change = self._moved(seen, shown.window(window), moment, options) - seen
            effect[:, list(window)] += change.view_as(frames) * weights.view(-1, 1, 1, 1)
        return x + effect.view_as(x)

    def _moved(self, x: Tensor, shown: ClipFrames, moment: _Moment, options: dict[str, Any]) -> Tensor:
        kernel = host_kernel(options)
        result = x
        for motion in moment.active:
            moved = motion.move(x, options["block"], shown, moment.percent, kernel)
            if moved is not x:
                result = moved if result is x else result + (moved - x)
        return result

    def moment(self, options: dict[str, Any]) -> _Moment:
        """Sigmas are read from the device once per evaluation."""
        sigmas = options.get("sigmas")
        known: _Moment | None = options.get(KEY)
        if known is None or known.sigmas is not sigmas:
            over_steps = any(motion.over_steps for motion in self.motions)
            asked = over_steps or any(motion.ranged for motion in self.motions)
            sigma = float(sigmas.max()) if asked and sigmas is not None else None
            sampling = options.get(SAMPLING_KEY, self.sampling)
            active = [motion for motion in self.motions if motion.active(sigma, sampling)]
            percent = percent_of(sigma, sampling) if over_steps and sigma is not None else 0.0
            known = _Moment(sigmas, active, step_number(options) if VIEWS in options else 0, percent)
            options[KEY] = known
        return known

    def check_clip(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper: refuse or warn before anything is loaded or sampled."""
        guider = executor.class_obj
        # A later node may have changed the schedule: step ranges are judged by the one that is sampled.
        guider.model_options["transformer_options"][SAMPLING_KEY] = guider.model_patcher.get_model_object(
            "model_sampling"
        )
        frames = total = noise.shape[0]
        windows = guider.model_options.get("context_handler")
        source = "the batch has"
        if getattr(windows, "dim", None) == 0 and hasattr(windows, "context_length"):
            fixed = bool(getattr(windows, "causal_window_fix", False))
            window = f"a context window{' with causal_window_fix' if fixed else ''} has"
            frames, source = min((frames, source), (windows.context_length + fixed, window))
        views: Windows | None = guider.model_options["transformer_options"].get(VIEWS)
        if views is not None:
            frames, source = min((frames, source), (views.length, "a view has"))
        limit = min(motion.max_frames for motion in self.motions)
        if frames > limit:
            self.warn(f"{frames} frames: this motion model takes at most {limit} at a time.")
        for motion in self.motions:
            motion.check(total, frames, source)
        warnings = []
        if frames < FEWEST_FRAMES:
            warnings.append(f"{frames} frames: fewer than {FEWEST_FRAMES} give noise. Raise batch_size.")
        others = sorted(_rows_of_text(guider.original_conds) - {1, total})
        if others:
            warnings.append(f"Prompts for {others[0]} frames, but the batch has {total}: make them the same.")
        for motion in self.motions:
            if motion.picture is not None:
                motion.picture.fit(noise.shape[2], noise.shape[3], guider.model_patcher.model.process_latent_in)
            elif motion.handle.config.takes_picture:
                warnings.append(
                    f"{motion.handle.name} has no picture, so the prompt alone decides. PIA (Image to Animation) gives it one."
                )
        self.warn(" ".join(warnings))
        return executor(noise, *args, **kwargs)

    def normalise_across_frames(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """DIFFUSION_MODEL wrapper: for this one evaluation, let the UNet's group norms see whole clips where a motion asks for it.

        Forward hooks on this UNet's own norms, removed right after; no class or function of torch or the host changes.
        """
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "patches" in a)
        active = self.moment(options).active
        modes = {motion.group_norm for motion in active}
        unet, frames = executor.class_obj, frames_per_clip(x, options)
        norms: list[nn.Module] = []
        norms_of_motions: list[nn.Module] = []
        if NORM_EVERYWHERE in modes:
            everywhere = dict.fromkeys(motion.model for motion in active if motion.group_norm == NORM_EVERYWHERE)
            norms, norms_of_motions = _group_norms([unet]), _group_norms(everywhere)
        elif NORM_ACROSS_FRAMES in modes:
            norms = _resblock_norms(unet)
        views: Windows | None = options.get(VIEWS)
        seen_together = min(frames, views.length) if views is not None else frames
        with over_clips(norms, frames), over_clips(norms_of_motions, seen_together):
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
    strengths: Sequence[MotionStrength] = (),
    warn: Warn | None = None,
) -> ModelPatcher:
    """A clone of model (a MODEL with an SD1.5 or SDXL UNet) whose batches of latents are the frames of one clip.

    Applying another motion model to the result adds its effect. stretch_to: interpolate the positional encoding over
    that many frames (0: as stored). strengths: over frames, steps, places and blocks, all multiplied. warn: called with
    what the user should know when a sampling starts, with "" when all is well; the log by default. Raises ValueError
    when the two do not fit, before anything is sampled.
    """
    _check_host()
    check_checkpoint(model)
    unet: Any = model.model.diffusion_model
    sites = match_blocks(unet_shape(unet), handle.config, handle.name)
    for part in strengths:
        part.check_blocks(sites.values())
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
    motion = AppliedMotion(
        handle, sites, strength, start_percent, end_percent, group_norm, stretch_to, tuple(strengths)
    )
    sampling = result.get_model_object("model_sampling")
    install(result, MotionSplice((*earlier, motion), _transformer_blocks(unet), sampling, warn or _log), previous)
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


def _rows_of_text(conds: dict[str, list[dict[str, Any]]]) -> set[int]:
    """For how many frames the conditionings of a guider have text; 1: the same for all."""
    return {len(cond["cross_attn"]) for every in conds.values() for cond in every if cond.get("cross_attn") is not None}


def options_for_direct_call(model: ModelPatcher, **extra: Any) -> dict[str, Any]:
    """transformer_options with model's patches and wrappers, for calling its UNet outside the host's sampling."""
    options = comfy.model_patcher.create_model_options_clone(model.model_options)["transformer_options"]
    comfy.patcher_extension.merge_nested_dicts(options.setdefault("wrappers", {}), model.wrappers, copy_dict1=False)
    return options | extra


def install(model: ModelPatcher, splice: MotionSplice, previous: MotionSplice | None) -> None:
    """Let model, a clone of one's own, be moved by splice in the place of the previous one that it has."""
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
    if isinstance(layer, nn.Conv2d):
        return layer(x)
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


def _group_norms(roots: Iterable[nn.Module]) -> list[nn.Module]:
    return [module for root in roots for module in root.modules() if isinstance(module, nn.GroupNorm)]


def _resblock_norms(unet: Any) -> list[nn.Module]:
    blocks = [module for module in unet.modules() if isinstance(module, ResBlock)]
    return [norm for block in blocks for norm in (block.in_layers[0], block.out_layers[0])] + [unet.out[0]]
