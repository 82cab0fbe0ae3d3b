"""Reads the settings of ExponentialML's AnimateDiff-MotionDirector (my_video.yaml and the training.yaml it names) as a recipe of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import ConfigError
from .original_yaml import Settings, checkpoint_file, number, read_yaml
from .presets import PRESETS

# training.yaml's names and ours
_TRAINING = {
    "learning_rate": "learning_rate",
    "learning_rate_spatial": "spatial_learning_rate",
    "lora_rank": "rank",
    "lora_unet_dropout": "dropout",
    "adam_weight_decay": "weight_decay",
    "train_batch_size": "batch_size",
    "max_train_steps": "steps",
    "checkpointing_steps": "save_every",
    "global_seed": "seed",
    "cfg_random_null_text_ratio": "caption_dropout",
    "gradient_checkpointing": "gradient_checkpointing",
}
_DATASET = {
    "width": "width",
    "height": "height",
    "use_bucketing": "aspect_buckets",
    "sample_start_idx": "start",
    "frame_step": "frame_step",
    "n_sample_frames": "frames",
    "max_chunks": "chunks",
}
FRAME_STEP = 3  # of the original


def recipe_of_motion_director(video_config: Settings, path: Path) -> dict[str, Any]:
    """video_config: the content of path, beside which its training.yaml is looked for. Raises ConfigError for what has no counterpart here."""
    video = video_config.get("video")
    if not isinstance(video, dict) or "path" not in video:
        raise ConfigError(f"{path.name}: expected the video.path of a my_video.yaml, found none")
    checkpoint = video_config.get("unet_checkpoint_path") or video_config.get("pretrained_model_path")
    checkpoint = checkpoint_file("unet_checkpoint_path", checkpoint)
    quality = video_config.get("quality", "preferred")
    if quality not in PRESETS:
        raise ConfigError(f"{path.name}: quality: expected one of {', '.join(PRESETS)}; found {quality!r}")
    dataset = {
        "source": video["path"],
        "caption": video.get("training_prompt", ""),
        "start": video.get("start_time", 0),
        "chunks": video.get("max_chunks", 1),
        "frame_step": FRAME_STEP,
    }
    training: dict[str, Any] = {"name": video_config.get("save_name", "my-motion")}
    advanced = Path(video_config.get("training_config", ""))
    found = next((file for file in (path.parent / advanced.name, advanced) if file.is_file()), None)
    if found is not None and not video_config.get("simple_mode", True):
        details = read_yaml(found)
        training |= {ours: number(theirs, details[theirs]) for theirs, ours in _TRAINING.items() if theirs in details}
        of_data = details.get("train_data", {})
        dataset |= {ours: of_data[theirs] for theirs, ours in _DATASET.items() if theirs in of_data}
        if details.get("use_lion_optim"):
            training["optimizer"] = "Lion"
        if training.get("steps", 1) < 1:
            del training["steps"]  # the original counts epochs then
        if training.get("save_every", 0) < 0:
            del training["save_every"]
        preset = {}
    else:
        preset = {"preset": quality}
    model = {"checkpoint": checkpoint, "motion_model": video_config.get("motion_module_path")}
    if video_config.get("domain_adapter_path"):
        model["domain_adapter"] = video_config["domain_adapter_path"]
    sample = {"sample": {"prompt": video["validation_prompt"]}} if video.get("validation_prompt") else {}
    return (
        {"recipe": "motion_director", "output": "outputs", "model": model, "dataset": dataset, "training": training}
        | preset
        | sample
    )
