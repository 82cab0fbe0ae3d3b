"""SparseCtrl: its encoder against diffusers', its control through the host's sampling, its files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import comfy.context_windows
import comfy.model_management
import comfy.samplers
import comfy.sd
import numpy as np
import pytest
import torch
from comfy.model_management import load_models_gpu
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from diffdirector.motion.context import apply_context_windows
from diffdirector.motion.module import host_kernel, motion_model_from_state
from diffdirector.motion.sparse_formats import SparseKind, read_sparse_ctrl
from diffdirector.motion.sparsectrl import SparseControl, load_sparse_ctrl, sparse_ctrl_from_state
from diffdirector.motion.splice import apply_motion_model
from diffdirector.motion.windows import Windows, plan
from diffdirector.tests.host.checkpoints import checkpoint_state, tiny_motion_config
from diffdirector.tests.host.evaluate import TOKENS, randn, relative_error
from diffdirector.tests.host.sparse import SD15_CHANNELS, TINY_CHANNELS, in_original_naming, sparse_oracle, sparse_state
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state
from diffdirector.tests.motion.test_context import (
    FRAMES,
    NOISE,
    NOTHING,
    TEXT,
    WINDOWS,
    by_hand,
    control_net,
    controlled,
    sample,
)

KINDS = list(SparseKind)
SIDE = 8 * NOISE.shape[-1]


def pictures(count: int, side: int = SIDE) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(8))


def encoded(control: SparseControl, conditions: Tensor, shown: list[int], context: Tensor, frames: int) -> list[Tensor]:
    """Skips and the middle at timestep 500, of shown [clips * frames]."""
    load_models_gpu([control.patcher])
    times = torch.full((len(shown),), 500.0)
    strengths = torch.ones(len(conditions))
    found = control.patcher.model.encode(conditions, strengths, shown, times, context, frames, host_kernel(), 1.0)
    return [*found["output"], *found["middle"]]


SIZES = [
    pytest.param(TINY_CHANNELS, id="tiny"),
    pytest.param(SD15_CHANNELS, id="full size", marks=[pytest.mark.slow, pytest.mark.full_size]),
]


@pytest.mark.slow
@pytest.mark.parametrize("channels", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_agrees_with_diffusers(kind: SparseKind, channels: tuple[int, ...]) -> None:
    """Of two clips, with conditions at their first and their fourth frame; the noisy clip is not seen by either."""
    state, (clips, frames, side) = sparse_state(kind, channels), (2, 6, 8)
    shown = [0, -1, -1, 1, -1, -1]
    scale = 8 if kind is SparseKind.SCRIBBLE else 1
    conditions = randn(3, kind.channels, side * scale, side * scale)
    conditions[:2, -1], conditions[2] = 1, 0
    context = randn(clips, TOKENS, 768, seed=1).repeat_interleave(frames, 0)
    context[-1] += 1  # a prompt that travels
    found = encoded(sparse_ctrl_from_state(state, "s"), conditions, shown * clips, context, frames)

    video = conditions[shown].expand(clips, -1, -1, -1, -1).transpose(1, 2)
    skips, middle = sparse_oracle(kind, state, channels)(
        randn(clips, 4, frames, side, side, seed=9), 500, context, video[:, :-1], conditioning_mask=video[:, -1:], return_dict=False
    )  # fmt: skip
    for part, expected in zip(found, (*skips, middle), strict=True):
        assert relative_error(part, expected) < 1e-5
    moved = encoded(sparse_ctrl_from_state(state, "s"), conditions, [-1, *shown[:-1]] * clips, context, frames)
    assert relative_error(moved[-1], middle) > 1e-3  # the check can fail


@pytest.mark.parametrize("kind", KINDS)
def test_every_dialect_is_read(kind: SparseKind, tmp_path: Path) -> None:
    state = sparse_state(kind)
    original = in_original_naming(state)
    assert original.keys() != state.keys()
    config, expected = read_sparse_ctrl(state)
    assert config.kind is kind and config.motion.max_frames == 32
    without_positions = {key: value for key, value in original.items() if "pos_encoder" not in key}
    assert len(without_positions) == len(original) - 2
    for other in (
        original,
        {"epoch": 1, "controlnet": {f"module.{key}": value for key, value in original.items()}},
        without_positions,
    ):
        found_config, found = read_sparse_ctrl(other)
        assert found_config.motion.sites == config.motion.sites and found_config.motion.max_frames == 32
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    torch.save({"controlnet": original, "animatediff_config": "v3"}, tmp_path / "x.ckpt")
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "x.safetensors")
    for name in ("x.ckpt", "x.safetensors"):
        held = load_sparse_ctrl(str(tmp_path / name)).patcher.model.state_dict()
        assert relative_error(held["motion.down_blocks.1.motion_modules.0.temporal_transformer.proj_in.weight"],
                              expected["motion.down_blocks.1.motion_modules.0.temporal_transformer.proj_in.weight"]) < 1e-3  # fmt: skip


@pytest.fixture(scope="module")
def animated():
    model = load_unet(unet_state(unet_config("sd15", **TINY)))
    return apply_motion_model(model, motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2"))


@pytest.fixture(scope="module")
def vae():
    state = {key[18:]: value for key, value in checkpoint_state().items() if key.startswith("first_stage_model.")}
    return comfy.sd.VAE(sd=state)


@pytest.fixture(scope="module")
def controls(vae) -> dict[SparseKind, SparseControl]:
    return {kind: sparse_ctrl_from_state(sparse_state(kind), kind.name) for kind in KINDS}


def through(control: Any, model: Any, noise: Tensor = NOISE) -> Tensor:
    return sample(model, noise, **controlled(control))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_reaches_the_unet_as_diffusers_adds_it(animated, controls, vae, kind: SparseKind) -> None:
    """What one step gets, against the oracle's, at the host's own timestep; rgb pictures are encoded and scaled as the original's."""
    control = controls[kind].conditioned(pictures(2), "0, -2", vae=vae, strength=0.7)
    seen: list[Any] = []
    unet = animated.model.diffusion_model
    hook = unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, kwargs["context"], copy.deepcopy(kwargs["control"]))),
        with_kwargs=True,
    )
    through(control, animated)
    hook.remove()
    x, timesteps, context, added = seen[0]
    latents = 0.18215 * vae.encode(pictures(2).movedim(1, -1)) if kind is SparseKind.RGB else pictures(2)
    cond = latents.new_zeros(FRAMES, *latents.shape[1:])
    cond[[0, -2]], mask = latents, torch.zeros(FRAMES, 1, *latents.shape[2:])
    mask[[0, -2]] = 1
    video = torch.cat([cond, mask], 1).expand(2, -1, -1, -1, -1).transpose(1, 2)
    skips, middle = sparse_oracle(kind, sparse_state(kind))(
        torch.zeros(2, 4, FRAMES, *x.shape[2:]), timesteps[0], context, video[:, :-1], 0.7, conditioning_mask=video[:, -1:], return_dict=False
    )  # fmt: skip
    assert len(x) == 2 * FRAMES
    for part, expected in zip((*added["output"], *added["middle"]), (*skips, middle), strict=True):
        assert relative_error(part, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [1, 2])
