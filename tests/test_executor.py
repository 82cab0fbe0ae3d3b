"""Graphs run by the host's own executor, in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffdirector.tests.demo.world import write_dataset
from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import CHECKPOINT, checkpoint_state, tiny_motion_config
from diffdirector.tests.host.prompts import SIZE, animation, node, stills
from diffdirector.tests.host.weights import TINY, motion_state, unet_config, unet_state


def frames(executor, base: Path, prompt: dict) -> np.ndarray:
    """Pixels of every saved frame: [frames, h, w, 3]."""
    saved = executor.run(prompt)["save"]["images"]
    return np.stack([np.asarray(Image.open(base / "output" / file["subfolder"] / file["filename"])) for file in saved])


@pytest.fixture(scope="module")
def files(base: Path) -> dict[str, str]:
    """A MotionLoRA and a domain adapter for the small models, and a few files in the wrong folder."""
    folder = {name: base / "models" / name for name in ("animatediff_models", "animatediff_motion_lora", "loras")}
    for path in folder.values():
        path.mkdir(parents=True, exist_ok=True)
    motion, config = motion_state(tiny_motion_config()), unet_config("sd15", **TINY)
    camera = loras.in_original_naming(loras.motion_lora(motion, rank=4, seed=3))
    adapter = loras.in_original_naming(loras.spatial_lora(config, unet_state(config), rank=4, seed=5))
    torch.save({"state_dict": camera}, folder["animatediff_motion_lora"] / "zoom.ckpt")
    torch.save(adapter, folder["loras"] / "adapter.ckpt")
    save_file(camera, folder["animatediff_models"] / "wrong-motion-lora.safetensors")
    save_file(adapter, folder["animatediff_models"] / "wrong-adapter.safetensors")
    save_file(adapter, folder["animatediff_motion_lora"] / "wrong-adapter.safetensors")
    save_file(motion, folder["loras"] / "wrong-motion.safetensors")
    (folder["animatediff_models"] / "empty.ckpt").touch()
    (folder["animatediff_models"] / "wrong-checkpoint.safetensors").symlink_to(base / "models/checkpoints" / CHECKPOINT)
    return {name: str(path) for name, path in folder.items()}


@pytest.mark.slow
def test_animation_differs_from_stills_and_leaves_them_as_they_were(executor, base) -> None:
    before = frames(executor, base, stills())
    animated = frames(executor, base, animation())
    after = frames(
        executor, base, stills() | {"fresh": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)}
    )
    assert before.shape == animated.shape == (8, SIZE, SIZE, 3)
    assert np.abs(animated.astype(int) - before).mean() > 5
    assert (before == after).all()
    assert len({frame.tobytes() for frame in animated}) == 8


@pytest.mark.slow
def test_v1_v2_and_chained_models_differ(executor, base, files) -> None:
    state = {
        key: value
        for key, value in motion_state(tiny_motion_config(), seed=4).items()
        if not key.startswith("mid_block")
    }
    v1 = {key: value[:, :24].contiguous() if key.endswith(".pe") else value for key, value in state.items()}
    save_file(v1, f"{files['animatediff_models']}/v1.safetensors")
    chained = animation()
    chained["motion2"] = node("DiffDirectorLoadMotionModel", motion_model_name="v1.safetensors")
    chained["apply2"] = node(
        "DiffDirectorApplyMotionModel", model=["apply", 0], motion_model=["motion2", 0], strength=0.5, end_percent=0.5
    )
    chained["sample"]["inputs"]["model"] = ["apply2", 0]
    results = [frames(executor, base, p) for p in (animation(), animation(motion_model="v1.safetensors"), chained)]
    assert all((results[i] != results[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.slow
def test_motion_lora_and_domain_adapter(executor, base, files) -> None:
    plain = frames(executor, base, animation())
    prompt = animation(motion_lora=["second", 0])
    prompt["first"] = node("DiffDirectorMotionLora", lora_name="zoom.ckpt", strength=1.0)
    prompt["second"] = node("DiffDirectorMotionLora", lora_name="zoom.ckpt", strength=-1.0, motion_lora=["first", 0])
    cancelled = frames(executor, base, prompt)
    assert np.abs(cancelled.astype(int) - plain).max() <= 1
    prompt["second"]["inputs"]["strength"] = 0.5
    moved = frames(executor, base, prompt)
    assert np.abs(moved.astype(int) - plain).max() > 10

    prompt["adapter"] = node(
        "DiffDirectorDomainAdapter", model=["checkpoint", 0], adapter_name="adapter.ckpt", strength=0.0
    )
    prompt["apply"]["inputs"]["model"] = ["adapter", 0]
    assert (frames(executor, base, prompt) == moved).all()
    prompt["adapter"]["inputs"]["strength"] = 0.8
    adapted = frames(executor, base, prompt)
    assert (adapted != moved).any()

    after = animation(motion_lora=["second", 0]) | {key: prompt[key] for key in ("first", "second", "adapter")}
    after["adapter"]["inputs"]["model"] = ["apply", 0]
    after["sample"]["inputs"]["model"] = ["adapter", 0]
    assert (frames(executor, base, after) == adapted).all()


@pytest.mark.slow
def test_every_sampler_node(executor, base) -> None:
    """KSamplerAdvanced and SamplerCustomAdvanced with the settings of KSampler give KSampler's frames."""
    expected = frames(executor, base, animation())
    advanced = animation()
    inputs = advanced["sample"]["inputs"]
    ends = {"add_noise": "enable", "noise_seed": inputs["seed"], "start_at_step": 0, "end_at_step": 10000}
    kept = {key: value for key, value in inputs.items() if key not in ("seed", "denoise")}
    advanced["sample"] = node("KSamplerAdvanced", **kept, **ends, return_with_leftover_noise="disable")
    assert (frames(executor, base, advanced) == expected).all()

    custom = animation()
    custom |= {
        "noise": node("RandomNoise", noise_seed=1),
        "guider": node("CFGGuider", model=["apply", 0], positive=["positive", 0], negative=["negative", 0], cfg=4.0),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["apply", 0], scheduler="normal", steps=2, denoise=1.0),
        "sample": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["sampler", 0], sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        ),
    }  # fmt: skip
    assert (frames(executor, base, custom) == expected).all()


