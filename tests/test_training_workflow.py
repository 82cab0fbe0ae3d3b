"""The shipped training workflow on the real server: run to its end, cancelled, killed while it saves, and given what it cannot take."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from safetensors import safe_open
from safetensors.torch import load_file

from diffdirector.nodes.live import EVENT
from diffdirector.tests.demo.world import caption, render, scenes, write_dataset, write_video
from diffdirector.tests.host.checkpoints import CHECKPOINT, MOTION_MODEL, link_models
from diffdirector.tests.host.prompts import animation, node
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import PromptFailed, Server
from diffdirector.tests.host.workflow import load_workflow, to_prompt
from diffdirector.trainers.checkpoint import load_state
from diffdirector.trainers.contact_sheet import GAP
from diffdirector.trainers.motion_director import MotionDirectorFiles

pytestmark = pytest.mark.slow

FRAMES, FRAME_STEP = 4, 3
SCENE = scenes(seed=4, n=1)[0]
CLIP = "my-clip.mp4"  # as the workflow names it
TRAIN, DATASET, SAVE = "DiffDirectorTrainMotionDirector", "DiffDirectorVideoDataset", "DiffDirectorSaveAnimation"
ROW = 96  # pixels of a clip in the contact sheet


def base_folder(folder: Path) -> Path:
    """A base folder as a user has it: models, and a clip in input/."""
    link_models(folder)
    (folder / "input").mkdir()
    write_video(folder / "input" / CLIP, render(SCENE, frames=FRAMES * FRAME_STEP))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(provision(), base_folder(tmp_path_factory.mktemp("training-workflow"))) as running:
        yield running


def small(workflow: str, server: Server, **overrides: dict[str, Any]) -> dict[str, Any]:
    """A shipped workflow with the small models, small pictures and few steps."""
    chosen = {
        "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
        "DiffDirectorLoadMotionModel": {"motion_model_name": MOTION_MODEL},
        "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": FRAMES},
        "KSampler": {"steps": 1},
    }
    return to_prompt(load_workflow(workflow), server.get("/object_info"), **chosen, **overrides)


def training(server: Server, name: str, clip: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    return small(
        "train-motiondirector", server,
        **{
            DATASET: {"caption": caption(SCENE), "frames": FRAMES, "width": 64, "height": 64} | (clip or {}),
            TRAIN: {
                "name": name, "steps": 3, "sample_every": 2, "rank": 4, "learning_rate": 1e-2,
            } | settings,
        },
    )  # fmt: skip


def only_training(prompt: dict[str, Any]) -> dict[str, Any]:
    """Without what comes after it, and without previews."""
    (train,) = (entry for entry in prompt.values() if entry["class_type"] == TRAIN)
    train["inputs"]["sample_prompt"] = ""
    wanted, found = [train], {}
    while wanted:
        for value in wanted.pop()["inputs"].values():
            if isinstance(value, list):
                found[value[0]] = prompt[value[0]]
                wanted.append(prompt[value[0]])
    return found | {"train": train}


def files_of(server: Server, name: str) -> MotionDirectorFiles:
    models = server.base / "models"
    return MotionDirectorFiles.in_folders(name, models / "animatediff_motion_lora", models / "loras")


def trained_steps(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(file.metadata()["trained_steps"])


def output_of(server: Server, prompt: dict[str, Any], outputs: dict[str, Any], kind: str) -> bytes:
    """The file that the node of that kind made."""
    ((file,),) = (files["images"] for key, files in outputs.items() if prompt[key]["class_type"] == kind)
    return server.file(file)


def frames_of(webp: bytes) -> np.ndarray:
    pictures = ImageSequence.Iterator(Image.open(io.BytesIO(webp)))
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]).astype(int)


@pytest.fixture(scope="module")
def learnt(server: Server) -> str:
    """A run of the whole workflow; checks what came of it, and returns the training's name."""
    messages: list[dict[str, Any]] = []
    prompt = training(server, "learnt")
    outputs = server.run(prompt, lambda kind, data: messages.append(data) if kind == EVENT else None)

    files = files_of(server, "learnt")
    assert [trained_steps(path) for path in (files.temporal, files.spatial)] == [3, 3]
    assert load_state(files.state)["step"] == 3
    preview = output_of(server, prompt, outputs, "SaveAnimatedWEBP")
    assert frames_of(preview).shape == frames_of(files.preview.read_bytes()).shape == (FRAMES, 64, 64, 3)
    with av.open(io.BytesIO(output_of(server, prompt, outputs, "SaveVideo"))) as video:
        assert sum(1 for _ in video.decode(video=0)) == FRAMES
    chart = Image.open(io.BytesIO(output_of(server, prompt, outputs, "LossGraphNode")))
    assert len(chart.convert("RGB").getcolors(1 << 20) or []) > 1

    samples = [message["sample"] for message in messages if message["sample"]]
    assert {sample["step"] for sample in samples} == {2, 3}
    assert frames_of(server.file(samples[-1])).shape == (FRAMES, 64, 64, 3)
    assert {sample["prompt"] for sample in samples} == {"a panda walks in a forest"}
    return "learnt"


