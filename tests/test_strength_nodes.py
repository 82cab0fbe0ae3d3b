"""Curves, Motion Strength and Motion LoRA with curves in graphs that the host's own executor runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.prompts import Prompt, animation, node
from diffdirector.tests.host.weights import motion_state
from diffdirector.tests.test_executor import frames

Frames = Callable[[Prompt], np.ndarray]


@pytest.fixture(scope="module")
def shown(executor, base: Path) -> Frames:
    return lambda prompt: frames(executor, base, prompt).astype(int)


def curve(text: str) -> Prompt:
    return {"curve": node("DiffDirectorCurve", curve=text, interpolation="linear", frames=8)}


def strength(**inputs: object) -> Prompt:
    return {"strength": node("DiffDirectorMotionStrength", kind="effect", **{"strength": 1.0} | inputs)}


@pytest.mark.slow
def test_a_strength_of_the_graph_is_the_one_of_apply_motion_model(shown: Frames) -> None:
    expected = shown(animation(strength=0.4))
    found = shown(animation(motion_strength=["strength", 0]) | strength(strength=0.4))
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - shown(animation())).max() > 10


@pytest.mark.slow
def test_curves_masks_and_blocks_reach_the_motion_model(shown: Frames) -> None:
    plain = shown(animation(strength=0.0))
    by_frame = shown(
        animation(motion_strength=["strength", 0]) | strength(frames_curve=["curve", 0]) | curve("0-3: 0, 4-7: 1")
    )
    assert np.abs(by_frame[:4] - plain[:4]).max() <= 1 and np.abs(by_frame[4:] - plain[4:]).max() > 10
    mask = {"black": node("SolidMask", value=0.0, width=16, height=16)}
    masked = shown(animation(motion_strength=["strength", 0]) | strength(mask=["black", 0]) | mask)
    assert np.abs(masked - plain).max() <= 1
    blocks = shown(animation(motion_strength=["strength", 0]) | strength(blocks="down: 0, mid: 0, up: 0"))
    assert np.abs(blocks - plain).max() <= 1
    chain = strength(strength=0.5) | {
        "second": node("DiffDirectorMotionStrength", kind="effect", strength=0.8, motion_strength=["strength", 0])
    }
    found = shown(animation(motion_strength=["second", 0]) | chain)
    assert np.abs(found - shown(animation(strength=0.4))).max() <= 1


@pytest.mark.slow
def test_a_motion_lora_with_curves(shown: Frames, base: Path) -> None:
    folder = base / "models" / "animatediff_motion_lora"
    folder.mkdir(parents=True, exist_ok=True)
    state = loras.in_original_naming(loras.motion_lora(motion_state(tiny_motion_config()), rank=4, seed=3))
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "camera.safetensors")

    def with_lora(strength: float, text: str, which: str) -> Prompt:
        lora = node(
            "DiffDirectorMotionLora", lora_name="camera.safetensors", strength=strength, **{which: ["curve", 0]}
        )
        return animation(motion_lora=["lora", 0]) | curve(text) | {"lora": lora}

    half = animation(motion_lora=["lora", 0])
    half["lora"] = node("DiffDirectorMotionLora", lora_name="camera.safetensors", strength=0.5)
    for which in ("frames_curve", "steps_curve"):
        assert np.abs(shown(with_lora(1.0, "0.5", which)) - shown(half)).max() <= 1
        assert np.abs(shown(with_lora(1.0, "0%: 0, 100%: 1", which)) - shown(half)).max() > 2


def test_what_is_wrong_is_said_before_sampling(executor) -> None:
    with pytest.raises(RuntimeError, match="no block 'down.9'"):
        executor.run(animation(motion_strength=["strength", 0]) | strength(blocks="down.9: 1"))
    with pytest.raises(RuntimeError, match="expected a percentage"):
        executor.run(
            animation(motion_strength=["strength", 0]) | strength(steps_curve=["curve", 0]) | curve("0: 1, 4: 0")
        )
