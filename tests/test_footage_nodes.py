"""From footage to a saved clip: the nodes in graphs that the host's executor runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from diffdirector.tests.demo.world import Scene, read_video, render, write_video
from diffdirector.tests.host.prompts import SIZE, Prompt, animation, node
from diffdirector.trainers.animation import FORMATS

SCENE = Scene("circle", "red", "white", "right")


@pytest.fixture(scope="module")
def footage(base: Path) -> Tensor:
    """input/shots/circle.mp4: 24 frames of 64x64 at 8 a second, [24, 64, 64, 3] as they were before the codec."""
    clip = render(SCENE, 24, 64)
    (base / "input" / "shots").mkdir(parents=True)
    write_video(base / "input" / "shots" / "circle.mp4", clip)
    return clip.movedim(1, -1)


class Keep:
    """What has been given to nodes of this kind, in the order of their runs."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"images": ("IMAGE",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "keep", True, "tests"
    given: list[Tensor] = []

    def keep(self, images: Tensor) -> dict:
        self.given.append(images)
        return {}


@pytest.fixture
def images(executor, monkeypatch) -> list[Tensor]:
    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "DiffDirectorTestKeep", Keep)
    Keep.given.clear()
    return Keep.given


def load(**inputs: Any) -> dict:
    chosen = {"video": "shots/circle.mp4", "frame_rate": 8.0, "start": 0.0, "frames": 8, "width": 64, "height": 64}
    return node("DiffDirectorLoadFootage", **chosen | inputs)


def save(kind: str, source: str = "decode", **inputs: Any) -> dict:
    chosen = {"filename_prefix": "clips/saved", "frame_rate": 8.0}
    return node("DiffDirectorSaveAnimation", images=[source, 0], format=kind, **chosen | inputs)


def saved(base: Path, shown: dict) -> Path:
    (file,) = shown.get("gifs") or shown["images"]
    return base / file["type"] / file["subfolder"] / file["filename"]


def encoded(prompt: Prompt, denoise: float = 0.6) -> Prompt:
    """The graph of animation() on the frames of `footage` in place of an empty latent."""
    prompt["encode"] = node("VAEEncode", pixels=["footage", 0], vae=["checkpoint", 2])
    prompt["sample"]["inputs"] |= {"latent_image": ["encode", 0], "denoise": denoise}
    del prompt["latent"]
    return prompt


@pytest.mark.slow
def test_video_to_video_in_windows(executor, base, footage) -> None:
    prompt = encoded(animation() | {"footage": load(frames=20, width=SIZE, height=SIZE)})
    prompt["windows"] = node("DiffDirectorContextWindows", model=["apply", 0], context_length=8, overlap=2)
    prompt["sample"]["inputs"]["model"] = ["windows", 0]
    prompt["save"] = save("mp4", frame_rate=["footage", 2])
    shown = executor.run(prompt)["save"]
    assert shown["animated"] == [True]
    clip = read_video(saved(base, shown))
    assert clip.shape == (20, 3, SIZE, SIZE)
    assert clip.std() > 0.02
    assert len({frame.numpy().tobytes() for frame in clip}) == 20


def test_footage_is_the_video(executor, footage, images) -> None:
    executor.run(
        {"footage": load(start=0.5, frame_rate=4.0), "kept": node("DiffDirectorTestKeep", images=["footage", 0])}
    )
    assert images[0].shape == (8, 64, 64, 3)
    error = (images[0] - footage[4:20:2]).square().mean()
    assert -10 * torch.log10(error) > 30
    assert (images[0] - footage[5:21:2]).square().mean() > 2 * error  # and no other frames


def test_a_changed_video_is_read_again_and_an_unchanged_one_is_not(executor, base, footage, images) -> None:
    path = base / "input" / "changing.mp4"
    for number, (value, reads) in enumerate([(0.2, 1), (None, 1), (0.8, 2)]):
        if value is not None:
            write_video(path, torch.full((8, 3, 64, 64), value))
        executor.run(
            {"footage": load(video="changing.mp4"), "kept": node("DiffDirectorTestKeep", images=["footage", 0])}
        )
        assert len(images) == reads, number
    assert images[0].mean() < 0.3 and images[1].mean() > 0.7


def test_names_that_lead_out_of_the_input_folder_are_refused(executor, base, footage) -> None:
    from diffdirector.nodes.footage import LoadFootage

    write_video(base / "outside.mp4", torch.zeros(8, 3, 64, 64))
    with pytest.raises(RuntimeError, match="leads out of it"):
        executor.run({"footage": load(video="../outside.mp4"), "save": save("mp4", "footage")})
    assert LoadFootage.validate_inputs("shots/circle.mp4") is True
    assert "Upload it with the node's button" in str(LoadFootage.validate_inputs("gone.mp4"))
    assert "shots/circle.mp4" in LoadFootage.GET_SCHEMA().inputs[0].options


