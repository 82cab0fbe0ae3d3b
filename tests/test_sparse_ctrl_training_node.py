"""Train SparseCtrl in the real executor: what is trained works right there and from its file, Cancel keeps it, a further run goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import comfy.model_management
import numpy as np
import pytest
from safetensors import safe_open

from diffdirector.motion.sparse_formats import SparseKind
from diffdirector.motion.sparsectrl import load_sparse_ctrl
from diffdirector.tests.demo.world import write_dataset
from diffdirector.tests.host.prompts import Prompt, animation, node
from diffdirector.tests.test_executor import frames
from diffdirector.trainers.checkpoint import load_state

TRAIN = "DiffDirectorTrainSparseCtrl"


@pytest.fixture(scope="module", autouse=True)
def _videos(base: Path) -> None:
    write_dataset(base / "input" / "sparse-clips", seed=3, n=2, frames=8)


@pytest.fixture
def pack_module(executor) -> ModuleType:
    """The node's file as the host has loaded it."""
    import nodes

    return sys.modules[nodes.NODE_CLASS_MAPPINGS[TRAIN].__module__]


def training(name: str, **settings) -> Prompt:
    """A training on scribbles, and a clip with what it learnt, shown the contact sheet's lines."""
    prompt = animation(steps=1)
    prompt["clips"] = node("DiffDirectorVideoDataset", source="sparse-clips", frames=8, width=64, height=64)
    chosen = {"steps": 2, "kind": "scribble", "learning_rate": 0.05} | settings
    prompt["train"] = node(
        TRAIN, model=["checkpoint", 0], clip=["checkpoint", 1], vae=["checkpoint", 2], motion_model=["motion", 0], dataset=["clips", 0],
        name=name, **chosen,
    )  # fmt: skip
    prompt["lines"] = node("DiffDirectorScribblePreprocessor", images=["clips", 1])
    prompt["control"] = node(
        "DiffDirectorApplySparseCtrl", positive=["positive", 0], negative=["negative", 0], control_net=["train", 0],
        images=["lines", 0], indices="0",
    )  # fmt: skip
    prompt["sample"]["inputs"] |= {"positive": ["control", 0], "negative": ["control", 1]}
    return prompt


def only_training(prompt: Prompt) -> Prompt:
    return {key: prompt[key] for key in ("checkpoint", "motion", "clips", "train")}


@pytest.mark.slow
def test_what_is_trained_works_here_and_from_its_file_and_is_fine_tuned(executor, base: Path) -> None:
    prompt = training("shown")
    trained = frames(executor, base, prompt)
    assert (trained != frames(executor, base, animation(steps=1))).any()
    loaded = {key: value for key, value in prompt.items() if key != "train"}
    loaded["load"] = node("DiffDirectorLoadSparseCtrl", control_net_name="shown.safetensors")
    loaded["control"]["inputs"]["control_net"] = ["load", 0]
    assert np.abs(frames(executor, base, loaded).astype(int) - trained).max() <= 1

    settings = {"kind": "rgb", "layout": "diffusers", "steps": 1, "learning_rate": 1e-6}
    settings |= {"held_out": 1, "sample_prompt": "a square"}
    executor.run(only_training(training("tuned", start_from=["load", 0], **settings)) | {"load": loaded["load"]})
    folder = base / "models" / "controlnet"
    known = load_sparse_ctrl(str(folder / "shown.safetensors"))
    tuned = load_sparse_ctrl(str(folder / "tuned" / "diffusion_pytorch_model.safetensors"))
    assert (known.config.kind, tuned.config.kind) == (SparseKind.SCRIBBLE, SparseKind.RGB)
    before, after = (control.patcher.model.state_dict()["zero_convs.0.0.weight"] for control in (known, tuned))
    assert (folder / "tuned.best" / "config.json").exists() and (folder / "tuned.samples" / "step-000001.webp").exists()
    assert before.abs().max() > 1e-3 and (after - before).abs().max() < 1e-4  # a new one has zeros there


@pytest.mark.slow
def test_cancel_keeps_what_was_learnt_and_a_further_run_goes_on(executor, base, pack_module, monkeypatch) -> None:
    shown: list[dict] = []
    live = pack_module.LiveTraining
    step = live.step

    def cancelled(self, report) -> None:
        comfy.model_management.interrupt_current_processing(report.step == 1)
        step(self, report)

    monkeypatch.setattr(live, "_send", lambda self: shown.append(self.state()))
    monkeypatch.setattr(live, "step", cancelled)
    prompt = only_training(training("cancelled", steps=3))
    executor.run(prompt)
    folder = base / "models" / "controlnet"
    assert load_state(folder / "cancelled.training")["step"] == 1
    assert load_sparse_ctrl(str(folder / "cancelled.safetensors")).config.kind is SparseKind.SCRIBBLE
    monkeypatch.setattr(live, "step", step)
    shown.clear()
    executor.run(prompt)
    assert shown[-1]["step"] == 3 and [point[0] for point in shown[-1]["series"]["loss"]] == [1, 2, 3]
    with safe_open(folder / "cancelled.safetensors", "pt") as file:
        assert file.metadata()["trained_steps"] == "3"


def test_clips_that_are_too_long_are_refused_before_they_are_encoded(executor, base, pack_module, monkeypatch) -> None:
    monkeypatch.setattr(pack_module, "encoded", lambda *_: pytest.fail("clips were encoded"))
    write_dataset(base / "input" / "sparse-long", seed=3, n=1, frames=33)
    prompt = only_training(training("never"))
    prompt["clips"]["inputs"] |= {"source": "sparse-long", "frames": 33}
    with pytest.raises(RuntimeError, match="clips of at most 32 frames.* found 33. Lower the dataset's frames"):
        executor.run(prompt)
