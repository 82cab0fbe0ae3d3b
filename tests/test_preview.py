"""The clips that a sampler's node shows while it samples: their frames, their moments, and what reaches the page of them."""

from __future__ import annotations

import io
import json
import struct
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import comfy.samplers
import latent_preview
import numpy as np
import pytest
import torch
import websocket
from comfy.cli_args import LatentPreviewMethod, args
from comfy.taesd.taesd import TAESD
from PIL import Image, ImageSequence
from safetensors.torch import save_file
from torch import Tensor

from diffdirector.motion.module import motion_model_from_state
from diffdirector.motion.splice import apply_motion_model
from diffdirector.nodes.preview import MOST_FRAMES, SIDE, MovingPreview, drawer, preview_moving
from diffdirector.tests.host.checkpoints import link_models, tiny_motion_config
from diffdirector.tests.host.evaluate import TOKENS, randn
from diffdirector.tests.host.prompts import animation, stills
from diffdirector.tests.host.provision import NEWEST, provision
from diffdirector.tests.host.server import Server
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state

FRAMES = 9


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def grey(latent: Tensor) -> Image.Image:
    """A frame whose latents are all the same is a picture that is all the same."""
    return Image.new("RGB", (8, 8), (int(latent.mean()),) * 3)


def greys(count: int) -> Tensor:
    return torch.arange(0.0, 10 * count, 10)[:, None, None, None].expand(count, 4, 8, 8)


def frames_of(webp: bytes) -> list[np.ndarray]:
    """[height, width, 3] each, in 0..255."""
    return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(webp)))]


def levels(webp: bytes) -> list[int]:
    """Which of greys() each frame is."""
    return [round(frame.mean() / 10) for frame in frames_of(webp)]


def durations(webp: bytes) -> list[int]:
    return [frame.info["duration"] for frame in ImageSequence.Iterator(Image.open(io.BytesIO(webp))) if frame.load()]


@pytest.fixture(scope="module")
def animated():
    model = load_unet(unet_state(unet_config("sd15", **TINY)))
    return apply_motion_model(model, motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2"))


@pytest.fixture
def method(monkeypatch):
    """Choose the host's preview method."""

    def choose(name: LatentPreviewMethod) -> None:
        monkeypatch.setattr(args, "preview_method", name)

    return choose


def sample(model: Any, callback: Any, steps: int = 3) -> Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[randn(1, TOKENS, 768, seed=1), {}]], [[randn(1, TOKENS, 768, seed=2), {}]])
    noise, sigmas = randn(FRAMES, 4, 4, 6), torch.linspace(3.0, 0.0, steps + 1)
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, callback=callback, disable_pbar=True, seed=5)


def test_a_sampling_is_previewed_with_all_of_its_frames(animated, method) -> None:
    method(LatentPreviewMethod.Latent2RGB)
    previewer = latent_preview.get_previewer(animated.load_device, animated.model.latent_format)
    clock, sent, clips = Clock(), list[bytes](), list[Tensor]()
    preview = MovingPreview(drawer(previewer), sent.append, clock)

    def callback(step: int, clip: Tensor, x: Tensor, steps: int) -> None:
        clips.append(clip.clone())
        preview.step(clip, step + 1 >= steps)
        clock.now += FRAMES / 8  # the clip's length: each preview starts with its first frame

    sample(animated, callback)
    assert len(sent) == len(clips) == 3
    for webp, clip in zip(sent, clips, strict=True):
        shown = frames_of(webp)
        expected = [previewer.decode_latent_to_preview(frame[None]) for frame in clip]
        assert len(shown) == FRAMES and shown[0].shape == (171, 256, 3)
        assert durations(webp) == [125] * FRAMES and Image.open(io.BytesIO(webp)).info["loop"] == 0
        for frame, picture in zip(shown, expected, strict=True):
            exact = np.asarray(picture.resize((256, 171), Image.Resampling.BICUBIC)).astype(int)
            assert np.abs(frame - exact).mean() < 8
        assert np.abs(np.diff(np.stack(shown).astype(int), axis=0)).mean(axis=(1, 2, 3)).min() > 1
    assert sent[0] != sent[1]