def test_the_shipped_inference_workflow_uses_what_the_training_workflow_made(server: Server, learnt: str) -> None:
    prompt = small("text-to-animation", server)
    plain = frames_of(output_of(server, prompt, server.run(prompt), "SaveAnimatedWEBP"))
    (apply,) = (entry for entry in prompt.values() if entry["class_type"] == "DiffDirectorApplyMotionModel")
    apply["inputs"]["motion_lora"] = ["lora", 0]
    prompt["lora"] = node("DiffDirectorMotionLora", lora_name=f"{learnt}.safetensors", strength=1.0)
    moved = frames_of(output_of(server, prompt, server.run(prompt), "SaveAnimatedWEBP"))
    assert plain.shape == moved.shape
    assert np.abs(plain - moved).mean() > 1


def test_the_workflow_for_trained_motions_uses_what_the_training_workflow_made(server: Server, learnt: str) -> None:
    clips = []
    for strength in (1.0, 0.0):
        lora = {"lora_name": f"{learnt}.safetensors", "strength": strength}
        prompt = small("use-trained-motion", server, DiffDirectorMotionLora=lora)
        with av.open(io.BytesIO(output_of(server, prompt, server.run(prompt), SAVE))) as video:
            clips.append(np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(int))
    moved, plain = clips
    assert moved.shape == plain.shape == (FRAMES, 64, 64, 3)
    assert np.abs(moved - plain).mean() > 1


def test_the_workflow_for_several_clips_trains_on_a_folder_with_captions_beside_them(server: Server) -> None:
    folder = server.base / "input" / "my-clips"  # as the workflow names it
    write_dataset(folder, seed=4, n=3, frames=FRAMES * FRAME_STEP)
    prompt = small(
        "train-several-clips", server,
        **{
            DATASET: {"frames": FRAMES, "width": 64, "height": 64},
            TRAIN: {"name": "several", "steps": 3, "sample_every": 2, "rank": 4},
        },
    )  # fmt: skip
    outputs = server.run(prompt)
    assert trained_steps(files_of(server, "several").temporal) == 3
    sheet = Image.open(io.BytesIO(output_of(server, prompt, outputs, DATASET)))
    assert sheet.height == 3 * ROW + 2 * GAP
    assert frames_of(output_of(server, prompt, outputs, SAVE)).shape == (FRAMES, 64, 64, 3)
    assert output_of(server, prompt, outputs, "LossGraphNode")

    for text in folder.glob("*.txt"):
        text.unlink()
    with pytest.raises(PromptFailed, match="Expected a caption for the clips, found none"):
        server.run(prompt)


