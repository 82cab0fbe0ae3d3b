"""What the parts of the shipped workflows do to a clip, through the real server; tests/test_workflow_page.py runs all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from diffdirector.tests.demo import stack, world
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import Server
from diffdirector.tests.host.shipped import FEW_STEPS, FRAMES, SCENE, SIZE, SMALL, decoded, small, write_files

pytestmark = pytest.mark.slow

LORAS = ("DiffDirectorMotionLora", "DiffDirectorDomainAdapter")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("workflows")
    write_files(base)
    with Server(provision(), base) as server:
        yield server


def run(
    server: Server, name: str, models: dict[str, dict[str, Any]] | None = None, **settings: Any
) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """(frames of the file that the workflow saves, the steps that its sampler showed)."""
    return run_prompt(server, small(server, name, models, **settings))


def run_prompt(server: Server, prompt: dict[str, Any]) -> tuple[np.ndarray, list[tuple[str, int]]]:
    sampler_node = next(key for key, node in prompt.items() if node["class_type"] == "KSampler")
    steps: list[tuple[str, int]] = []

    def progress(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == sampler_node:
            steps.append((data["value"], data["max"]))

    outputs = server.run(prompt, progress)
    saver = next(key for key, node in prompt.items() if node["class_type"] == "DiffDirectorSaveAnimation")
    file = outputs[saver]["images"][0]
    return decoded(server.file(file), file["filename"]), steps


SPARSE = ["image-to-animation", "interpolate-two-images", "storyboard", "scribble-to-animation", "scribble-first-last"]


@pytest.mark.parametrize("name", SPARSE)
def test_its_pictures_change_the_clip(server: Server, name: str) -> None:
    shown, without = (
        run(server, name, {"DiffDirectorApplySparseCtrl": {"strength": strength}})[0] for strength in (1.0, 0.0)
    )
    assert np.abs(shown - without).mean() > 1


def test_video_to_video_follows_its_footage(server: Server) -> None:
    """With the demo's models, which know a picture: the less is painted anew, the nearer to the footage."""
    stack.link_models(server.base)
    models = {
        "CheckpointLoaderSimple": {"ckpt_name": stack.CHECKPOINT},
        "DiffDirectorLoadMotionModel": {"motion_model_name": stack.MOTION_MODEL},
        "DiffDirectorLoadFootage": SMALL["DiffDirectorLoadFootage"] | {"width": 64, "height": 64},
    }
    footage = (world.render(SCENE, 16)[:FRAMES].permute(0, 2, 3, 1) * 255).numpy()
    near, far = (
        np.abs(run(server, "video-to-video", models, denoise=denoise)[0] - footage).mean() for denoise in (0.2, 1.0)
    )
    assert near < 10 and far > 2 * near


@pytest.mark.parametrize(
    ("name", "files"), [("v3-adapter", 1), ("camera-moves", 2), ("lightning-fast", 0), ("sdxl-beta", 0)]
)
def test_a_shipped_workflow_uses_each_of_its_loras(server: Server, name: str, files: int) -> None:
    """As shipped, and without one of them. sdxl-beta runs on the small SD1.5 models, too: its graph, not its family."""
    prompts = [small(server, name)]
    for key, node in prompts[0].items():
        if node["class_type"] in LORAS:
            prompts.append(copy.deepcopy(prompts[0]))
            prompts[-1][key]["inputs"]["strength"] = 0.0
    assert len(prompts) == 1 + files
    clips, steps = zip(*(run_prompt(server, prompt) for prompt in prompts), strict=True)
    assert all(clip.shape == (FRAMES, SIZE, SIZE, 3) for clip in clips)
    assert all(np.abs(a - b).mean() > 1 for a, b in combinations(clips, 2))
    assert all(shown[-1] == (FEW_STEPS.get(name, 2),) * 2 for shown in steps)
