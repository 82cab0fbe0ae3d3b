"""Train Domain Adapter and Train Motion LoRA in the real executor, on stills over which a camera moves."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffdirector.lora.patches import load_lora
from diffdirector.motion.identify import FileKind
from diffdirector.tests.host.prompts import animation, node


@pytest.fixture
def training(base: Path) -> dict:
    """Without the training node: a checkpoint, a motion model and clips of two stills."""
    folder = base / "input" / "stills"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        Image.radial_gradient("L").rotate(number * 90).convert("RGB").save(folder / f"{number}.png")
    prompt = {key: value for key, value in animation().items() if key in ("checkpoint", "motion")}
    prompt["clips"] = node(
        "DiffDirectorVideoDataset", source="stills", caption="a light", frames=4, width=64, height=64, camera="zoom_in"
    )
    return prompt


def trained(kind: str, **inputs) -> dict:
    common = {
        "model": ["checkpoint", 0],
        "clip": ["checkpoint", 1],
        "vae": ["checkpoint", 2],
        "dataset": ["clips", 0],
        "steps": 2,
        "rank": 4,
    }
    return node(kind, **common, **inputs)  # fmt: skip


@pytest.mark.slow
def test_a_motion_lora_of_stills_moves_the_next_clip(executor, base, training) -> None:
    training["train"] = trained(
        "DiffDirectorTrainMotionLora", motion_model=["motion", 0], name="zoom", learning_rate=1e-2, sample_prompt="", held_out=1, validate_every=1
    )  # fmt: skip
    training["chart"] = node("LossGraphNode", loss=["train", 1], filename_prefix="loss")
    training |= {
        key: value
        for key, value in animation(frames=4, steps=1, motion_lora=["train", 0]).items()
        if key not in training
    }
    outputs = executor.run(training)
    assert outputs["save"]["images"] and outputs["clips"]["images"]
    path = base / "models" / "animatediff_motion_lora" / "zoom.safetensors"
    assert load_lora(str(path), "zoom", FileKind.MOTION_LORA)


@pytest.mark.slow
def test_a_domain_adapter_shows_a_picture_and_is_used_by_the_host_and_by_us(executor, base, training) -> None:
    training["train"] = trained("DiffDirectorTrainDomainAdapter", name="looks", sample_prompt="a light")
    training["show"] = node("SaveImage", images=["train", 2], filename_prefix="sample")
    del training["motion"]
    assert len(executor.run(training)["show"]["images"]) == 1
    used = animation(frames=1, steps=1)
    used["adapter"] = node(
        "DiffDirectorDomainAdapter", model=["checkpoint", 0], adapter_name="looks.safetensors", strength=1.0
    )
    used["lora"] = node("LoraLoaderModelOnly", model=["adapter", 0], lora_name="looks.safetensors", strength_model=1.0)
    used["apply"]["inputs"]["model"] = ["lora", 0]
    assert executor.run(used)["save"]["images"]


def test_a_model_that_is_animated_already_is_refused_before_clips_are_encoded(executor, training) -> None:
    training["apply"] = node("DiffDirectorApplyMotionModel", model=["checkpoint", 0], motion_model=["motion", 0])
    training["train"] = trained("DiffDirectorTrainDomainAdapter", name="no", sample_prompt="")
    training["train"]["inputs"]["model"] = ["apply", 0]
    with pytest.raises(RuntimeError, match="expected a checkpoint without a motion model"):
        executor.run(training)


def test_stills_without_a_camera_move_are_refused(executor, training) -> None:
    training["clips"]["inputs"]["camera"] = "none"
    with pytest.raises(RuntimeError, match="which do not move. Choose a camera move"):
        executor.run({"clips": training["clips"]})
