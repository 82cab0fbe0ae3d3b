"""Train MotionDirector's previews and further runs, in the real executor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from safetensors import safe_open
from safetensors.torch import save_file

from diffdirector.tests.demo.world import write_dataset
from diffdirector.tests.host.prompts import animation, node
from diffdirector.tests.host.weights import TINY, unet_config, unet_state
from diffdirector.trainers.sampling import CFG, STEPS

PROMPT = "a blue square growing"


def pictures(base: Path, saved: list[dict]) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.open(base / "output" / file["subfolder"] / file["filename"])) for file in saved]
    ).astype(int)


@pytest.fixture
def training(base: Path) -> dict:
    write_dataset(base / "input" / "previewed", seed=4, n=1, frames=4)
    prompt = {key: value for key, value in animation().items() if key in ("checkpoint", "motion")}
    prompt["clips"] = node("DiffDirectorVideoDataset", source="previewed", frames=4, width=64, height=64)
    prompt["train"] = node(
        "DiffDirectorTrainMotionDirector", model=["checkpoint", 0], clip=["checkpoint", 1], vae=["checkpoint", 2],
        motion_model=["motion", 0], dataset=["clips", 0], name="previewed", steps=2, rank=4, learning_rate=1e-2, seed=1,
        sample_prompt=PROMPT, sample_every=0,
    )  # fmt: skip
    prompt["show"] = node("SaveImage", images=["train", 3], filename_prefix="sample")
    return prompt


@pytest.mark.slow
def test_the_preview_is_what_the_host_samples_with_the_lora(executor, base, training) -> None:
    shown = pictures(base, executor.run(training)["show"]["images"])
    assert shown.shape == (4, 64, 64, 3)
    folder = base / "models" / "animatediff_motion_lora"
    with Image.open(folder / "previewed.webp") as preview:
        kept = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(preview)]).astype(int)
        assert preview.info["duration"] == 125
    assert np.corrcoef(kept.mean(3).ravel(), shown.mean(3).ravel())[0, 1] > 0.95  # compressed, but the same

    used = animation(frames=4, steps=STEPS, size=64, motion_lora=["lora", 0])
    used["lora"] = node("DiffDirectorMotionLora", lora_name="previewed.safetensors", strength=1.0)
    used["positive"]["inputs"]["text"] = PROMPT
    used["sample"]["inputs"] |= {"cfg": CFG, "seed": 1}
    found = pictures(base, executor.run(used)["save"]["images"])
    assert np.abs(found - shown).max() <= 2
    used["apply"]["inputs"].pop("motion_lora")
    assert np.abs(pictures(base, executor.run(used)["save"]["images"]) - shown).max() > 20


@pytest.mark.slow
def test_a_further_run_with_more_steps_goes_on(executor, base, training) -> None:
    path = base / "models" / "animatediff_motion_lora" / "previewed.safetensors"
    training["train"]["inputs"] |= {"steps": 3, "sample_prompt": ""}
    executor.run(training)
    training["train"]["inputs"]["steps"] = 5
    training["chart"] = node("LossGraphNode", loss=["train", 2], filename_prefix="loss")
    outputs = executor.run(training)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["trained_steps"], metadata["diffdirector"]) == ("5", "0.1.0")
    assert metadata["base"].endswith(".safetensors") and len(metadata["dataset"]) == 16
    assert pictures(base, outputs["show"]["images"]).max() == 0  # no prompt, no preview


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DiffDirectorTrainMotionDirector", "DiffDirectorTrainMotionModule"])
def test_a_model_of_another_family_is_refused_and_a_right_one_trains_after_it(executor, base, training, kind) -> None:
    sd2 = unet_config(
        "sd15", **TINY, context_dim=1024, use_linear_in_transformer=True, num_head_channels=64, num_heads=-1
    )
    path = base / "models" / "diffusion_models" / "sd2.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(unet_state(sd2), path)
    inputs = training["train"]["inputs"] | {"model": ["other", 0]}
    training["other"] = node("UNETLoader", unet_name=path.name, weight_dtype="default")
    training["refused"] = node(kind, **inputs)
    del training["train"], training["show"]
    with pytest.raises(RuntimeError, match="animate SD1.5 and SDXL checkpoints; this model is SD20"):
        executor.run(training)
    training["refused"]["inputs"] |= {"model": ["checkpoint", 0], "name": kind, "sample_prompt": "", "steps": 1}
    executor.run(training)


def test_the_settings_node_reaches_the_training_and_a_preset_goes_before_it(executor, base, training) -> None:
    settings = {"temporal_targets": "to_q, to_k", "gradient_checkpointing": False, "debias": 0.25}
    training["finer"] = node("DiffDirectorMotionDirectorSettings", **settings)
    inputs = training["train"]["inputs"]
    inputs |= {"name": "finer", "steps": 1, "sample_prompt": "", "settings": ["finer", 0], "preset": "low"}
    executor.run(training)
    with safe_open(base / "models" / "animatediff_motion_lora" / "finer.safetensors", "pt") as file:
        metadata = file.metadata()
        trained = {part for key in file.keys() for part in ("to_q", "to_k", "to_v", "to_out", "ff") if part in key}  # noqa: SIM118
    assert trained == {"to_q", "to_k"}
    assert (metadata["debias"], metadata["rank"], metadata["gradient_checkpointing"]) == ("0.25", "32", "True")


@pytest.mark.slow
def test_a_motion_module_is_shown_on_a_page_and_its_best_is_kept(executor, base, training) -> None:
    write_dataset(base / "input" / "several", seed=4, n=3, frames=4)
    training["clips"]["inputs"]["source"] = "several"
    inputs = {key: training["train"]["inputs"][key] for key in ("model", "clip", "vae", "dataset", "seed")}
    inputs |= {"name": "on page", "steps": 1, "learning_rate": 1e-3, "held_out": 1, "sample_prompt": PROMPT}
    training["train"] = node("DiffDirectorTrainMotionModule", **inputs)
    training["show"]["inputs"]["images"] = ["train", 2]
    shown = pictures(base, executor.run(training)["show"]["images"])
    folder = base / "models" / "animatediff_models"
    with Image.open(folder / "on page.samples" / "step-000001.webp") as preview:
        kept = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(preview)]).astype(int)
    assert np.corrcoef(kept.mean(3).ravel(), shown.mean(3).ravel())[0, 1] > 0.95
    page = (folder / "on page.samples.html").read_text(encoding="utf-8")
    assert 'src="on%20page.samples/step-000001.webp"' in page and "The dataset's clips: flow " in page
    assert (folder / "on page.best.safetensors").exists()
