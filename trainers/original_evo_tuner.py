"""Reads the settings of Evo-Tuner, and of the trainer that it is made of (github.com/tumurzakov/AnimateDiff, train.py), as a recipe
of ours: a motion module fine-tuned on a few videos."""

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
    "learning_rate": 3e-5, "train_batch_size": 1, "max_train_steps": 500, "adam_weight_decay": 1e-2, "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 1,
}  # fmt: skip
DATASET = {  # its names, its defaults and our names
    "n_sample_frames": (8, "frames"), "sample_start_idx": (0, "start"), "sample_frame_rate": (1, "frame_step"),
    "width": (512, "width"), "height": (512, "height"),
}  # fmt: skip
PRECISIONS = {"fp16": "auto", "bf16": "bfloat16", "no": "float32", None: "float32"}
FRAMES = {"V1": 24, "V2": 32, "V3": 32}  # of the motion modules that motion_module_pe_multiplier multiplies
# Always so here
ELSE = {
    "dataset_class": "MultiTuneAVideoDataset", "start_global_step": 0, "train_dreambooth": False, "train_lora": False,
    "train_text_encoder": False,
}  # fmt: skip
# What is saved of memory and time; no result depends on it
OTHER = (
    "gradient_checkpointing", "enable_xformers_memory_efficient_attention", "inference_config_path",
    "report_to", "lora_rank", "lora_path", "lora_resume_from_checkpoint",
)  # fmt: skip
KNOWN = (
    "pretrained_model_path", "dreambooth_path", "output_dir", "train_data", "train_whole_module", "trainable_modules", "scale_lr",
    "lr_scheduler", "lr_warmup_steps", "checkpointing_steps", "resume_from_checkpoint", "mixed_precision", "use_8bit_adam", "use_optimizer",
    "seed", "motion_module", "motion_module_version", "motion_module_pe_multiplier", "validation_data", "validation_steps", *TRAINING, *SAME, *ELSE, *OTHER,
)  # fmt: skip


def recipe_of_evo_tuner(settings: Settings, name: str) -> dict[str, Any]:
    """settings: the content of the file, name: what its result is called. Raises ConfigError for what has no counterpart here.

    Videos are covered and cut in place of squashed. Where it repeats the positional encoding for longer clips, here the
    sinusoid goes on. Unlike there, the noise schedule is the one that motion modules are sampled with.
    """
    check_known(settings, KNOWN)
    check_same(settings, SAME | ELSE)
    if settings.get("resume_from_checkpoint") not in (None, "latest"):
        raise ConfigError(
            f"resume_from_checkpoint: found {settings['resume_from_checkpoint']}, a state of that trainer, which is not read. Name the motion module "
            "that it saved as motion_module; a run of ours goes on by itself."
        )
    training: dict[str, Any] = {"name": name} | trained(settings, DEFAULTS) | schedule(settings)
    if settings.get("scale_lr"):
        training["learning_rate"] *= training["accumulate"] * training["batch_size"]
    training |= {"caption_dropout": 0.0, "seed": settings.get("seed") or 0}
    training |= {"precision": _precision(settings), "optimizer": _optimizer(settings)}
    training |= {"save_every": settings.get("checkpointing_steps", 500)}
    # it takes the ends of modules' names, we parts of weights' names
    chosen = [f"{part}." for part in settings.get("trainable_modules", ["to_q"])]
    training["trainable"] = ["motion_modules."] if settings.get("train_whole_module") else chosen
    dataset = _datasets(settings["train_data"])
    if (multiplier := settings.get("motion_module_pe_multiplier", 1)) > 1:
        version = settings.get("motion_module_version", "V1")
        if version not in FRAMES:
            raise ConfigError(f"motion_module_version: expected one of {', '.join(FRAMES)}; found {version!r}")
        training["max_frames"] = multiplier * FRAMES[version]
    checkpoint = "dreambooth_path" if settings.get("dreambooth_path") else "pretrained_model_path"
    return {
        "recipe": "motion_module",
        "output": settings.get("output_dir", "outputs"),
        "model": {
            "checkpoint": checkpoint_file(checkpoint, settings.get(checkpoint)),
            "motion_model": settings.get("motion_module", "models/Motion_Module/mm_sd_v15.ckpt"),
        },
        "dataset": dataset,
        "training": training,
    } | sampled(settings)


def _datasets(data: Settings) -> list[dict[str, Any]]:
    """One for each video, with its own prompt."""
    check_known(data, ("video_path", "prompt", *DATASET), "train_data.")
    videos, prompts = data.get("video_path") or [], data.get("prompt", "")
    videos = [videos] if isinstance(videos, str) else videos
    prompts = [prompts] * len(videos) if isinstance(prompts, str) else prompts
    if not videos or len(prompts) != len(videos):
        raise ConfigError(
            f"train_data: expected video_path to name videos and a prompt for each, found {len(videos)} videos and {len(prompts)} prompts"
        )
    shared = {ours: data.get(theirs, default) for theirs, (default, ours) in DATASET.items()}
    return [{"source": video, "caption": prompt} | shared for video, prompt in zip(videos, prompts, strict=True)]


def _precision(settings: Settings) -> str:
    chosen = settings.get("mixed_precision", "fp16")
    if chosen not in PRECISIONS:
        raise ConfigError(f"mixed_precision: expected fp16, bf16 or no; found {chosen!r}")
    return PRECISIONS[chosen]


def _optimizer(settings: Settings) -> str:
    chosen = "AdamW8bit" if settings.get("use_8bit_adam") else settings.get("use_optimizer", "AdamW")
    if chosen not in ("AdamW", "AdamW8bit"):
        raise ConfigError(
            f"use_optimizer: expected AdamW or AdamW8bit; {chosen} has other settings there than here. Choose it in a recipe of ours"
        )
    return chosen
