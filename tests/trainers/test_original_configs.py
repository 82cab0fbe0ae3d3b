"""The training settings of the original AnimateDiff and of Evo-Tuner, as recipes of ours. Names and layout are theirs, values our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from diffdirector.trainers.config import ConfigError, MotionModuleConfig, make_config
from diffdirector.trainers.original_animatediff import recipe_of_animatediff
from diffdirector.trainers.original_config import read_original_config
from diffdirector.trainers.original_evo_tuner import recipe_of_evo_tuner

ANIMATEDIFF = """
image_finetune: false
output_dir: "results"
pretrained_model_path: "models/sd15.safetensors"
unet_additional_kwargs:
  use_motion_module              : true
  motion_module_resolutions      : [ 1,2,4,8 ]
  unet_use_cross_frame_attention : false
  unet_use_temporal_attention    : false
  motion_module_type: Vanilla
  motion_module_kwargs:
    num_attention_heads                : 8
    num_transformer_block              : 1
    attention_block_types              : [ "Temporal_Self", "Temporal_Self" ]
    temporal_position_encoding         : true
    temporal_position_encoding_max_len : 24
    temporal_attention_dim_div         : 1
    zero_initialize                    : true
noise_scheduler_kwargs:
  num_train_timesteps: 1000
  beta_start:          0.00085
  beta_end:            0.012
  beta_schedule:       "linear"
  steps_offset:        1
  clip_sample:         false
train_data:
  csv_path:        "data/videos.csv"
  video_folder:    "data/videos"
  sample_size:     [192, 320]
  sample_stride:   5
  sample_n_frames: 12
validation_data:
  prompts:
    - "a mountain"
  num_inference_steps: 25
  guidance_scale: 8.
trainable_modules:
  - "motion_modules."
unet_checkpoint_path: ""
learning_rate:    2.e-4
train_batch_size: 3
max_train_epoch:      -1
max_train_steps:      250
checkpointing_epochs: -1
checkpointing_steps:  70
validation_steps:       5000
validation_steps_tuple: [2, 50]
global_seed: 7
cfg_random_null_text_ratio: 0.2
mixed_precision_training: true
enable_xformers_memory_efficient_attention: True
is_debug: False
"""
EVO_TUNER = """
pretrained_model_path: models/sd15.ckpt
output_dir: results
train_data:
  video_path:
  - data/a.mp4
  - data/b.mp4
  prompt:
  - a dog runs
  - a cat sleeps
  n_sample_frames: 40
  width: 384
  height: 256
  sample_start_idx: 2
  sample_frame_rate: 3
validation_data:
  prompts:
  - a bird
  num_inv_steps: 50
