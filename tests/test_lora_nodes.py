"""Merge Motion LoRA and Save Motion LoRA in graphs that the host's own executor runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.prompts import Prompt, animation, node
from diffdirector.tests.host.weights import motion_state
from diffdirector.tests.test_executor import frames

Frames = Callable[[Prompt], np.ndarray]


@pytest.fixture(scope="module")
def folder(base: Path) -> Path:
    """models/animatediff_motion_lora with two MotionLoRAs of different ranks and layouts in it."""
    path = base / "models" / "animatediff_motion_lora"
    path.mkdir(parents=True, exist_ok=True)
    motion = motion_state(tiny_motion_config())
    zoom = loras.in_original_naming(loras.motion_lora(motion, rank=4, seed=3))
    pan = loras.in_diffusers_naming(loras.motion_lora(motion, rank=2, seed=4), alpha=3.0)
    save_file({key: value.contiguous() for key, value in zoom.items()}, path / "zoom.safetensors")
    save_file({key: value.contiguous() for key, value in pan.items()}, path / "pan.safetensors")
    return path


@pytest.fixture(scope="module")
def shown(executor, base: Path) -> Frames:
    return lambda prompt: frames(executor, base, prompt).astype(int)


def two_loras(lora: str) -> Prompt:
    """An animation with the MotionLoRA of node `lora`; zoom and pan are there to make it of, and chained as second."""
    prompt = animation(motion_lora=[lora, 0])
    prompt["zoom"] = node("DiffDirectorMotionLora", lora_name="zoom.safetensors", strength=0.8)
    prompt["pan"] = node("DiffDirectorMotionLora", lora_name="pan.safetensors", strength=1.0)
    prompt["chain"] = node(
        "DiffDirectorMotionLora", lora_name="pan.safetensors", strength=-0.5, motion_lora=["zoom", 0]
    )
    return prompt


def merge(weight_1: float, weight_2: float, **settings: int) -> Prompt:
    inputs = {"motion_lora_1": ["zoom", 0], "motion_lora_2": ["pan", 0], "weight_1": weight_1, "weight_2": weight_2}
    return {"merge": node("DiffDirectorMergeMotionLora", **inputs, **settings)}


def save(**settings: object) -> Prompt:
    return {"saved": node("DiffDirectorSaveMotionLora", motion_lora=["chain", 0], **settings)}


@pytest.mark.slow
def test_merged_moves_as_chained(shown: Frames, folder: Path) -> None:
    plain, chained = shown(animation()), shown(two_loras("chain"))
    assert np.abs(chained - plain).max() > 10
    for settings in ({}, {"rank": 6}):
        assert np.abs(shown(two_loras("merge") | merge(1.0, -0.5, **settings)) - chained).max() <= 1
    assert np.abs(shown(two_loras("merge") | merge(1.0, -0.5, rank=1)) - chained).max() > 1
    assert np.abs(shown(two_loras("merge") | merge(1.0, 0.0)) - shown(two_loras("zoom"))).max() <= 1
    assert np.abs(shown(two_loras("merge") | merge(0.0, 0.0)) - plain).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dialect", "precision", "within"), [("AnimateDiff", "fp32", 1), ("diffusers", "fp32", 1), ("AnimateDiff", "fp16", 2)]
)  # fmt: skip
def test_saved_moves_as_what_was_saved(shown: Frames, folder: Path, dialect: str, precision: str, within: int) -> None:
    name = f"saved/{dialect}-{precision}"
    chained = shown(two_loras("chain") | save(filename_prefix=name, dialect=dialect, precision=precision))
    path = folder / f"{name}_00001_.safetensors"
    again = animation(motion_lora=["again", 0])
    again["again"] = node("DiffDirectorMotionLora", lora_name=f"{name}_00001_.safetensors", strength=1.0)
    assert np.abs(shown(again) - chained).max() <= within
    assert {value.dtype for value in load_file(path).values()} == {getattr(torch, f"float{precision[2:]}")}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["dialect"] == dialect and metadata["rank"] == "6"
    assert json.loads(metadata["sources"]) == [
        {"name": "zoom.safetensors", "strength": 0.8},
        {"name": "pan.safetensors", "strength": -0.5},
    ]


@pytest.mark.slow
def test_files_are_numbered_and_stay_in_their_folder(executor, folder: Path) -> None:
    for rank in (0, 3):
        executor.run(two_loras("chain") | save(filename_prefix="numbered", rank=rank))
    first, second = (load_file(folder / f"numbered_0000{number}_.safetensors") for number in (1, 2))
    assert {min(value.shape) for value in first.values()} == {6} and first.keys() == second.keys()
    assert {min(value.shape) for value in second.values()} == {3}
    found = sorted(folder.parent.rglob("*"))
    for prefix in ("../escaped", "/tmp/escaped", "", "sub/..", ".."):
        with pytest.raises(RuntimeError, match="filename_prefix: expected the name of a file below"):
            executor.run(two_loras("chain") | save(filename_prefix=prefix))
    assert sorted(folder.parent.rglob("*")) == found
    executor.run(two_loras("chain") | save(filename_prefix="deep/er/"))
    executor.run(two_loras("chain") | save(filename_prefix="deep/./er"))
    assert [path.name for path in sorted((folder / "deep").iterdir())] == [
        "er_00001_.safetensors",
        "er_00002_.safetensors",
    ]