def test_each_window_sees_the_conditions_of_its_frames(animated, controls, vae, kind: SparseKind, at_once: int) -> None:
    """And one that has none is left as it is, also where another window of the same batch has some."""
    windows, places = Windows(4, 1), [0, 4]
    control = controls[kind].conditioned(pictures(2), "0 4", vae=vae)

    def own(frames: list[int]) -> dict[str, Any]:
        given = [(frames.index(place), picture) for picture, place in enumerate(places) if place in frames]
        if not given:
            return {}
        text = " ".join(str(place) for place, _ in given)
        return controlled(controls[kind].conditioned(pictures(2)[[picture for _, picture in given]], text, vae=vae))

    expected = by_hand(animated, windows, conds=own)
    assert any(not own(list(window)) for window in plan(windows, FRAMES).windows)
    found = through(control, apply_context_windows(animated, windows, at_once=at_once))
    assert relative_error(found, expected) < 1e-5
    assert relative_error(sample(apply_context_windows(animated, windows), NOISE), expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_without_conditions_sees_the_nearest_where_asked(animated, controls, vae, kind: SparseKind) -> None:
    """At its edge; windows that have their own see no others."""
    windows, places = Windows(4, 1), [2, 6]

    def seen(frames: list[int]) -> dict[str, Any]:
        given = [(frames.index(place), picture) for picture, place in enumerate(places) if place in frames]
        if not given:
            given = [(0, 1)] if frames[0] > 6 else [(3, 0)]
        text, chosen = " ".join(str(place) for place, _ in given), pictures(2)[[picture for _, picture in given]]
        return controlled(controls[kind].conditioned(chosen, text, vae=vae))

    assert any(not set(places) & set(window) for window in plan(windows, FRAMES).windows)
    control = controls[kind].conditioned(pictures(2), "2 6", vae=vae, nearest=True)
    found = through(control, apply_context_windows(animated, windows))
    assert relative_error(found, by_hand(animated, windows, conds=seen)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_has_its_strength(animated, controls, vae, kind: SparseKind) -> None:
    """0 as if it were not given; between, for rgb, whose stem is linear, as the picture's latent and its mask times that."""

    def sampled(text: str, count: int = 2) -> Tensor:
        return through(controls[kind].conditioned(pictures(2)[:count], text, vae=vae), animated)

    whole, alone = sampled("0, -1"), sampled("0", 1)
    assert torch.equal(sampled("0 = 1, -1"), whole) and torch.equal(sampled("0, -1 = 0"), alone)
    assert torch.equal(sampled("0-1 = 0"), sample(animated, NOISE))
    half = sampled("0, -1 = 0.5")
    assert min(relative_error(half, whole), relative_error(half, alone)) > 1e-4
    if kind is SparseKind.SCRIBBLE:
        return
    state, context = sparse_state(kind), randn(6, TOKENS, 768, seed=1)
    conditions = randn(3, kind.channels, 8, 8)
    conditions[:2, -1], conditions[2] = 1, 0
    control = sparse_ctrl_from_state(state, "s")
    load_models_gpu([control.patcher])
    found = control.patcher.model.encode(
        conditions, torch.tensor([0.25, 1.0, 0.0]), [0, -1, 1, -1, -1, 0], torch.full((6,), 500.0), context, 6, host_kernel(), 1.0
    )  # fmt: skip
    scaled = conditions * torch.tensor([0.25, 1.0, 0.0]).view(-1, 1, 1, 1)
    expected = encoded(control, scaled, [0, -1, 1, -1, -1, 0], context, 6)
    for part, same in zip((*found["output"], *found["middle"]), expected, strict=True):
        assert relative_error(part, same) < 1e-5


@pytest.mark.slow
def test_the_hosts_own_context_windows_are_known_too(animated, controls) -> None:
    """In one step the last frame's condition moves the frames of the one window that has it, and no others."""
    stock, handler = animated.clone(), comfy.context_windows.IndexListContextHandler
    stock.model_options["context_handler"] = handler(
        comfy.context_windows.get_matching_context_schedule("standard_static"),
        comfy.context_windows.get_matching_fuse_method("flat"),
        context_length=8,
        context_overlap=3,
    )
    once = torch.tensor([3.0, 0.0])
    control = controls[SparseKind.SCRIBBLE].conditioned(pictures(1), "-1")
    found, without = sample(stock, NOISE, once, **controlled(control)), sample(stock, NOISE, once)
    assert torch.equal(found[:6], without[:6])
    assert (found - without)[6:].abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.slow
def test_it_chains_with_controlnets_before_and_after_it(animated, controls) -> None:
    """What a chain adds is what its members add."""
    hints = torch.rand(FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))

    def sparse() -> SparseControl:
        return controls[SparseKind.SCRIBBLE].conditioned(pictures(1), "0, -1", strength=0.5)

    after = through(control_net(hints).set_previous_controlnet(sparse()), animated)
    before = through(sparse().set_previous_controlnet(control_net(hints)), animated)
    assert relative_error(before, after) < 1e-5
    for alone in (sparse(), control_net(hints)):
        assert relative_error(through(alone, animated), after) > 1e-3
    windowed = apply_context_windows(animated, WINDOWS)
    after = through(control_net(hints).set_previous_controlnet(sparse()), windowed)
    before = through(sparse().set_previous_controlnet(control_net(hints)), windowed)
    assert relative_error(before, after) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("start", "end", "works"), [(0.0, 1.0, True), (0.0, 0.1, False), (0.95, 1.0, False)])