@pytest.mark.parametrize("moment", ["between previews", "in a preview"])
def test_cancel_keeps_what_was_learnt_and_run_goes_on_from_there(server: Server, moment: str) -> None:
    steps, name = 12, moment.replace(" ", "-")
    settings = {"sample_every": 2 if moment == "in a preview" else 0}
    prompt = training(server, name, steps=steps, **settings)
    files, kinds = files_of(server, name), list[str]()

    def cancel(kind: str, data: dict[str, Any]) -> None:
        kinds.append(kind)
        at_work = kind == EVENT and data["step"] >= 2
        if at_work and (data["phase"] == "sampling a preview" or moment == "between previews"):
            server.interrupt()

    server.run(prompt, cancel)
    assert kinds[-1] == "execution_interrupted"
    kept = load_state(files.state)
    assert 2 <= kept["step"] < steps
    assert [trained_steps(path) for path in (files.temporal, files.spatial)] == [kept["step"]] * 2

    taken: list[int] = []
    server.run(only_training(prompt), lambda kind, data: taken.append(data["step"]) if kind == EVENT else None)
    assert min(filter(None, taken)) > kept["step"] and max(taken) == steps
    state = load_state(files.state)
    assert state["step"] == trained_steps(files.temporal) == steps
    assert state["losses"][: kept["step"]] == kept["losses"]


def test_killed_while_it_saves_it_resumes_to_the_same_bits(server: Server, tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    # the very file: a video encoder does not write the same bits twice
    shutil.copy(server.base / "input" / CLIP, base / "input" / CLIP)
    settings = {"steps": 5, "rank": 64, "save_every": 1}
    with Server(provision(), base) as killed:
        files = files_of(killed, "killed")
        killed.queue(only_training(training(killed, "killed", **settings)))
        left = kill_while_it_writes(killed, files.state)
    kept = load_state(files.state)
    assert 1 <= kept["step"] < 5
    assert kept["step"] - 1 <= trained_steps(files.temporal) <= kept["step"]
    assert all(load_file(path) for path in (files.temporal, files.spatial))

    long_ago = time.time() - 24 * 3600
    os.utime(left, (long_ago, long_ago))
    with Server(provision(), base) as again:
        again.run(only_training(training(again, "killed", **settings)))
    resumed = load_state(files.state)
    assert resumed["losses"][: kept["step"]] == kept["losses"]
    assert not [path for folder in {path.parent for path in files} for path in folder.glob(".*")]

    server.run(only_training(training(server, "whole", **settings)))
    for path, whole in zip(files.loras.values(), files_of(server, "whole").loras.values(), strict=True):
        found, expected = load_file(path), load_file(whole)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def kill_while_it_writes(server: Server, path: Path) -> Path:
    """SIGKILL for the server when path has been written at least once and is being written anew; returns the half-written file."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.process.poll() is None
        if not (path.exists() and list(path.parent.glob(f".{path.name}.*"))):
            continue
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(0.02)
        written = list(path.parent.glob(f".{path.name}.*"))
        if written:
            server.process.kill()
            server.process.wait()
            return written[0]
        server.process.send_signal(signal.SIGCONT)
    raise AssertionError(f"{path} was not written twice in a minute")


@pytest.mark.parametrize(
    ("clip", "settings", "message"),
    [
        ({"caption": ""}, {}, "Expected a caption for the clips, found none"),
        ({"frame_step": 5}, {}, r"my-clip.mp4: 4 frames at a step of 5 .* need 16 frames, it has 12. Lower frames"),
        ({}, {"rank": 8}, r"learnt.training: expected the state of a run .*Choose another name, or start without resume"),
        ({}, {"name": "../learnt"}, "name"),
    ],
    ids=["no caption", "short video", "another rank", "a name that leads elsewhere"],
)  # fmt: skip
def test_errors_say_what_to_do_and_the_server_goes_on(
    server: Server, learnt: str, clip: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    files = files_of(server, learnt)
    before = [path.read_bytes() for path in files]
    with pytest.raises(PromptFailed) as refused:
        server.run(training(server, **({"name": learnt, "steps": 5} | settings), clip=clip))
    assert re.search(message, str(refused.value)), refused.value
    assert [path.read_bytes() for path in files] == before
    prompt = animation(FRAMES, steps=1)
    prompt["sample"]["inputs"]["seed"] = int(time.time() * 1000)  # or else the host has it already
    assert len(server.run(prompt)["save"]["images"]) == FRAMES
