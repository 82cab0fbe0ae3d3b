"""Reads the training settings of the original AnimateDiff (github.com/guoyww/AnimateDiff, configs/training/v1/training.yaml, for its
train.py) as a recipe of ours."""

from __future__ import annotations

from typing import Any

from .config import ConfigError
from .original_yaml import (
    SAME,
    TRAINING,
    Settings,
    check_known,
    check_same,
    checkpoint_file,
    sampled,
    schedule,
    trained,
)

DEFAULTS = {
    "learning_rate": 3e-5, "train_batch_size": 1, "max_train_steps": 100, "adam_weight_decay": 1e-2, "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 1,
}  # fmt: skip
DATA = ("csv_path", "video_folder", "sample_size", "sample_stride", "sample_n_frames")
# What is saved of memory and time; no result depends on it. Its ema_decay and scale_lr do nothing there
OTHER = (
    "validation_steps_tuple", "enable_xformers_memory_efficient_attention", "gradient_checkpointing",
    "num_workers", "is_debug", "max_train_epoch", "checkpointing_epochs", "ema_decay", "scale_lr",
)  # fmt: skip
KNOWN = (
    "image_finetune", "output_dir", "pretrained_model_path", "train_data", "cfg_random_null_text", "cfg_random_null_text_ratio",
    "unet_checkpoint_path", "unet_additional_kwargs", "noise_scheduler_kwargs", "lr_scheduler", "lr_warmup_steps", "trainable_modules",
    "checkpointing_steps", "mixed_precision_training", "global_seed", "validation_data", "validation_steps", *TRAINING, *SAME, *OTHER,
)  # fmt: skip
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "prediction_type": "epsilon"}  # fmt: skip
UNET = {
    "use_motion_module": True, "motion_module_resolutions": [1, 2, 4, 8], "motion_module_decoder_only": False,
    "unet_use_cross_frame_attention": False, "unet_use_temporal_attention": False, "motion_module_type": "Vanilla",
}  # fmt: skip
MODULE = {
    "num_attention_heads": 8, "num_transformer_block": 1, "attention_block_types": ["Temporal_Self", "Temporal_Self"],
    "temporal_position_encoding": True, "temporal_attention_dim_div": 1, "zero_initialize": True,
}  # fmt: skip
V3_FRAMES = 32  # of a motion model without a middle: as many are v3's, others v1's


def recipe_of_animatediff(settings: Settings, name: str) -> dict[str, Any]:
    """settings: the content of the file, name: what its result is called. Raises ConfigError for what has no counterpart here.

    Clips are cut one after the other in place of at random.
    """
    check_known(settings, KNOWN)
    if settings.get("image_finetune"):
        raise ConfigError(
            "image_finetune: training the whole network on images is out of this pack's scope. Fine-tune the checkpoint with an image trainer, "
            "or a LoRA for it, and set image_finetune to false."
        )
    if settings.get("unet_checkpoint_path"):
        raise ConfigError(
            f"unet_checkpoint_path: found {settings['unet_checkpoint_path']}, a whole network, which is not read. To go on from its motion modules, "
            "name it as motion_model in a recipe of ours; image layers belong into the checkpoint."
        )
    check_same(settings, SAME)
    noise = settings.get("noise_scheduler_kwargs") or {}
    check_known(noise, (*SCHEDULE, "steps_offset", "clip_sample"), "noise_scheduler_kwargs.")
    check_same(noise, SCHEDULE, "noise_scheduler_kwargs.")
    training: dict[str, Any] = {"name": name} | trained(settings, DEFAULTS) | schedule(settings) | _module(settings)
    if training["steps"] < 1:
        raise ConfigError(
            "max_train_steps: expected how many steps to train, found none. max_train_epoch has no counterpart here"
        )
    training["trainable"] = _trainable(settings)
    dropout = settings.get("cfg_random_null_text_ratio", 0.1) if settings.get("cfg_random_null_text", True) else 0.0
    training |= {"caption_dropout": dropout, "seed": settings.get("global_seed", 42)}
    training["precision"] = "auto" if settings.get("mixed_precision_training", True) else "float32"
    if settings.get("checkpointing_steps", -1) > 0:
        training["save_every"] = settings["checkpointing_steps"]
    return {
        "recipe": "motion_module",
        "output": settings.get("output_dir", "outputs"),
        "model": {"checkpoint": checkpoint_file("pretrained_model_path", settings.get("pretrained_model_path"))},
        "dataset": _dataset(settings.get("train_data") or {}),
        "training": training,
    } | sampled(settings)


def _dataset(data: Settings) -> dict[str, Any]:
    check_known(data, DATA, "train_data.")
    for key in ("csv_path", "video_folder"):
        if not data.get(key):
            raise ConfigError(f"train_data.{key}: expected a path, found none")
    size = data.get("sample_size", 256)
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "source": data["csv_path"],
        "videos": data["video_folder"],
        "frames": data.get("sample_n_frames", 16),
        "frame_step": data.get("sample_stride", 4),
        "width": width,
        "height": height,
        "chunks": 0,
        "hflip": True,
    }


def _module(settings: Settings) -> dict[str, Any]:
    """The new motion module's length and whether it has a middle."""
    unet = settings.get("unet_additional_kwargs") or {}
    module = unet.get("motion_module_kwargs") or {}
    check_same(unet, UNET, "unet_additional_kwargs.")
    check_same(module, MODULE, "motion_module_kwargs.")
    own = ("motion_module_kwargs", "motion_module_mid_block", "use_inflated_groupnorm")
    check_known(unet, (*UNET, *own), "unet_additional_kwargs.")
    check_known(module, (*MODULE, "temporal_position_encoding_max_len"), "motion_module_kwargs.")
    frames, middle = module.get("temporal_position_encoding_max_len", 24), unet.get("motion_module_mid_block", False)
    found, expected = bool(unet.get("use_inflated_groupnorm", False)), middle or frames == V3_FRAMES
    if found != expected:
        kind = "v2" if middle else "v3" if expected else "v1"
        raise ConfigError(
            f"unet_additional_kwargs.use_inflated_groupnorm: expected {str(expected).lower()}, as {kind} has it, for a motion module "
            f"{'with' if middle else 'without'} a middle and of {frames} frames; found {str(found).lower()}"
        )
    return {"max_frames": frames, "middle": middle}


def _trainable(settings: Settings) -> list[str]:
    parts = [str(part) for part in settings.get("trainable_modules") or ()]
    strangers = [part for part in parts if "motion_modules" not in part and "temporal_transformer" not in part]
    if strangers or not parts:
        raise ConfigError(
            f"trainable_modules: expected parts of the motion modules' names, such as motion_modules., found {', '.join(strangers) or 'none'}. "
            "Layers of the image model are not trained here."
        )
    return parts
