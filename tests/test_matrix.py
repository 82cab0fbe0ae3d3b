"""The node set and the shipped workflow on real servers: the newest ComfyUI and the oldest we declare; all with --matrix."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from diffdirector.tests.demo.world import Scene, render, write_video
from diffdirector.tests.host.checkpoints import CHECKPOINT, MOTION_MODEL, link_models
from diffdirector.tests.host.prompts import animation, node
from diffdirector.tests.host.provision import NEWEST, ROOT, provision
from diffdirector.tests.host.server import PromptFailed, Server
from diffdirector.tests.host.workflow import load_workflow, to_prompt
from diffdirector.tests.test_nodes import CONTRACT
from diffdirector.trainers.animation import FORMATS

pytestmark = pytest.mark.slow
FRAMES = 16


@pytest.fixture(scope="module")
def server(host_version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp(f"host-{host_version}")
    link_models(base)
    with Server(provision(NEWEST if host_version == "own" else host_version), base, "--cpu") as running:
        yield running


@pytest.fixture(scope="module")
def shipped(server: Server) -> dict:
    return to_prompt(
        load_workflow("text-to-animation"),
        server.get("/object_info"),
        CheckpointLoaderSimple={"ckpt_name": CHECKPOINT},
        DiffDirectorLoadMotionModel={"motion_model_name": MOTION_MODEL},
        EmptyLatentImage={"width": 64, "height": 64, "batch_size": FRAMES},
        KSampler={"steps": 2},
    )


def test_host_is_the_version_that_was_asked_for(server: Server, host_version: str) -> None:
    if host_version != "own":
        assert server.get("/system_stats")["system"]["comfyui_version"] == host_version


def test_every_node_is_registered_with_its_inputs(server: Server) -> None:
    info = server.get("/object_info")
    ours = {name for name in info if name.startswith("DiffDirector")}
    assert ours == set(CONTRACT)
    assert info["DiffDirectorLoadMotionModel"]["input"]["required"]["motion_model_name"][1]["options"] == [MOTION_MODEL]
    assert "Error while calling comfy_entrypoint" not in server.log.read_text()


def test_shipped_workflow_makes_the_video(server: Server, shipped: dict) -> None:
    steps: list[tuple[int, int]] = []

    def progress(kind: str, data: dict) -> None:
        if kind == "progress":
            steps.append((data["value"], data["max"]))

    outputs = server.run(shipped, progress)
    assert (2, 2) in steps
    files = {Path(file["filename"]).suffix: file for node in outputs.values() for file in node["images"]}
    with av.open(io.BytesIO(server.file(files[".mp4"]))) as video:
        assert video.streams.video[0].average_rate == 8
        decoded = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    webp = Image.open(io.BytesIO(server.file(files[".webp"])))
    shown = []
    for index in range(webp.n_frames):
        webp.seek(index)
        shown.append(np.asarray(webp.convert("RGB")))
    for frames in (decoded, shown):
        assert len(frames) == FRAMES
        assert frames[0].shape == (64, 64, 3)
        assert len({frame.tobytes() for frame in frames}) == FRAMES


def test_motion_model_has_an_effect(server: Server) -> None:
    """A host that passes our handlers over gives the same frames with and without it."""
    runs = [server.run(animation(strength=strength))["save"]["images"] for strength in (0.0, 1.0)]
    still, moved = (
        np.stack([np.asarray(Image.open(io.BytesIO(server.file(file)))).astype(int) for file in files])
        for files in runs
    )
    assert np.abs(still - moved).mean() > 5


def test_footage_becomes_a_clip_in_every_format(server: Server) -> None:
    (server.base / "input" / "shots").mkdir(parents=True)
    write_video(server.base / "input" / "shots" / "circle.mp4", render(Scene("circle", "red", "white", "right")))
    prompt = animation(8)
    prompt |= {
        "footage": node(
            "DiffDirectorLoadFootage", video="shots/circle.mp4", frame_rate=8.0, start=0.0, frames=0, width=64, height=64,
        ),
        "anchors": node(
            "DiffDirectorAnchorFrames", images=["footage", 0], vae=["checkpoint", 2], indices="0 -1", strength=1.0, frames=["footage", 1],
        ),
    }  # fmt: skip
    for kind in FORMATS:
        prompt[kind] = node(
            "DiffDirectorSaveAnimation", images=["decode", 0], filename_prefix="clip", frame_rate=["footage", 2], format=kind
        )  # fmt: skip
    prompt["sample"]["inputs"]["latent_image"] = ["anchors", 0]
    outputs = server.run(prompt)
    saved = [file for kind in FORMATS for file in outputs[kind].get("gifs", outputs[kind]["images"])]
    files = {Path(file["filename"]).suffix: server.file(file) for file in saved}
    assert set(files) == {f".{kind}" for kind in FORMATS}
    for suffix in (".mp4", ".webm", ".gif"):
        with av.open(io.BytesIO(files[suffix])) as video:
            assert len(list(video.decode(video=0))) == 8


def test_template_and_help_pages_are_served(server: Server) -> None:
    names = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert set(server.get("/workflow_templates")["DiffDirector"]) == names >= {"text-to-animation", "demo"}
    for name in names:
        at = f"/api/workflow_templates/DiffDirector/{name}"
        assert server.get(f"{at}.json")["nodes"]
        with urllib.request.urlopen(f"{server.url}{at}.jpg") as thumbnail:
            assert Image.open(io.BytesIO(thumbnail.read())).size == (512, 512)
    assert "DiffDirectorApplyMotionModel" in server.get("/i18n")["zh"]["nodeDefs"]


def test_errors_reach_the_user(server: Server) -> None:
    with pytest.raises(PromptFailed, match="at most 32 frames at a time, the batch has 40"):
        server.run(animation(frames=40))
    with pytest.raises(PromptFailed, match="Value not in list"):
        server.run(animation(motion_model="../checkpoints/" + CHECKPOINT))