def test_long_clips_are_thinned_out_evenly_and_keep_their_length() -> None:
    sent: list[bytes] = []
    MovingPreview(grey, sent.append, Clock()).step(greys(24), last=False)
    (webp,) = sent
    assert levels(webp) == [number * 24 // MOST_FRAMES for number in range(MOST_FRAMES)]
    assert sum(durations(webp)) == pytest.approx(24 / 8 * 1000, abs=MOST_FRAMES)


def test_each_preview_goes_on_where_the_one_before_is() -> None:
    clock, sent = Clock(), list[bytes]()
    preview = MovingPreview(grey, sent.append, clock)
    for _ in range(3):
        preview.step(greys(8), last=False)
        clock.now += 0.5
    assert [levels(webp)[0] for webp in sent] == [0, 4, 0]
    assert levels(sent[1]) == [4, 5, 6, 7, 0, 1, 2, 3]


def test_previews_come_three_times_a_second_and_at_the_last_step() -> None:
    clock, sent = Clock(), list[bytes]()
    preview = MovingPreview(grey, sent.append, clock)
    for step in range(1, 101):
        clock.now += 0.01
        preview.step(greys(8), step == 100)
    assert len(sent) == 4  # in 0.99 seconds, and the last


def test_previews_that_take_long_take_a_tenth_of_the_time_at_most() -> None:
    clock, drawn, sent = Clock(), 0.0, list[bytes]()

    def slow(latent: Tensor) -> Image.Image:
        nonlocal drawn
        clock.now, drawn = clock.now + 0.125, drawn + 0.125
        return grey(latent)

    preview = MovingPreview(slow, sent.append, clock)
    for _ in range(1000):
        clock.now += 0.25
        preview.step(greys(8), last=False)
    assert len(sent) > 20 and drawn / (clock.now - 100) < 0.105


def test_a_decoder_gets_every_frame_and_large_ones_smaller(animated, method, base) -> None:
    folder = base / "models" / "vae_approx"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(TAESD().taesd_decoder.state_dict(), folder / "taesd_decoder.safetensors")
    method(LatentPreviewMethod.TAESD)
    previewer = latent_preview.get_previewer(animated.load_device, animated.model.latent_format)
    assert isinstance(previewer, latent_preview.TAESDPreviewerImpl)
    small, large = randn(1, 4, 8, 16), randn(1, 4, 64, 128)
    assert drawer(previewer)(small).tobytes() == previewer.decode_latent_to_preview(small).tobytes()
    assert drawer(previewer)(large).size == (SIDE, SIDE // 2)


def test_no_previews_when_the_user_wants_none(animated, method) -> None:
    method(LatentPreviewMethod.NoPreviews)
    assert drawer(latent_preview.get_previewer(animated.load_device, animated.model.latent_format)) is None


@pytest.mark.slow
def test_without_a_page_the_sampling_is_the_same(animated, method) -> None:
    method(LatentPreviewMethod.Latent2RGB)
    plain, steps = sample(animated, None), list[int]()
    model = animated.clone()
    preview_moving(model)
    preview_moving(model)  # a second motion model
    found = sample(model, lambda step, clip, x, total: steps.append(step))
    assert torch.equal(found, plain) and steps == [0, 1, 2]
    assert torch.equal(sample(model, None), plain)


class Page:
    """What the front end does: says what it understands, queues, and takes every message until the end."""

    def __init__(self, server: Server, understands: bool = True) -> None:
        self.server, self.client = server, uuid.uuid4().hex
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{server.port}/ws?clientId={self.client}", timeout=120
        )
        features = {"supports_preview_metadata": understands}
        self.socket.send(json.dumps({"type": "feature_flags", "data": features}))

    def run(self, prompt: dict, preview_method: str = "default") -> tuple[list[tuple[dict, bytes]], list[dict]]:
        """The previews, each with its description where it has one, and the states of progress."""
        body = {"prompt": prompt, "client_id": self.client, "extra_data": {"preview_method": preview_method}}
        request = urllib.request.Request(
            f"{self.server.url}/prompt", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).close()
        previews, progress = [], []
        while True:
            message = self.socket.recv()
            if isinstance(message, bytes):
                (kind,) = struct.unpack(">I", message[:4])
                if kind == 4:
                    (length,) = struct.unpack(">I", message[4:8])
                    previews.append((json.loads(message[8 : 8 + length]), message[8 + length :]))
                elif kind == 1:
                    previews.append(({}, message[8:]))
                continue
            event = json.loads(message)
            assert event["type"] not in ("execution_error", "execution_interrupted"), event
            if event["type"] == "progress_state" and "sample" in event["data"]["nodes"]:
                progress.append(event["data"]["nodes"]["sample"])
            if event["type"] == "execution_success":
                return previews, progress


@pytest.fixture(scope="module")
def server(host_version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp(f"preview-{host_version}")
    link_models(base)
    host = provision(NEWEST if host_version == "own" else host_version)
    with Server(host, base, "--cpu", "--preview-method", "latent2rgb") as running:
        yield running


@pytest.mark.slow
def test_what_reaches_the_page(server: Server) -> None:
    previews, progress = Page(server).run(animation(frames=10, steps=4))
    assert 2 <= len(previews) <= 4  # no still comes between
    for described, webp in previews:
        assert described["image_type"] == "image/webp"
        assert [described[f"{name}node_id"] for name in ("", "display_", "real_")] == ["sample"] * 3
        assert len(frames_of(webp)) == 10 and len(webp) < 200_000
    assert [state["value"] for state in progress if state["max"] == 4][-1] == 4
    assert {1, 2, 3, 4} <= {state["value"] for state in progress}

    assert Page(server).run(animation(frames=10, steps=2, strength=0.5), "none")[0] == []


@pytest.mark.slow
def test_the_hosts_stills_stay_where_nothing_moves(server: Server) -> None:
    """For a checkpoint without motion, and for pages that know no descriptions of previews."""
    previews, _ = Page(server).run(stills(frames=2, steps=2))
    assert [described["image_type"] for described, _ in previews] == ["image/jpeg"] * 2
    previews, _ = Page(server, understands=False).run(animation(frames=8, steps=2, strength=0.6))
    assert [len(frames_of(picture)) for _, picture in previews] == [1, 1]
