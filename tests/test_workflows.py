"""Every shipped workflow for sampling, through the real server on the small models: fewer frames, pixels and steps, else as shipped."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffdirector.motion.sparse_formats import SparseKind
from diffdirector.tests.demo import stack, world
from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import CHECKPOINT, MOTION_MODEL, link_models
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import Server
from diffdirector.tests.host.sparse import in_original_naming, sparse_state
from diffdirector.tests.host.weights import TINY, unet_config, unet_state
from diffdirector.tests.host.workflow import load_workflow, to_prompt

pytestmark = pytest.mark.slow

FRAMES = 10
SCENE = world.Scene("circle", "red", "white", "right")
SMALL: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
    "DiffDirectorLoadMotionModel": {"motion_model_name": MOTION_MODEL},
    "LoraLoaderModelOnly": {"lora_name": "lcm.safetensors"},
    "DiffDirectorDomainAdapter": {"adapter_name": "lcm.safetensors"},
    "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": FRAMES},
    "DiffDirectorContextWindows": {"context_length": 8, "overlap": 2},
    "DiffDirectorPromptTravel": {"frames": FRAMES},
    "DiffDirectorLoadFootage": {"video": "clip.mp4", "width": 64, "height": 64, "frames": FRAMES},
}
FEW_STEPS = {"lcm-fast": 6, "lightning-fast": 4}  # which Few-Step Settings tells the sampler
LORAS = ("DiffDirectorMotionLora", "DiffDirectorDomainAdapter")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("workflows")
    link_models(base)
    for folder in ("input", "models/loras", "models/animatediff_motion_lora"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    write_camera_moves(base)
    world.write_video(base / "input" / "clip.mp4", world.render(SCENE, 16))
    config = unet_config("sd15", **TINY)
    lora = loras.in_original_naming(loras.spatial_lora(config, unet_state(config), rank=2, seed=3))
    save_file({key: value.contiguous() for key, value in lora.items()}, base / "models/loras/lcm.safetensors")
    for kind in SparseKind:  # under the names that the workflows ask for
        path = base / "models/controlnet" / f"v3_sd15_sparsectrl_{kind.name.lower()}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"controlnet": in_original_naming(sparse_state(kind))}, path)
    for number, name in enumerate(("first", "middle", "last", "drawing")):
        still = (world.render_still(SCENE, number / 3).movedim(0, -1) * 255).byte().numpy()
        Image.fromarray(still).save(base / "input" / f"{name}.png")
    with Server(provision(), base) as server:
        yield server


def write_camera_moves(base: Path) -> None:
    """MotionLoRAs under the names that the workflow asks for."""
    motion = load_file(base / "models/animatediff_models" / MOTION_MODEL)
    for seed, move in enumerate(("ZoomIn", "PanLeft")):
        lora = loras.in_original_naming(loras.motion_lora(motion, rank=4, seed=seed))
        torch.save({"state_dict": lora}, base / f"models/animatediff_motion_lora/v2_lora_{move}.ckpt")


def run(
    server: Server, name: str, models: dict[str, dict[str, Any]] | None = None, **settings: Any
) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """(frames of the file that the workflow saves, the steps that its sampler showed)."""
    return run_prompt(server, small(server, name, models, **settings))


def small(
    server: Server, name: str, models: dict[str, dict[str, Any]] | None = None, **settings: Any
) -> dict[str, Any]:
    """A shipped workflow's prompt, for the small models."""
    sampler = {"KSampler": {"steps": 2} | settings} if name not in FEW_STEPS else {}
    return to_prompt(load_workflow(name), server.get("/object_info"), **SMALL | (models or {}) | sampler)


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


def decoded(content: bytes, name: str) -> np.ndarray:
    if Path(name).suffix == ".webp":
        picture, frames = Image.open(io.BytesIO(content)), []
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
        return np.stack(frames).astype(int)
    with av.open(io.BytesIO(content)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(int)


SPARSE = ["image-to-animation", "interpolate-two-images", "storyboard", "scribble-to-animation", "scribble-first-last"]


@pytest.mark.parametrize("name", ["long", "loop", "prompt-travel", "video-to-video", "lcm-fast", "freeinit", *SPARSE])
def test_a_shipped_workflow_makes_a_clip(server: Server, name: str) -> None:
    frames, steps = run(server, name)
    assert frames.shape == (FRAMES, 64, 64, 3)
    assert all(np.abs(after - before).max() > 0 for before, after in zip(frames, frames[1:], strict=False))
    assert steps and steps[-1][0] == steps[-1][1] == {"freeinit": 6}.get(name, FEW_STEPS.get(name, 2))


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
    assert all(clip.shape == (FRAMES, 64, 64, 3) for clip in clips)
    assert all(np.abs(a - b).mean() > 1 for a, b in combinations(clips, 2))
    assert all(shown[-1] == (FEW_STEPS.get(name, 2),) * 2 for shown in steps)