def test_more_than_there_is_memory_for_is_refused_and_cancel_ends_the_reading(base, footage) -> None:
    from comfy import model_management

    from diffdirector.nodes.footage import LoadFootage

    with pytest.raises(ValueError, match=r"circle.mp4: 720 frames of 16384x16384 take .* GB are free. Ask for fewer"):
        LoadFootage.execute("shots/circle.mp4", 240.0, 0.0, 0, 16384, 16384)
    model_management.interrupt_current_processing()
    with pytest.raises(model_management.InterruptProcessingException):
        LoadFootage.execute("shots/circle.mp4", 8.0, 0.0, 8, 64, 64)


@pytest.mark.parametrize("kind", [*FORMATS, "png sequence"])
def test_every_format_is_saved_and_shown(executor, base, footage, kind: str) -> None:
    name = f"every-{kind.split()[0]}"
    prompt = {"footage": load(), "save": save(kind, "footage", quality=95, filename_prefix=f"clips/{name}")}
    for number in (1, 2):
        shown = executor.run(prompt)["save"]
        prompt["save"]["inputs"]["quality"] = 96  # to run again
        if kind == "png sequence":
            files = [base / file["type"] / file["subfolder"] / file["filename"] for file in shown["images"]]
            assert [path.name for path in files] == [f"{name}_{8 * number - 7 + index:05}_.png" for index in range(8)]
            clip = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in files]) / 255
            assert "animated" not in shown
        else:
            path = saved(base, shown)
            assert path.relative_to(base).as_posix() == f"output/clips/{name}_{number:05}_.{kind}"
            assert shown["animated"] == [True]
            (seen,) = shown["images"]
            assert seen["filename"].endswith("webp" if kind == "gif" else kind)  # a GIF by what the front end can play
            assert (base / seen["type"] / seen["subfolder"] / seen["filename"]).is_file()
            if kind == "webp":
                frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(path))]
                clip = torch.from_numpy(np.stack(frames)) / 255
            else:
                clip = read_video(path).movedim(1, -1)
        assert clip.shape == (8, 64, 64, 3)
        assert -10 * torch.log10((clip - footage[:8]).square().mean()) > 26
        assert (clip.flip(-1) - footage[:8]).square().mean() > 0.01
    prompts = {
        "webp": lambda: Image.open(path).getexif()[0x0110],
        "png sequence": lambda: Image.open(files[0]).info["prompt"],
    }
    if kind in prompts:
        assert json.loads(prompts[kind]().removeprefix("prompt:"))["footage"]["inputs"]["frames"] == 8


def test_sound_goes_into_videos_only(executor, base, footage) -> None:
    import av

    sound = {"sound": node("EmptyAudio", duration=3.0, sample_rate=44100, channels=2)}
    prompt = sound | {"footage": load(), "save": save("webm", "footage", audio=["sound", 0])}
    with av.open(str(saved(base, executor.run(prompt)["save"]))) as file:
        assert [stream.type for stream in file.streams] == ["video", "audio"]
    for kind in ("gif", "png sequence"):
        prompt["save"]["inputs"]["format"] = kind
        with pytest.raises(RuntimeError, match="no sound. Save as mp4 or webm, or disconnect the audio"):
            executor.run(prompt)


@pytest.mark.slow
def test_anchored_frames_are_the_pictures_that_were_given(executor, footage, images) -> None:
    """What the VAE makes of them alone, in their places; and the whole clip has changed with them."""
    prompt = animation(frames=12, size=64)
    prompt |= {
        "footage": load(frames=2, start=1.0),
        "anchors": node(
            "DiffDirectorAnchorFrames", images=["footage", 0], vae=["checkpoint", 2], indices="0, -1", strength=1.0, latent=["latent", 0],
        ),
        "alone": node("VAEEncode", pixels=["footage", 0], vae=["checkpoint", 2]),
        "seen": node("VAEDecode", samples=["alone", 0], vae=["checkpoint", 2]),
        "expected": node("DiffDirectorTestKeep", images=["seen", 0]),
        "found": node("DiffDirectorTestKeep", images=["decode", 0]),
    }  # fmt: skip
    del prompt["save"]
    executor.run(prompt)
    unanchored, pictures = sorted(images, key=len, reverse=True)
    prompt["sample"]["inputs"]["latent_image"] = ["anchors", 0]
    executor.run(prompt)
    anchored = images[-1]
    assert torch.allclose(anchored[[0, -1]], pictures, atol=1e-4)
    assert not torch.allclose(unanchored[[0, -1]], pictures, atol=0.05)
    assert (anchored - unanchored)[1:-1].abs().amax((1, 2, 3)).min() > 1e-3


