"""Recipe files: presets, previews, and the settings of the original MotionDirector for AnimateDiff."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffdirector.tests.demo.world import write_dataset
from diffdirector.trainers.config import ConfigError, MotionDirectorConfig
from diffdirector.trainers.dataset import DatasetError
from diffdirector.trainers.presets import PRESETS
from diffdirector.trainers.recipe import read_recipe

RECIPE = """
recipe = "motion_director"
preset = "{preset}"
[model]
checkpoint = "sd15.safetensors"
motion_model = "v3.ckpt"
[dataset]
source = "clips"
{dataset}
[training]
name = "walk"
{training}
[sample]
prompt = "a panda"
every = 50
"""
# As people have them: names and layout of ExponentialML's my_video.yaml and training.yaml, values our own
MY_VIDEO = """
pretrained_model_path: "somewhere/a-diffusers-folder"
unet_checkpoint_path: "sd15.safetensors"
motion_module_path: "v3.ckpt"
domain_adapter_path: "{adapter}"
mode_type: "folder"
video:
  path: "clips"
  start_time: 1
  max_chunks: 1
  training_prompt: "a horse gallops"
  validation_prompt: "a unicorn gallops"
save_name: "gallop"
quality: "{quality}"
training_config: "configs/training.yaml"
simple_mode: {simple}
"""
TRAINING = """
learning_rate: 3e-4
learning_rate_spatial: 0.0002
lora_rank: 16
lora_unet_dropout: 0.1
use_lion_optim: True
max_train_epoch: 10
max_train_steps: -1
checkpointing_steps: 25
global_seed: 33
train_data:
  width: 128
  height: 64
  use_bucketing: True
  frame_step: 2
  n_sample_frames: 4
validation_data:
  guidance_scale: 9
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Model files (not read here) and clips of 60 frames, where recipes look for them."""
    monkeypatch.chdir(tmp_path)
    for name in ("sd15.safetensors", "v3.ckpt", "adapter.ckpt"):
        (tmp_path / name).touch()
    write_dataset(tmp_path / "clips", seed=0, n=1, frames=60)
    return tmp_path


def recipe(preset: str = "low", dataset: str = "", training: str = ""):
    Path("recipe.toml").write_text(RECIPE.format(preset=preset, dataset=dataset, training=training))
    return read_recipe(Path("recipe.toml"))


@pytest.mark.parametrize(
    ("preset", "side", "rank"), [("consumer", 384, 32), ("low", 256, 32), ("preferred", 384, 64), ("best", 512, 64)]
)
def test_presets_set_size_and_rank(preset: str, side: int, rank: int) -> None:
    read = recipe(preset)
    (clip,) = read.videos
    assert (clip.width, clip.height, clip.aspect_buckets) == (side, side, preset != "low")
    assert isinstance(read.config, MotionDirectorConfig) and read.config.rank == rank
    assert PRESETS[preset].training["rank"] == rank  # what the node takes
    assert set(PRESETS) == {"consumer", "low", "preferred", "best"}


def test_what_a_recipe_says_itself_counts_more_than_its_preset() -> None:
    read = recipe("best", dataset="width = 320", training="rank = 8")
    assert (read.videos[0].width, read.videos[0].height, read.config.rank) == (320, 512, 8)
    assert (read.sample_prompt, read.sample_every) == ("a panda", 50)


def test_a_preset_that_is_not_known_and_clips_without_captions_are_refused() -> None:
    with pytest.raises(ConfigError, match="preset: expected one of consumer, low, preferred, best; found 'turbo'"):
        recipe("turbo")
    for text in Path("clips").glob("*.txt"):
        text.unlink()
    with pytest.raises(DatasetError, match="Expected a caption for the clips, found none. Say what they show"):
        recipe()


def original(simple: bool = True, quality: str = "preferred", adapter: str = "", training: str | None = TRAINING):
    Path("my_video.yaml").write_text(MY_VIDEO.format(simple=simple, quality=quality, adapter=adapter))
    if training is not None:
        Path("training.yaml").write_text(training)
    return read_recipe(Path("my_video.yaml"))


def test_my_video_yaml_is_read_as_its_own_trainer_reads_it(folder: Path) -> None:
    for text in (folder / "clips").glob("*.txt"):
        text.unlink()
    read = original(adapter="adapter.ckpt")
    (clip,) = read.videos
    assert (clip.caption, clip.start, clip.frame_step, clip.frames) == ("a horse gallops", 1, 3, 16)
    assert (clip.width, clip.height) == (384, 384) and clip.aspect_buckets
    assert isinstance(read.config, MotionDirectorConfig)
    assert (read.config.name, read.config.rank, read.config.optimizer) == ("gallop", 64, "AdamW")
    assert (read.checkpoint.name, read.motion_model.name, read.domain_adapter.name) == ("sd15.safetensors", "v3.ckpt", "adapter.ckpt")  # fmt: skip
    assert read.sample_prompt == "a unicorn gallops"


def test_its_advanced_settings_count_where_simple_mode_is_off() -> None:
    read = original(simple=False)
    (clip,) = read.videos
    assert (clip.width, clip.height, clip.frame_step, clip.frames, clip.aspect_buckets) == (128, 64, 2, 4, True)
    config = read.config
    assert isinstance(config, MotionDirectorConfig)
    assert (config.learning_rate, config.spatial_learning_rate, config.rank, config.dropout) == (3e-4, 2e-4, 16, 0.1)
    assert (config.optimizer, config.save_every, config.seed, config.steps) == ("Lion", 25, 33, 300)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('unet_checkpoint_path: "sd15.safetensors"', "", "expected unet_checkpoint_path to name a checkpoint file"),
        (
            'quality: "low"',
            'quality: "ultra"',
            "quality: expected one of consumer, low, preferred, best; found 'ultra'",
        ),
        ('path: "clips"', "", "expected the video.path of a my_video.yaml, found none"),
        ("video:", "video: [", "expected YAML"),
    ],
)
def test_original_settings_that_cannot_be_are_refused(before: str, after: str, message: str) -> None:
    text = MY_VIDEO.format(simple=True, quality="low", adapter="")
    assert before in text
    Path("my_video.yaml").write_text(text.replace(before, after))
    with pytest.raises(ConfigError, match=message):
        read_recipe(Path("my_video.yaml"))
