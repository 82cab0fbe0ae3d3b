"""Training from a recipe file, as a user starts it: a process of its own, on the real host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from PIL import Image

from diffdirector.lora.patches import load_lora
from diffdirector.motion.identify import FileKind
from diffdirector.motion.module import load_motion_model
from diffdirector.motion.sparse_formats import SparseKind
from diffdirector.motion.sparsectrl import load_sparse_ctrl
from diffdirector.tests.demo.world import write_dataset
from diffdirector.tests.host.checkpoints import CHECKPOINT, MOTION_MODEL
from diffdirector.tests.host.provision import ROOT, provision
from diffdirector.trainers.config import ConfigError, DomainAdapterConfig, MotionLoraConfig
from diffdirector.trainers.dataset import DatasetError
from diffdirector.trainers.recipe import read_recipe

SMALL = {"frames": 4, "frame_step": 1, "width": 64, "height": 64, "steps": 2, "batch_size": 1}


def shipped(kind: str, base: Path) -> str:
    """A shipped recipe with our files, steps and sizes in it."""
    text = (ROOT / "trainers" / "recipes" / f"{kind}.toml").read_text()
    text = text.replace("input/my-clip.mp4", "input/videos")
    for pattern, name in (
        ("checkpoint", f"checkpoints/{CHECKPOINT}"),
        ("motion_model", f"animatediff_models/{MOTION_MODEL}"),
    ):
        text = re.sub(rf'^{pattern} = "[^"]+"', f'{pattern} = "{base / "models" / name}"', text, flags=re.MULTILINE)
    for key, value in SMALL.items():
        text, count = re.subn(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    return text


@pytest.fixture
def recipe(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The motion module's, with a folder to run it in."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "input" / "videos", seed=0, n=2, frames=4)
    return shipped("motion_module", base)


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), "--config", "recipe.toml", "--cpu"]
    environment = os.environ | {"COMFYUI_PATH": str(provision().comfyui)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_shipped_recipe_trains_a_motion_model(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(recipe)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    path = tmp_path / "models/animatediff_models/my-motion-module.safetensors"
    assert f"{path.relative_to(tmp_path)} is done." in done.stdout
    assert Image.open(path.with_suffix(".clips.png")).size == (4 * 96 + 3 * 2, 2 * 96 + 2)
    assert load_motion_model(str(path)).config.max_frames == 32
    assert path.with_suffix(".samples.html").exists() and Image.open(path.with_suffix(".webp")).n_frames == 4


@pytest.mark.slow
def test_the_shipped_recipe_trains_motion_director(recipe: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(shipped("motion_director", base))
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "models/animatediff_motion_lora"
    assert load_lora(str(folder / "my-motion.safetensors"), "my-motion", FileKind.MOTION_LORA)
    assert load_lora(str(folder / "my-motion-spatial.safetensors"), "my-motion", FileKind.SPATIAL_LORA)


@pytest.mark.slow
def test_the_shipped_recipe_trains_a_sparse_ctrl(recipe: str, base: Path, tmp_path: Path) -> None:
    text = shipped("sparse_ctrl", base).replace('kind = "rgb"', 'kind = "scribble"')
    (tmp_path / "recipe.toml").write_text(text)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    path = tmp_path / "models/controlnet/my-sparsectrl.safetensors"
    assert f"{path.relative_to(tmp_path)} is done." in done.stdout
    assert load_sparse_ctrl(str(path)).config.kind is SparseKind.SCRIBBLE
    (tmp_path / "recipe.toml").write_text(text.replace("max_frames = 32", "max_frames = 3"))
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("as many as the SparseCtrl takes; found 4. Lower the dataset's frames.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "file", "expected"),
    [
        ("domain_adapter", "loras/my-adapter", FileKind.SPATIAL_LORA),
        ("motion_lora", "animatediff_motion_lora/my-camera-move", FileKind.MOTION_LORA),
    ],
)
def test_the_shipped_recipes_train_the_other_stages(
    recipe: str, base: Path, tmp_path: Path, kind: str, file: str, expected: FileKind
) -> None:
    text = shipped(kind, base).replace('prompt = "a panda in a forest"', 'prompt = ""')
    (tmp_path / "recipe.toml").write_text(text)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    path = tmp_path / "models" / f"{file}.safetensors"
    assert load_lora(str(path), file, expected)
    assert path.with_suffix(".training").exists() and path.with_suffix(".clips.png").exists()


def test_recipes_of_loras_say_what_each_needs(recipe: str, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(shipped("motion_lora", base))
    read = read_recipe(path)
    assert isinstance(read.config, MotionLoraConfig) and read.motion_model is not None
    assert {(video.camera, video.camera_amount) for video in read.videos} == {("zoom_in", 0.4)}
    path.write_text(shipped("domain_adapter", base))
    read = read_recipe(path)
    assert isinstance(read.config, DomainAdapterConfig) and (read.config.rank, read.config.batch_size) == (128, 1)
    for kind, before, after, message in (
        ("motion_lora", "motion_model =", "# motion_model =", "model.motion_model: expected the motion model that"),
        ("motion_lora", "[model]", 'preset = "low"\n[model]', "preset: expected in a motion_director recipe only, found in one of a motion_lora"),
        ("motion_lora", '"zoom_in"', '"zoom"', "camera: expected one of none, zoom_in"),
        ("domain_adapter", "[sample]", f'motion_model = "{path}"\n[sample]', "model.motion_model: expected none, a domain adapter is trained"),
    ):  # fmt: skip
        text = shipped(kind, base)
        assert before in text
        path.write_text(text.replace(before, after, 1))
        with pytest.raises((ConfigError, DatasetError), match=re.escape(message)):
            read_recipe(path)


@pytest.mark.slow
def test_videos_that_cannot_be_used_are_found_out_before_a_model_is_loaded(recipe: str, tmp_path: Path) -> None:
    for path in (tmp_path / "input" / "videos").glob("*.mp4"):
        content = bytearray(path.read_bytes())
        start = content.index(b"mdat") + 4
        content[start : start + 400] = bytes(400)
        path.write_bytes(content)
    (tmp_path / "recipe.toml").write_text(
        re.sub(r'^checkpoint = "[^"]+"', 'checkpoint = "recipe.toml"', recipe, flags=re.MULTILINE)
    )
    done = run(tmp_path)
    assert done.returncode == 1
    assert "None of the videos can be used:" in done.stderr
    assert "model.checkpoint" not in done.stderr


@pytest.mark.slow
def test_a_mistake_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("--config: expected a recipe file, found no recipe.toml")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            'recipe = "motion_module"',
            'recipe = "adapter"',
            "recipe: expected one of motion_module, motion_director, sparse_ctrl, domain_adapter, motion_lora; found adapter",
        ),
        (
            'output = "',
            'outptu = "',
            "outptu: expected one of dataset, model, output, preset, recipe, sample, training",
        ),
        ("[model]", "[model", "recipe.toml: expected TOML"),
        ("checkpoint = ", "# checkpoint = ", "model.checkpoint: expected a file, found none"),
        ('recipe = "motion_module"', 'recipe = "motion_director"', "model.motion_model: expected the motion model"),
        ('recipe = "motion_module"', 'recipe = "sparse_ctrl"', "model.motion_model: expected the motion model"),
        ("every = 1000", "evry = 1000", "sample.evry: expected one of every, prompt"),
        ("[model]", '[model]\nsparse_ctrl = "a.ckpt"', "model.sparse_ctrl: expected one of"),
        ("frame_step", "frames_step", "dataset.frames_step: expected one of"),
        ('source = "input/videos"', "", "dataset.source: expected a video or a folder of videos, found none"),
        ("steps = 2", "stepz = 2", "stepz: expected one of name, steps"),
        ("steps = 2", "steps = 0", "steps: expected at least 1, found 0"),
    ],
)
def test_recipes_that_cannot_be_are_refused(recipe: str, tmp_path: Path, before: str, after: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.replace(before, after, 1))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_recipe(path)


def test_a_recipe_of_several_datasets(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("first\nsecond\n")
    second = """
[[dataset]]
source = "input/videos"
caption_file = "captions.txt"
frames = 2
start = 1
chunks = 0
width = 32
height = 32
aspect_buckets = true
hflip = true
repeats = 2
"""
    text = recipe.replace("[dataset]", "[[dataset]]").replace(
        'caption_file = ""', f'caption_file = "{tmp_path}/captions.txt"'
    )
    (tmp_path / "recipe.toml").write_text(text + second)
    first, *rest = [
        list(group) for _, group in groupby(read_recipe(tmp_path / "recipe.toml").videos, lambda video: video.frames)
    ]
    assert [video.caption for video in first] == ["first", "second"]
    assert [(video.caption, video.start, video.mirrored) for video in rest[0]] == [
        ("first", 1, False), ("first", 1, True), ("second", 1, False), ("second", 1, True),
    ] * 2  # fmt: skip
    assert all(video.aspect_buckets and video.width == video.height == 32 for video in rest[0])


def test_a_recipe_without_videos_is_refused(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.replace("input/videos", "input/nothing"))
    with pytest.raises(DatasetError, match="expected a video or a folder"):
        read_recipe(path)
