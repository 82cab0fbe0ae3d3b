"""SparseCtrl's nodes in graphs that the host's executor runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffdirector.motion.sparse_formats import SparseKind
from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import CHECKPOINT, MOTION_MODEL, tiny_motion_config
from diffdirector.tests.host.prompts import SIZE, Prompt, animation, node
from diffdirector.tests.host.sparse import in_original_naming, sparse_state
from diffdirector.tests.host.weights import TINY, motion_state, seeded, unet_config
from diffdirector.tests.test_executor import frames

RGB, SCRIBBLE, STOCK = "sparse-rgb.ckpt", "sparse-scribble.safetensors", "stock.safetensors"
WRONG = {
    STOCK: "Expected a SparseCtrl model, but this is a ControlNet. Load it with the ControlNet loader",
    MOTION_MODEL: "this is a motion model. Load it with Load Motion Model",
    "lora.safetensors": "this is a MotionLoRA. Load it with Motion LoRA",
    CHECKPOINT: "this is an image checkpoint. Load it with the checkpoint loader",
    "cut.safetensors": "lacks zero_convs.0.0.weight .1 such tensors.. Get the original file again",
    "maskless.safetensors": "expected 4 channels, scribbles and their mask; found 3",
}


@pytest.fixture(scope="module")
def files(base: Path) -> None:
    """Both kinds, a stock ControlNet and wrong files in models/controlnet; two pictures in input."""
    folder = base / "models" / "controlnet"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"controlnet": in_original_naming(sparse_state(SparseKind.RGB))}, folder / RGB)
    scribble = sparse_state(SparseKind.SCRIBBLE)
    save_file(scribble, folder / SCRIBBLE)
    save_file({key: value for key, value in scribble.items() if key != "controlnet_down_blocks.0.weight"}, folder / "cut.safetensors")  # fmt: skip
    stem = "controlnet_cond_embedding.conv_in.weight"
    save_file(scribble | {stem: scribble[stem][:, :3].contiguous()}, folder / "maskless.safetensors")
    camera = loras.motion_lora(motion_state(tiny_motion_config()), rank=4, seed=3)
    save_file(loras.in_original_naming(camera), folder / "lora.safetensors")
    for kind, name in (("animatediff_models", MOTION_MODEL), ("checkpoints", CHECKPOINT)):
        (folder / name).unlink(missing_ok=True)  # another file's tests use these, too
        (folder / name).symlink_to(base / "models" / kind / name)
    from comfy.cldm.cldm import ControlNet

    with torch.device("meta"):
        skeleton = ControlNet(**unet_config("sd15", **TINY), hint_channels=3)
    state = seeded({key: tuple(value.shape) for key, value in skeleton.state_dict().items()}, seed=4)
    save_file({f"control_model.{key}": value for key, value in state.items()}, folder / STOCK)
    (base / "input").mkdir(exist_ok=True)
    random = np.random.default_rng(3)
    for name in ("a.png", "b.png"):
        noise = Image.fromarray(random.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        noise.resize((96, 64)).save(base / "input" / name)


def controlled(name: str = RGB, count: int = 8, **apply: Any) -> Prompt:
    """The graph of animation() with a SparseCtrl on two pictures at its ends."""
    prompt = animation(frames=count)
    prompt |= {
        "a": node("LoadImage", image="a.png"),
        "b": node("LoadImage", image="b.png"),
        "pictures": node("ImageBatch", image1=["a", 0], image2=["b", 0]),
        "lines": node("DiffDirectorScribblePreprocessor", images=["pictures", 0]),
        "load": node("DiffDirectorLoadSparseCtrl", control_net_name=name),
        "control": node(
            "DiffDirectorApplySparseCtrl", positive=["positive", 0], negative=["negative", 0], control_net=["load", 0],
            images=["pictures" if name == RGB else "lines", 0], indices="0, -1",
            **({"vae": ["checkpoint", 2]} if name == RGB else {}), **apply,
        ),
    }  # fmt: skip
    prompt["sample"]["inputs"] |= {"positive": ["control", 0], "negative": ["control", 1]}
    return prompt


def in_windows(prompt: Prompt) -> Prompt:
    prompt["windows"] = node("DiffDirectorContextWindows", model=["apply", 0], context_length=8, overlap=2)
    prompt["sample"]["inputs"]["model"] = ["windows", 0]
    return prompt


@pytest.mark.slow
@pytest.mark.parametrize("name", [RGB, SCRIBBLE])
def test_pictures_at_both_ends_through_ksampler_in_context_windows(executor, base, files, name: str) -> None:
    found = frames(executor, base, in_windows(controlled(name, 14)))
    without = frames(executor, base, in_windows(controlled(name, 14, strength=0.0)))
    plain = frames(executor, base, in_windows(animation(14)))
    assert found.shape == (14, SIZE, SIZE, 3)
    assert (without == plain).all()
    assert np.abs(found.astype(int) - plain).mean((1, 2, 3)).min() > 1


@pytest.mark.slow
def test_a_step_range_that_is_over_is_none(executor, base, files) -> None:
    expected = frames(executor, base, animation())
    assert (frames(executor, base, controlled(end_percent=0.5)) != expected).any()
    assert (frames(executor, base, controlled(start_percent=1.0)) == expected).all()
    moved = [frames(executor, base, controlled(motion_strength=strength)) for strength in (1.0, 0.0)]
    assert (moved[0] != moved[1]).any()


@pytest.mark.slow
def test_it_chains_with_stock_controlnets_and_itself(executor, base, files) -> None:
    """In either order the same frames, up to rounding; and each of them matters."""
    ends: dict[str, Any] = {"strength": 0.5, "start_percent": 0.0, "end_percent": 1.0}
    before = controlled(SCRIBBLE, strength=0.5)
    before["stock"] = node("ControlNetLoader", control_net_name=STOCK)
    before["first"] = node(
        "ControlNetApplyAdvanced", positive=["positive", 0], negative=["negative", 0], control_net=["stock", 0], image=["a", 0], **ends
    )  # fmt: skip
    before["control"]["inputs"] |= {"positive": ["first", 0], "negative": ["first", 1]}
    after = controlled(SCRIBBLE, strength=0.5) | {"stock": before["stock"]}
    after["last"] = node(
        "ControlNetApplyAdvanced", positive=["control", 0], negative=["control", 1], control_net=["stock", 0], image=["a", 0], **ends
    )  # fmt: skip
    after["sample"]["inputs"] |= {"positive": ["last", 0], "negative": ["last", 1]}
    two = controlled(SCRIBBLE, strength=0.5)
    rgb = controlled(RGB, strength=0.5)
    two |= {"load2": rgb["load"], "control2": rgb["control"]}
    two["control2"]["inputs"] |= {"positive": ["control", 0], "negative": ["control", 1], "control_net": ["load2", 0]}
    two["sample"]["inputs"] |= {"positive": ["control2", 0], "negative": ["control2", 1]}
    first, last, alone, both = (
        frames(executor, base, prompt).astype(int)
        for prompt in (before, after, controlled(SCRIBBLE, strength=0.5), two)
    )
    assert np.abs(first - last).max() <= 1
    assert np.abs(first - alone).mean() > 1 and np.abs(both - alone).mean() > 1


@pytest.mark.parametrize("name", WRONG)
def test_other_files_are_named_for_what_they_are(executor, base, files, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: .*{WRONG[name]}"):
        frames(executor, base, controlled(name))


def test_what_does_not_fit_is_said(executor, base, files) -> None:
    without_vae = controlled()
    del without_vae["control"]["inputs"]["vae"]
    with pytest.raises(RuntimeError, match=r"sparse-rgb.ckpt is conditioned on pictures.*found no VAE. Connect the"):
        frames(executor, base, without_vae)
    stock = controlled()
    stock["load"] = node("ControlNetLoader", control_net_name=STOCK)
    with pytest.raises(RuntimeError, match=r"expected a SparseCtrl from Load SparseCtrl, found a ControlNet. Apply"):
        frames(executor, base, stock)
    prompt = controlled()
    prompt["control"]["inputs"]["indices"] = "0, 8"
    with pytest.raises(RuntimeError, match=r"a frame of the clip .0 to 7, or -1 for the last., found 8"):
        frames(executor, base, prompt)
    prompt["control"] = node(
        "ControlNetApplyAdvanced", positive=["positive", 0], negative=["negative", 0], control_net=["load", 0], image=["a", 0],
        strength=1.0, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="is a SparseCtrl.*Apply it with DiffDirector's Apply SparseCtrl"):
        frames(executor, base, prompt)
