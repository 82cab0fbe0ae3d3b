"""The PIA node in graphs that the host's executor runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffdirector.tests.host.pia import pia_state
from diffdirector.tests.host.prompts import Prompt, animation, node
from diffdirector.tests.test_executor import frames

FILE = "pia.ckpt"


@pytest.fixture(scope="module", autouse=True)
def files(base: Path) -> None:
    """A PIA in models/animatediff_models, a picture in input."""
    folder = base / "models" / "animatediff_models"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({f"module.{key}": value for key, value in pia_state().items()}, folder / FILE)
    (base / "input").mkdir(exist_ok=True)
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 12, 3), dtype=np.uint8))
    noise.resize((96, 64)).save(base / "input" / "picture.png")


def pia(count: int = 8, **settings: Any) -> Prompt:
    """The graph of animation() with a PIA and its picture."""
    prompt = animation(frames=count, motion_model=FILE)
    prompt["picture"] = node("LoadImage", image="picture.png")
    prompt["pia"] = node(
        "DiffDirectorPIA",
        **{"model": ["apply", 0], "vae": ["checkpoint", 2], "image": ["picture", 0], "motion": "small motion"}
        | settings,
    )
    prompt["sample"]["inputs"]["model"] = ["pia", 0]
    return prompt


@pytest.mark.slow
def test_a_picture_and_its_motion_through_ksampler(executor, base) -> None:
    found = [frames(executor, base, pia(motion=motion)) for motion in ("small motion", "style transfer, large motion")]
    prompt_alone = frames(executor, base, animation(motion_model=FILE))
    assert all(np.abs(clip.astype(int) - prompt_alone).mean() > 1 for clip in found)
    assert (found[0] != found[1]).any()


@pytest.mark.slow
def test_a_curve_of_the_tables_numbers_is_the_table(executor, base) -> None:
    """In context windows, before or after the picture."""
    prompt = pia(14, motion="large motion", frame=-1)
    prompt["windows"] = node("DiffDirectorContextWindows", model=["pia", 0], context_length=8, overlap=2)
    prompt["sample"]["inputs"]["model"] = ["windows", 0]
    found = frames(executor, base, prompt)
    numbers = [1.0, 0.8, *[0.7] * 8, 0.6, 0.5, 0.5, 0.5]
    prompt["curve"] = node("DiffDirectorCurve", curve=str(numbers[::-1]), interpolation="linear", frames=14)
    prompt["pia"]["inputs"] |= {
        "model": ["windows", 0],
        "similarity": ["curve", 0],
        "motion": "small motion",
        "frame": 0,
    }
    prompt["windows"]["inputs"]["model"] = ["apply", 0]
    prompt["sample"]["inputs"]["model"] = ["pia", 0]
    assert (frames(executor, base, prompt) == found).all()
    del prompt["pia"]["inputs"]["similarity"]
    assert (frames(executor, base, prompt) != found).any()


def test_what_does_not_fit_is_said(executor, base) -> None:
    prompt = pia(model=["checkpoint", 0])
    with pytest.raises(
        RuntimeError, match="PIA motion model, found one without any motion model. Put Apply Motion Model"
    ):
        frames(executor, base, prompt)
    other = pia()
    other["motion"] = animation()["motion"]
    with pytest.raises(
        RuntimeError, match="PIA motion model, found diffdirector-tiny-motion-v2.safetensors .AnimateDiff v2."
    ):
        frames(executor, base, other)
    two = pia(image=["two", 0])
    two["two"] = node("ImageBatch", image1=["picture", 0], image2=["picture", 0])
    with pytest.raises(RuntimeError, match="image: expected one picture, found 2"):
        frames(executor, base, two)
    with pytest.raises(RuntimeError, match="frame: expected one of the clip's 8, 0 to 7, found 8"):
        frames(executor, base, pia(frame=8))