@pytest.mark.slow
def test_stock_save_checkpoint_writes_no_motion_weights(executor, base) -> None:
    prompt = animation()
    prompt["save"] = node(
        "CheckpointSave", model=["apply", 0], clip=["checkpoint", 1], vae=["checkpoint", 2], filename_prefix="saved"
    )
    executor.run(prompt)
    saved = load_file(base / "output" / "saved_00001_.safetensors")
    original = checkpoint_state()
    unet = {key for key in original if key.startswith("model.diffusion_model.")}
    assert {key for key in saved if key.startswith("model.diffusion_model.")} == unet
    assert not [key for key in saved if "motion" in key or "temporal" in key]
    assert all(torch.equal(saved[key].half(), original[key]) for key in unet)


def motion(name: str) -> dict:
    return {"motion": node("DiffDirectorLoadMotionModel", motion_model_name=name)}


def lora(name: str) -> dict:
    return {"lora": node("DiffDirectorMotionLora", lora_name=name, strength=1.0)}


def adapter(name: str) -> dict:
    return {"adapter": node("DiffDirectorDomainAdapter", model=["checkpoint", 0], adapter_name=name, strength=1.0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (motion("wrong-motion-lora.safetensors"), "this is a MotionLoRA.*Motion LoRA"),
        (motion("wrong-adapter.safetensors"), "domain adapter.*Domain Adapter"),
        (motion("wrong-checkpoint.safetensors"), "image checkpoint.*models/checkpoints"),
        (motion("empty.ckpt"), "empty.ckpt: This file cannot be read"),
        (motion("../../secrets.ckpt"), "is not in the folder models/animatediff_models"),
        (lora("wrong-adapter.safetensors"), "Expected a MotionLoRA, but this is a LoRA for the image"),
        (adapter("wrong-motion.safetensors"), "this is a motion model.*Load Motion Model"),
    ],
)
def test_wrong_files_are_named_for_what_they_are(executor, files, change, message) -> None:
    prompt = animation() | change
    if "lora" in change:
        prompt["apply"]["inputs"]["motion_lora"] = ["lora", 0]
    if "adapter" in change:
        prompt["apply"]["inputs"]["model"] = ["adapter", 0]
    with pytest.raises(RuntimeError, match=message):
        executor.run(prompt)


def test_clip_longer_than_the_encoding_is_refused_with_what_to_do(executor) -> None:
    with pytest.raises(RuntimeError, match="at most 32 frames at a time, the batch has 33"):
        executor.run(animation(frames=33))


@pytest.mark.slow
def test_clip_longer_than_the_encoding_runs_in_the_hosts_context_windows(executor, base) -> None:
    prompt = animation(frames=40, steps=1)
    prompt["windows"] = node(
        "ContextWindowsManual", model=["apply", 0], context_length=16, context_overlap=4, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="pyramid", dim=0, freenoise=False, causal_window_fix=False,
    )  # fmt: skip
    prompt["sample"]["inputs"]["model"] = ["windows", 0]
    assert frames(executor, base, prompt).shape[0] == 40
    prompt["windows"]["inputs"] |= {"context_length": 32, "causal_window_fix": True}
    with pytest.raises(RuntimeError, match="context window with causal_window_fix has 33"):
        executor.run(prompt)