validation_steps: 10000
train_whole_module: false
trainable_modules:
- to_q
train_batch_size: 2
max_train_steps: 700
learning_rate: 3e-05
scale_lr: false
lr_scheduler: cosine
lr_warmup_steps: 10
adam_beta1: 0.9
adam_beta2: 0.999
adam_weight_decay: 0.008
adam_epsilon: 1.0e-08
max_grad_norm: 1.0
gradient_accumulation_steps: 4
gradient_checkpointing: true
checkpointing_steps: 200
start_global_step: 0
resume_from_checkpoint: null
mixed_precision: fp16
use_8bit_adam: true
enable_xformers_memory_efficient_attention: true
seed: 34
motion_module: models/mm.ckpt
inference_config_path: configs/inference/inference.yaml
motion_module_pe_multiplier: 2
dataset_class: MultiTuneAVideoDataset
"""


def animatediff(**changes: Any) -> dict[str, Any]:
    return recipe_of_animatediff(yaml.safe_load(ANIMATEDIFF) | changes, "training")


def evo_tuner(**changes: Any) -> dict[str, Any]:
    return recipe_of_evo_tuner(yaml.safe_load(EVO_TUNER) | changes, "tuned")


def test_the_originals_training_yaml() -> None:
    recipe = animatediff()
    assert recipe["recipe"] == "motion_module" and recipe["output"] == "results"
    assert recipe["model"] == {"checkpoint": "models/sd15.safetensors"}
    assert recipe["sample"] == {"prompt": "a mountain", "every": 5000}
    assert "sample" not in animatediff(validation_data={})
    assert recipe["dataset"] == {
        "source": "data/videos.csv", "videos": "data/videos", "frames": 12, "frame_step": 5, "width": 320, "height": 192, "chunks": 0,
        "hflip": True,
    }  # fmt: skip
    expected = MotionModuleConfig(
        "training", steps=250, batch_size=3, learning_rate=2e-4, save_every=70, seed=7, caption_dropout=0.2, max_frames=24, middle=False
    )  # fmt: skip
    assert make_config(MotionModuleConfig, recipe["training"]) == expected


def test_the_originals_defaults_count_where_its_file_says_nothing() -> None:
    data = {"csv_path": "a.csv", "video_folder": "b"}
    kept = {"pretrained_model_path": "a.ckpt", "trainable_modules": ["motion_modules."], "train_data": data}
    recipe = recipe_of_animatediff({"image_finetune": False} | kept, "t")
    expected = MotionModuleConfig(
        "t", steps=100, learning_rate=3e-5, batch_size=1, caption_dropout=0.1, seed=42, max_frames=24, middle=False
    )
    assert make_config(MotionModuleConfig, recipe["training"]) == expected
    assert (recipe["dataset"]["width"], recipe["dataset"]["frames"], recipe["dataset"]["frame_step"]) == (256, 16, 4)


def test_modules_as_v2_and_v3_have_them() -> None:
    unet = yaml.safe_load(ANIMATEDIFF)["unet_additional_kwargs"]
    longer = {"motion_module_kwargs": unet["motion_module_kwargs"] | {"temporal_position_encoding_max_len": 32}}
    inflated = {"use_inflated_groupnorm": True}
    for changes, middle in (({"motion_module_mid_block": True}, True), ({}, False)):
        training = animatediff(unet_additional_kwargs=unet | longer | inflated | changes)["training"]
        assert (training["max_frames"], training["middle"]) == (32, middle)
    with pytest.raises(
        ConfigError, match="use_inflated_groupnorm: expected false, as v1 has it, .* of 24 frames; found true"
    ):
        animatediff(unet_additional_kwargs=unet | inflated)
    with pytest.raises(ConfigError, match="use_inflated_groupnorm: expected true, as v3 has it"):
        animatediff(unet_additional_kwargs=unet | longer)


def test_evo_tuners_yaml() -> None:
    recipe = evo_tuner()
    assert recipe["model"] == {"checkpoint": "models/sd15.ckpt", "motion_model": "models/mm.ckpt"}
    assert recipe["sample"] == {"prompt": "a bird", "every": 10000}
    shared = {"frames": 40, "start": 2, "frame_step": 3, "width": 384, "height": 256}
    assert recipe["dataset"] == [
        {"source": "data/a.mp4", "caption": "a dog runs", **shared}, {"source": "data/b.mp4", "caption": "a cat sleeps", **shared},
    ]  # fmt: skip
    expected = MotionModuleConfig(
        "tuned", steps=700, batch_size=2, accumulate=4, learning_rate=3e-5, weight_decay=0.008, lr_schedule="cosine", warmup_steps=10,
        optimizer="AdamW8bit", save_every=200, seed=34, caption_dropout=0.0, trainable=("to_q.",), max_frames=48,
    )  # fmt: skip
    assert make_config(MotionModuleConfig, recipe["training"]) == expected
    assert evo_tuner(train_whole_module=True)["training"]["trainable"] == ["motion_modules."]
    assert evo_tuner(scale_lr=True)["training"]["learning_rate"] == pytest.approx(8 * 3e-5)
    assert evo_tuner(motion_module_version="V3")["training"]["max_frames"] == 64
    assert "max_frames" not in evo_tuner(motion_module_pe_multiplier=1)["training"]
    assert evo_tuner(dreambooth_path="toon.safetensors")["model"]["checkpoint"] == "toon.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_finetune": True}, "image_finetune: training the whole network on images is out of this pack's scope"),
        ({"trainable_modules": ["."]}, r"trainable_modules: expected parts of the motion modules' names, .* found \."),
        ({"trainable_modules": ["to_q"]}, "trainable_modules: .* found to_q"),
        ({"unet_checkpoint_path": "unet.ckpt"}, "unet_checkpoint_path: found unet.ckpt, a whole network"),
        ({"pretrained_model_path": "models/stable-diffusion-v1-5"}, "expected pretrained_model_path to name a checkpoint file"),
        ({"noise_scheduler_kwargs": {"beta_schedule": "scaled_linear"}}, "noise_scheduler_kwargs.beta_schedule: expected linear.* found scaled_linear"),
        ({"noise_scheduler_kwargs": {"rescale_betas_zero_snr": True}}, "noise_scheduler_kwargs.rescale_betas_zero_snr: it has no counterpart"),
        ({"unet_additional_kwargs": {"unet_use_temporal_attention": True}}, "unet_use_temporal_attention: expected False"),
        ({"unet_additional_kwargs": {"motion_module_kwargs": {"num_transformer_block": 2}}}, "num_transformer_block: expected 1"),
        ({"max_train_steps": -1, "max_train_epoch": 3}, "max_train_steps: .* max_train_epoch has no counterpart here"),
        ({"adam_beta1": 0.95}, "adam_beta1: expected 0.9"),
        ({"lr_scheduler": "polynomial"}, "lr_scheduler: expected constant, .* found 'polynomial'"),
        ({"train_data": {"video_folder": "b"}}, "train_data.csv_path: expected a path, found none"),
        ({"train_data": {"is_image": True}}, "train_data.is_image: it has no counterpart here"),
        ({"lora_rank": 4}, "lora_rank: it has no counterpart here"),
    ],
)  # fmt: skip
def test_what_the_original_has_and_we_have_not_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        animatediff(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_class": "FramesDataset"}, "dataset_class: expected MultiTuneAVideoDataset.* found FramesDataset"),
        ({"train_lora": True}, "train_lora: expected False"),
        ({"use_8bit_adam": False, "use_optimizer": "Prodigy"}, "use_optimizer: expected AdamW or AdamW8bit; Prodigy"),
        ({"mixed_precision": "fp8"}, "mixed_precision: expected fp16, bf16 or no; found 'fp8'"),
        ({"resume_from_checkpoint": "checkpoint-40"}, "resume_from_checkpoint: found checkpoint-40"),
        ({"motion_module_version": "V9"}, "motion_module_version: expected one of V1, V2, V3; found 'V9'"),
        ({"train_data": {"video_path": ["a.mp4"], "prompt": ["a", "b"]}}, "found 1 videos and 2 prompts"),
        ({"pretrained_model_path": "models/StableDiffusion/"}, "expected pretrained_model_path to name a checkpoint"),
        ({"max_training_steps": 5}, "max_training_steps: it has no counterpart here. Leave it out; known are pretrained_model_path"),
    ],
)  # fmt: skip
def test_what_evo_tuner_has_and_we_have_not_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evo_tuner(**changes)


def test_a_file_is_told_by_what_it_says(tmp_path: Path) -> None:
    for text, model in ((ANIMATEDIFF, "models/sd15.safetensors"), (EVO_TUNER, "models/sd15.ckpt")):
        (tmp_path / "own.yaml").write_text(text)
        recipe = read_original_config(tmp_path / "own.yaml")
        assert (recipe["model"]["checkpoint"], recipe["training"]["name"]) == (model, "own")
    (tmp_path / "own.yaml").write_text("prompt: a dog\nsteps: 20")
    with pytest.raises(ConfigError, match="own.yaml: expected the settings of another trainer.* found prompt, steps"):
        read_original_config(tmp_path / "own.yaml")
