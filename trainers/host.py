"""The trainers' binding to the host: trainable copies of its loaded models, its VAE and text encoder, its noise schedule."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..motion.module import TemporalTransformer
from ..motion.norms import frames_seen_by, over_clips
from ..motion.splice import options_for_direct_call
from .config import ConfigError
from .dataset import Encoder

POOLED_WIDTH = 1280  # of SDXL's pooled text
WORTH_KEEPING = 1000  # multiplications for each number of a result
UNUSED = "clip_l.transformer.text_projection.weight"  # SD1.5 and SDXL have none; the host's is memory as it was found


@contextmanager
def training() -> Iterator[None]:
    """Nodes run under inference mode; training needs gradients, and kernels of the host that have a backward."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.in_training = before


def trainable_copy(model: ModelPatcher) -> ModelPatcher:
    """A clone of model on frozen weights of its own that gradients can pass through (inside training()).

    The loaded weights may be inference tensors, which autograd refuses; so they are read again where the loader says how.
    """
    if model.cached_patcher_init is not None:
        loader, arguments, *index = model.cached_patcher_init
        fresh = loader(*arguments, disable_dynamic=True)
        fresh = fresh[index[0]] if index else fresh
    else:
        original: Any = model.model
        kept = (original.model_config, original.current_patcher)  # the host's configs cannot be copied
        copied = copy.deepcopy(original, {id(item): item for item in kept})
        fresh = ModelPatcher(copied, model.load_device, model.offload_device)
    result = model.clone(model_override=fresh.get_clone_model_override())
    result.model.requires_grad_(False)
    return result


def load_checkpoint(path: Path) -> tuple[ModelPatcher, Any, Any]:
    """A whole checkpoint's MODEL, CLIP and VAE, as Load Checkpoint gives them. Raises ConfigError for other files."""
    try:
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    except RuntimeError as error:
        raise ConfigError(f"model.checkpoint: expected a whole SD checkpoint, found {path.name}: {error}") from None
    if model is None or clip is None or vae is None:
        raise ConfigError(f"model.checkpoint: {path.name} lacks the UNet, the text encoder or the VAE.")
    return model, clip, vae


def encoder(model: ModelPatcher, vae: Any, clip: Any) -> Encoder:
    """The host's own VAE and text encoder, for a dataset."""

    def latents(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            encoded = vae.encode(pixels.permute(0, 2, 3, 1))
        return model.model.process_latent_in(encoded).cpu().clone()

    def text(caption: str) -> Tensor:
        with torch.inference_mode():
            tokens, pooled = clip.encode_from_tokens(clip.tokenize(caption), return_pooled=True)
            return _with_pooled(model, tokens, pooled).cpu().clone()

    # clip skip, the tokenizer's options and a LoRA (new on every load) change what the same weights say
    settings = (clip.layer_idx, clip.tokenizer_options, clip.patcher.patches and clip.patcher.patches_uuid)
    text_key = f"{_fingerprint(clip.cond_stage_model)}-{zlib.crc32(repr(settings).encode()):08x}"
    return Encoder(latents, text, _fingerprint(vae.first_stage_model), text_key)


def alpha_bars(model: ModelPatcher) -> Tensor:
    """The cumulative product of 1 - beta of model's noise schedule, [steps], the first with the least noise."""
    sampling: Any = model.get_model_object("model_sampling")
    return (1 / (1 + sampling.sigmas.double() ** 2)).float()


def is_sdxl(model: ModelPatcher) -> bool:
    return model.model.diffusion_model.num_classes is not None


def is_v_prediction(model: ModelPatcher) -> bool:
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION)


def load(*models: ModelPatcher) -> None:
    """Have the host make room for models and what is attached to them, wholly: half-loaded weights are cast without gradients."""
    wanted = [patcher for model in models for patcher in (model, *model.get_nested_additional_models())]
    comfy.model_management.load_models_gpu(wanted, force_full_load=True)


def unload(*models: ModelPatcher) -> None:
    """Have the host take models, and what is attached to them, off their device; other models stay."""
    ours = [patcher for model in models for patcher in (model, *model.get_nested_additional_models())]
    loaded = comfy.model_management.current_loaded_models
    others = [entry for entry in loaded if not any(entry.model is one or one.is_clone(entry.model) for one in ours)]
    for device in {patcher.load_device for patcher in ours}:
        comfy.model_management.free_memory(1e30, device, others)


def name_of(model: ModelPatcher) -> str:
    """The file that model was loaded from, or else its kind."""
    loader_arguments = (model.cached_patcher_init or (None, ()))[1]
    paths = [Path(value).name for value in loader_arguments if isinstance(value, str)]
    return paths[0] if paths else type(model.model).__name__