@pytest.mark.slow
def test_context_windows_and_the_picture_of_their_plan(executor, base) -> None:
    prompt = animation(frames=40, steps=2)
    prompt["windows"] = node(
        "DiffDirectorContextWindows", model=["apply", 0], context_length=16, overlap=4, schedule="looped_uniform", closed_loop=True,
        freenoise=True, plan_frames=40,
    )  # fmt: skip
    prompt["sample"]["inputs"]["model"] = ["windows", 0]
    prompt["plan"] = node("SaveImage", images=["windows", 1], filename_prefix="plan")
    assert frames(executor, base, prompt).shape[0] == 40
    drawn = np.asarray(Image.open(next((base / "output").glob("plan*.png")))).astype(int)
    assert drawn.shape == (4 * 4 * 10 + 3 * 8, 40 * 12, 3)  # 4 windows in each of 4 steps
    assert drawn[4, 6, 2] > drawn[4, 30 * 12 + 6, 2] + 50  # the first window has frame 0, not frame 30
    prompt["windows"]["inputs"]["overlap"] = 16
    with pytest.raises(RuntimeError, match=r"overlap: expected less than context_length \(16\), found 16"):
        executor.run(prompt)


@pytest.mark.slow
def test_training_motion_director_and_using_it_in_the_same_graph(executor, base) -> None:
    write_dataset(base / "input" / "filmed", seed=4, n=1, frames=8)
    plain = frames(executor, base, animation(steps=1))
    prompt = animation(steps=1, motion_lora=["train", 0])
    prompt["clips"] = node("DiffDirectorVideoDataset", source="filmed", frames=8, width=64, height=64)
    prompt["train"] = node(
        "DiffDirectorTrainMotionDirector", model=["checkpoint", 0], clip=["checkpoint", 1], vae=["checkpoint", 2],
        motion_model=["motion", 0], dataset=["clips", 0], name="filmed", steps=3, rank=4, learning_rate=1e-2, save_every=1,
    )  # fmt: skip
    prompt["looks"] = node(
        "LoraModelLoader", model=["checkpoint", 0], lora=["train", 1], strength_model=1.0, bypass=False
    )
    prompt["chart"] = node("LossGraphNode", loss=["train", 2], filename_prefix="loss")
    prompt["apply"]["inputs"]["model"] = ["looks", 0]
    trained = frames(executor, base, prompt)
    assert np.abs(trained.astype(int) - plain).mean() > 0.5
    again = animation(steps=1, motion_lora=["lora", 0])
    again["lora"] = node("DiffDirectorMotionLora", lora_name="filmed.safetensors", strength=1.0)
    again["looks"] = node(
        "LoraLoaderModelOnly", model=["checkpoint", 0], lora_name="filmed-spatial.safetensors", strength_model=1.0
    )
    again["apply"]["inputs"]["model"] = ["looks", 0]
    assert np.abs(frames(executor, base, again).astype(int) - trained).max() <= 1


@pytest.mark.slow
def test_training_a_motion_module_from_videos(executor, base) -> None:
    """mp4 files -> dataset -> two steps -> a motion model that animates, and its file in the folder."""
    write_dataset(base / "input" / "clips", seed=3, n=3, frames=8)
    prompt = animation(steps=1)
    prompt["clips"] = node("DiffDirectorVideoDataset", source="clips", frames=8, width=64, height=64)
    prompt["train"] = node(
        "DiffDirectorTrainMotionModule", model=["checkpoint", 0], clip=["checkpoint", 1], vae=["checkpoint", 2],
        dataset=["clips", 0], name="trained", steps=2, learning_rate=1e-3,
    )  # fmt: skip
    prompt["apply"]["inputs"]["motion_model"] = ["train", 0]
    cache = base / "user" / "diffdirector" / "latents"
    cached = set(cache.glob("*"))
    trained = frames(executor, base, prompt)
    assert trained.shape == (8, SIZE, SIZE, 3)
    assert (base / "models" / "animatediff_models" / "trained.safetensors").exists()
    assert len(set(cache.glob("*.safetensors")) - cached) == 3
    prompt["clips"]["inputs"]["source"] = "../models"
    with pytest.raises(RuntimeError, match="which leads out of it"):
        executor.run(prompt)