def test_the_range_of_steps_is_obeyed(animated, controls, start: float, end: float, works: bool) -> None:
    """The sampling has sigmas 3 and 1, which lie in the middle of the schedule."""
    control = controls[SparseKind.SCRIBBLE].conditioned(pictures(1), "0", percent_range=(start, end))
    assert torch.equal(through(control, animated), sample(animated, NOISE)) is not works


@pytest.mark.slow
def test_pictures_of_any_size_are_cut_at_the_centre_and_scaled_as_by_pil(animated, controls, vae) -> None:
    wide = torch.nn.functional.pad(pictures(1, 5 * SIDE // 2), (13, 14), value=0.5)
    side = 5 * SIDE // 2
    planes = [
        Image.fromarray(plane.numpy()).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        for plane in wide[0, :, :, 13 : 13 + side]
    ]
    small = torch.stack([torch.from_numpy(np.array(plane)) for plane in planes])[None]
    for kind in KINDS:
        found = through(controls[kind].conditioned(wide, "100%", vae=vae), animated)
        expected = through(controls[kind].conditioned(small, "-1", vae=vae), animated)
        assert relative_error(found, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_several_prompts_share_it_or_go_without(animated, controls, vae, kind: SparseKind) -> None:
    """One step of two prompts, weighed 1 and 0.5, is the weighed average of what each gives alone."""
    control = controls[kind].conditioned(pictures(2), "0, -1", vae=vae)

    def step(*conds: tuple[Tensor, dict[str, Any]]) -> Tensor:
        guider = comfy.samplers.CFGGuider(animated)
        guider.set_conds([[text, dict(settings)] for text, settings in conds], [[NOTHING, {}]])
        guider.set_cfg(1.0)
        euler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([3.0, 0.0])
        return guider.sample(NOISE, torch.zeros_like(NOISE), euler, sigmas, disable_pbar=True, seed=5)

    other = randn(1, TOKENS, 768, seed=12)
    alone = step((TEXT, controlled(control)))
    for settings in (controlled(control), {}):
        expected = (alone + 0.5 * step((other, settings))) / 1.5
        found = step((TEXT, controlled(control)), (other, settings | {"strength": 0.5}))
        assert relative_error(found, expected) < 1e-5
    assert relative_error(step((other, controlled(control))), step((other, {}))) > 1e-3


@pytest.mark.slow
def test_the_host_loads_it_for_sampling_and_counts_it(animated, controls) -> None:
    control = controls[SparseKind.SCRIBBLE].conditioned(pictures(1), "0")
    comfy.model_management.unload_all_models()
    loaded: list[list[Any]] = []
    hook = control.patcher.model.middle_block.register_forward_hook(
        lambda *_: loaded.append([entry.model for entry in comfy.model_management.current_loaded_models])
    )
    through(control, animated)
    hook.remove()
    assert loaded and all(control.patcher in models for models in loaded)
    assert control.patcher.loaded_size() == control.patcher.model_size() > 0


@pytest.mark.parametrize("kept", [0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_partly_offloaded_weights_give_the_same(controls, kind: SparseKind, kept: float) -> None:
    control, side = controls[kind], 64 if kind is SparseKind.SCRIBBLE else 8
    given = randn(3, kind.channels, side, side), [0, -1, 1, -1], randn(4, TOKENS, 768, seed=1), 4
    expected = encoded(control, *given)
    comfy.model_management.unload_all_models()
    patcher = control.patcher
    patcher.load(patcher.load_device, lowvram_model_memory=int(kept * patcher.model_size()) + 1)
    try:
        assert patcher.model.model_lowvram
        times, strengths = torch.full((4,), 500.0), torch.ones(3)
        conditions, shown, context, frames = given
        found = patcher.model.encode(conditions, strengths, shown, times, context, frames, host_kernel(), 1.0)
        for part, same in zip((*found["output"], *found["middle"]), expected, strict=True):
            assert relative_error(part, same) < 1e-6
    finally:
        patcher.detach()


@pytest.mark.slow
def test_of_a_clip_as_long_the_frames_at_the_indices_are_taken(animated, controls, vae) -> None:
    for kind in KINDS:
        clip = pictures(FRAMES)
        whole = through(controls[kind].conditioned(clip, "3", vae=vae), animated)
        assert relative_error(whole, through(controls[kind].conditioned(clip[3:4], "3", vae=vae), animated)) < 1e-5


def test_what_does_not_fit_is_said_before_anything_is_sampled(animated, controls, vae) -> None:
    rgb, scribble = controls[SparseKind.RGB], controls[SparseKind.SCRIBBLE]
    with pytest.raises(ValueError, match=r"vae: RGB is conditioned on pictures.*found no VAE"):
        rgb.conditioned(pictures(1), "0")
    with pytest.raises(ValueError, match="found 'frist'"):
        rgb.conditioned(pictures(1), "frist", vae=vae)
    with pytest.raises(ValueError, match=r"0 to 13, or -1 for the last.*found 14"):
        through(scribble.conditioned(pictures(1), "14"), animated)
    with pytest.raises(ValueError, match="expected 2, one for each"):
        through(scribble.conditioned(pictures(3), "0 1"), animated)
    with pytest.raises(ValueError, match="Apply it with DiffDirector's Apply SparseCtrl"):
        scribble.copy().set_cond_hint(pictures(1))
    with pytest.raises(ValueError, match="Apply it with DiffDirector's Apply SparseCtrl"):
        through(scribble.copy(), animated)
    still = load_unet(unet_state(unet_config("sd15", **TINY)))
    with pytest.raises(ValueError, match=r"at most 32 frames at a time, found 33.*Context Windows"):
        through(scribble.conditioned(pictures(1), "0"), still, randn(33, 4, 4, 4))
    other = load_unet(
        unet_state(
            unet_config(
                "sd15",
                **TINY
                | {
                    "num_res_blocks": [2, 2],
                    "transformer_depth": [1, 1, 0, 0],
                    "transformer_depth_output": [1, 1, 1, 0, 0, 0],
                },
            )
        )
    )
    with pytest.raises(
        ValueError, match=r"made for an SD1.5 UNet with levels \[1, 1\] of \[1, 1\] layers.*the model is SD15"
    ):
        through(scribble.conditioned(pictures(1), "0"), other)