def spatial_layers(model: ModelPatcher) -> dict[str, torch.nn.Module]:
    """The UNet's layers that have a weight, by their paths in diffusers' UNet."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    layers = dict(model.model.diffusion_model.named_modules())
    paths = {path.removesuffix(".weight"): name.removesuffix(".weight") for path, name in names.items()}
    return {path: layers[name] for path, name in paths.items() if name in layers}


def recompute_activations(*networks: torch.nn.Module, keep_costly: bool = False) -> None:
    """Gradient checkpointing (arXiv:1604.06174) for each layer of UNets and each motion module, for as long as they live.

    For those of a trainable_copy() and a motion model of one's own only: their layers' forward is replaced. keep_costly: results
    that take at least WORTH_KEEPING multiplications a number stay (selective, arXiv:2205.05198, section 5): convolutions, attention
    over a picture, wide matrices. The rest, such as norms, is made again. PyTorch's bookkeeping for it takes 30 microseconds an operation.
    """
    kinds = (ResBlock, SpatialTransformer, TemporalTransformer)
    for layer in [layer for network in networks for layer in network.modules()]:
        if isinstance(layer, kinds):
            layer.forward = _recomputed(layer, layer.forward, keep_costly)


def _recomputed(layer: torch.nn.Module, forward: Any, keep_costly: bool) -> Any:
    norms = [module for module in layer.modules() if isinstance(module, torch.nn.GroupNorm)]

    def run(*arguments: Any, **options: Any) -> Any:
        # v1 has norms that see whole clips while the UNet runs; they must again when it is run again, in the backward pass
        frames = {norm: seen for norm in norms if (seen := frames_seen_by(norm))}
        again = over_clips(list(frames), max(frames.values(), default=1))

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            if not keep_costly:
                return nullcontext(), again
            keeping, taking = create_selective_checkpoint_contexts(_kept_or_made_again)
            return keeping, _both(again, taking)

        # the host writes into transformer_options as it goes; the second time must see what the first saw
        arguments = tuple(dict(value) if isinstance(value, dict) else value for value in arguments)
        options = {key: dict(value) if isinstance(value, dict) else value for key, value in options.items()}
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **options)

    return run


def _kept_or_made_again(_: Any, operation: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
    """For one operation of a layer, given as PyTorch's dispatcher sees it."""
    aten, work = torch.ops.aten, 0
    if operation is aten.convolution.default:
        work = arguments[1][0].numel()
    elif operation in (aten.mm.default, aten.addmm.default):
        work = arguments[-2].shape[1]
    elif "scaled_dot_product" in str(operation):  # a name for each kernel
        work = 2 * arguments[1].shape[-2]
    return CheckpointPolicy.MUST_SAVE if work >= WORTH_KEEPING else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


def precision(model: ModelPatcher, chosen: str) -> str:
    """chosen, or for "auto" bfloat16 where the host would use it on model's device."""
    if chosen != "auto":
        return chosen
    return "bfloat16" if comfy.model_management.should_use_bf16(model.load_device) else "float32"


def predict(
    model: ModelPatcher, x: Tensor, timesteps: Tensor, context: Tensor, control: dict[str, list[Tensor]] | None = None
) -> Tensor:
    """The UNet's prediction for clips x [clips, frames, c, h, w] at timesteps [clips] under context [clips, tokens, dim],
    as encoder(...).text gives it. control: what a ControlNet adds, used up."""
    clips, frames = x.shape[:2]
    conditions = {}
    if is_sdxl(model):
        context, pooled = context[:, :-1], context[:, -1, :POOLED_WIDTH]
        height, width = (8 * side for side in x.shape[-2:])
        y = model.model.encode_adm(pooled_output=pooled, width=width, height=height, device=x.device)
        conditions["y"] = y.to(x.device).repeat_interleave(frames, dim=0)
    options = options_for_direct_call(model, cond_or_uncond=[0] * clips)
    unet: Any = model.model.diffusion_model
    # autocast takes any dtype; the layers themselves only their own
    dtype = x.dtype if torch.is_autocast_enabled(x.device.type) else model.model.get_dtype_inference()
    out = unet(
        x.flatten(0, 1).to(dtype),
        timesteps.repeat_interleave(frames),
        context=context.repeat_interleave(frames, dim=0).to(dtype),
        control=control,
        transformer_options=options,
        **{name: value.to(dtype) for name, value in conditions.items()},
    )
    return out.view_as(x)


def _with_pooled(model: ModelPatcher, tokens: Tensor, pooled: Tensor) -> Tensor:
    """[tokens, dim]; for SDXL, whose UNet also wants the pooled text, that as one more row, padded: one tensor to keep."""
    if not is_sdxl(model):
        return tokens[0]
    return torch.cat([tokens[0], torch.nn.functional.pad(pooled, (0, tokens.shape[-1] - POOLED_WIDTH)).to(tokens)])


def _fingerprint(module: torch.nn.Module) -> str:
    """Short, cheap and different for different weights: a checksum of the beginning of each. (Sums differ with the number of threads.)"""
    checksum = 0
    for name, value in module.state_dict().items():
        if name == UNUSED:
            continue
        start = value.detach().flatten()[:64].cpu().contiguous().view(torch.uint8)
        checksum = zlib.crc32(start.numpy().tobytes(), checksum)
    return format(checksum, "08x")