def captioned(**changes) -> dict:
    """Video Dataset on a folder of two videos, its captions from a list that a core node makes."""
    return {
        "first": node("PrimitiveString", value="a dog"),
        "second": node("PrimitiveStringMultiline", value="a cat\nthat sleeps"),
        "list": node("CreateList", **{"inputs.input0": ["first", 0], "inputs.input1": ["second", 0]}),
        "clips": node(
            "DiffDirectorVideoDataset",
            **({"source": "two", "frames": 4, "width": 64, "height": 64, "captions": ["list", 0]} | changes),
        ),
    }


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the Video Dataset nodes give, one after the other."""
    import nodes

    given: list[tuple] = []
    node_class = nodes.NODE_CLASS_MAPPINGS["DiffDirectorVideoDataset"]
    execute = node_class.execute.__func__

    def remembered(cls, **inputs):
        output = execute(cls, **inputs)
        given.append(output.args)
        return output

    monkeypatch.setattr(node_class, "execute", classmethod(remembered))
    return given


def test_a_list_of_captions_is_for_the_videos_of_one_dataset(executor, base, datasets) -> None:
    write_dataset(base / "input" / "two", seed=5, n=2, frames=8)
    shown = executor.run(captioned())["clips"]["images"]
    ((clips, sheet),) = datasets
    assert [clip.caption for clip in clips] == ["a dog", "a cat\nthat sleeps"]
    assert sheet.shape == (1, 2 * 96 + 2, 4 * 96 + 3 * 2, 3)
    saved = np.asarray(Image.open(base / "temp" / shown[0]["filename"]))
    assert np.abs(saved / 255 - sheet[0].numpy()).max() < 0.01

    executor.run(captioned(captions="a dog\na cat", caption="unused"))
    assert [clip.caption for clip in datasets[-1][0]] == ["a dog", "a cat"]
    (base / "input" / "captions.txt").write_text("one\ntwo\nthree\nfour\n")
    chained = captioned(caption_file="captions.txt", chunks=0, hflip=True, repeats=2, chain=["more", 0])
    chained["more"] = captioned(source="two/0000.mp4", start=2, aspect_buckets=True)["clips"]
    for name in ("clips", "more"):
        del chained[name]["inputs"]["captions"]
    executor.run(chained)
    more, *clips = datasets[-1][0]
    assert (more.start, more.aspect_buckets) == (2, True)
    assert [clip.caption for clip in clips[:8:2]] == ["one", "two", "three", "four"]
    assert clips[:8] == clips[8:]


def test_frames_of_the_graph_are_a_dataset(executor, base, datasets) -> None:
    """Two batches of frames, as a list: two videos. The file that source names is not looked for."""
    prompt = {
        "white": node("EmptyImage", width=64, height=64, batch_size=8, color=0xFFFFFF),
        "red": node("EmptyImage", width=32, height=32, batch_size=4, color=0xFF0000),
        "list": node("CreateList", **{"inputs.input0": ["white", 0], "inputs.input1": ["red", 0]}),
        "clips": node(
            "DiffDirectorVideoDataset", source="not there", images=["list", 0], caption="plain", frames=4, chunks=0, width=64, height=64,
        ),
    }  # fmt: skip
    executor.run(prompt)
    clips = datasets[-1][0]
    assert [clip.start for clip in clips] == [0, 4, 0]
    assert clips[2].read().mean((0, 2, 3)).tolist() == [1, 0, 0]
    prompt["clips"]["inputs"]["caption"] = ["texts", 0]
    prompt["texts"] = node("CreateList", **{"inputs.input0": ["a", 0], "inputs.input1": ["a", 0]})
    prompt["a"] = node("PrimitiveString", value="a")
    with pytest.raises(
        RuntimeError, match="caption: expected one value, found a list of 2. Lists go into captions and images"
    ):
        executor.run(prompt)


def test_a_changed_folder_is_noticed_and_an_unchanged_one_is_not_read_again(executor, base, datasets) -> None:
    write_dataset(base / "input" / "watched", seed=6, n=1, frames=8)
    for change, count in (
        (lambda: None, 1),
        (lambda: None, 1),
        (lambda: (base / "input" / "watched" / "0000.txt").write_text("another caption"), 2),
        (lambda: write_dataset(base / "input" / "watched", seed=8, n=2, frames=8), 3),
        (lambda: (base / "input" / "watched" / "0001.mp4").unlink(), 4),
    ):
        change()
        executor.run({"clips": node("DiffDirectorVideoDataset", source="watched", frames=4)})
        assert len(datasets) == count


def test_videos_that_cannot_be_used_stop_the_graph_before_a_model_is_loaded(executor, base, monkeypatch) -> None:
    import nodes

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(nodes.CheckpointLoaderSimple, "load_checkpoint", load)
    (base / "input" / "bad").mkdir(parents=True)
    (base / "input" / "bad" / "noise.mp4").write_bytes(b"not a video")
    prompt = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "clips": node("DiffDirectorVideoDataset", source="bad"),
        "train": node(
            "DiffDirectorTrainMotionModule", model=["checkpoint", 0], clip=["checkpoint", 1], vae=["checkpoint", 2],
            dataset=["clips", 0], name="never", steps=1,
        ),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="None of the videos can be used:\nnoise.mp4 cannot be decoded"):
        executor.run(prompt)
    prompt["clips"]["inputs"]["source"] = "noise.mp4"
    with pytest.raises(RuntimeError, match="found nothing of that name. Videos in "):
        executor.run(prompt)