def test_anchors_make_their_own_latent_and_keep_a_mask(executor, footage) -> None:
    import comfy.sd

    from diffdirector.nodes.anchors import AnchorFrames
    from diffdirector.tests.host.checkpoints import checkpoint_state

    state = {key[18:]: value for key, value in checkpoint_state().items() if key.startswith("first_stage_model.")}
    vae = comfy.sd.VAE(sd=state)
    (latent,) = AnchorFrames.execute(footage[:1], vae, "0 50%", 0.75, frames=9, reach=1).result
    assert latent["samples"].shape == (9, 4, 8, 8)
    assert torch.allclose(latent["samples"][4], vae.encode(footage[:1])[0], atol=1e-5)
    assert latent["noise_mask"][:, 0, 0, 0].tolist() == [0.25, 0.625, 1, 0.625, 0.25, 0.625, 1, 1, 1]
    spatial = torch.ones(1, 64, 64)
    spatial[:, :32] = 0
    given = {"samples": torch.ones(9, 4, 16, 8), "noise_mask": spatial, "batch_index": [1]}
    (latent,) = AnchorFrames.execute(footage[:9], vae, "-1", 1.0, latent=given).result
    assert latent["samples"].shape == (9, 4, 16, 8) and latent["batch_index"] == [1]
    assert latent["noise_mask"][3, 0, :8].max() == 0 and latent["noise_mask"][3, 0, 8:].min() == 1
    assert latent["noise_mask"][8].max() == 0
    assert given["samples"].min() == 1 and given["noise_mask"] is spatial
    with pytest.raises(ValueError, match="expected one latent for each frame, .* found \\[1, 4, 2, 8, 8\\]"):
        AnchorFrames.execute(footage[:1], vae, "0", 1.0, latent={"samples": torch.zeros(1, 4, 2, 8, 8)})


@pytest.mark.slow
def test_a_grid_of_seeds_and_cfgs(executor, footage, images) -> None:
    prompt = animation(frames=8)
    prompt |= {
        "seeds": node("DiffDirectorListFromText", text="1\n\n 2 \n3", times=2),
        "cfgs": node("DiffDirectorListFromText", text="1\n7.5", each=3),
        "grid": node("DiffDirectorClipGrid", images=["decode", 0], columns=0, row_labels="cfg 1\ncfg 7.5\n", column_labels=["names", 0]),
        "names": node("DiffDirectorListFromText", text="seed 1\nseed 2\nseed 3"),
        "found": node("DiffDirectorTestKeep", images=["grid", 0]),
        "each": node("DiffDirectorTestKeep", images=["decode", 0]),
    }  # fmt: skip
    del prompt["save"]
    prompt["sample"]["inputs"] |= {"seed": ["seeds", 1], "cfg": ["cfgs", 2]}
    executor.run(prompt)
    clips, (grid,) = (
        [clip for clip in images if clip.shape[1] == SIZE],
        [clip for clip in images if clip.shape[1] > SIZE],
    )
    assert len(clips) == 6
    assert all((clips[i] != clips[j]).any() for i in range(6) for j in range(i))
    step = SIZE + 4
    top, left = grid.shape[1] - 4 - 2 * step, grid.shape[2] - 4 - 3 * step
    for number, clip in enumerate(clips):
        y, x = top + 4 + number // 3 * step, left + 4 + number % 3 * step
        assert torch.equal(grid[:, y : y + SIZE, x : x + SIZE], clip)


def test_a_line_that_is_no_number_stops_only_who_needs_one(executor, footage, images, monkeypatch) -> None:
    prompt: Prompt = {
        "list": node("DiffDirectorListFromText", text="8\nsixteen"),
        "footage": load(),
        "grid": node("DiffDirectorClipGrid", images=["footage", 0], columns=1, row_labels="", column_labels="a"),
        "kept": node("DiffDirectorTestKeep", images=["grid", 0]),
    }
    prompt["grid"]["inputs"]["row_labels"] = ["list", 0]
    with pytest.raises(
        RuntimeError, match="row_labels: 1 clips in 1 columns have 1 rows, expected 1 labels, .* found 2"
    ):
        executor.run(prompt)
    prompt["grid"]["inputs"] |= {"row_labels": "", "columns": ["list", 1]}
    said: list[Any] = []
    monkeypatch.setattr(executor.server, "send_sync", lambda *message: said.append(message))
    executor.run(prompt)
    (error,) = [data["exception_message"] for event, data, *_ in said if event == "execution_error"]
    assert "List from Text: expected a whole number in each line, found 'sixteen'" in error
    assert images == []
    prompt["list"]["inputs"]["text"] = " \n"
    with pytest.raises(RuntimeError, match="expected a line for each entry of the list, found nothing"):
        executor.run(prompt)


def test_loops(executor, footage, images) -> None:
    for method, length in (("crossfade", 20), ("ping-pong", 46)):
        prompt = {
            "footage": load(frames=0),
            "loop": node("DiffDirectorLoopClip", images=["footage", 0], method=method, frames=4),
            "kept": node("DiffDirectorTestKeep", images=["loop", 0]),
        }
        executor.run(prompt)
        assert len(images[-1]) == length
