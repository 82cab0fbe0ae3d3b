"""Prompts that travel, through the host's text encoders and its sampling, against the host's own nodes and frames one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import numpy as np
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import nodes
from diffdirector.motion.context import apply_context_windows
from diffdirector.motion.curves import LINEAR, SLERP, STEP
from diffdirector.motion.module import motion_model_from_state
from diffdirector.motion.splice import apply_motion_model
from diffdirector.motion.travel import encode_travel, plan_travel, same_length, slerp
from diffdirector.motion.windows import Windows
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.clips import small_clip
from diffdirector.tests.host.evaluate import randn, relative_error
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state

FRAMES = 6
SIGMAS = torch.tensor([3.0, 1.0, 0.0])
NOISE = randn(FRAMES, 4, 4, 4)
LONG = "a forest in the rain, " * 20  # more than 75 tokens
TRAVEL = f"0: (a forest:1.3) in spring\n2: {LONG}\n-1: a red ball"


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    save_file({"emb_params": randn(2, 768, seed=3)}, folder / "learnt.safetensors")
    return folder


@pytest.fixture(scope="module")
def clip(embeddings: Path):
    return small_clip("sd15", embeddings)


@pytest.fixture(scope="module")
def sdxl_clip():
    return small_clip("sdxl")


@pytest.fixture(scope="module")
def still():
    return load_unet(unet_state(unet_config("sd15", **TINY)))


@pytest.fixture(scope="module")
def animated(still):
    return apply_motion_model(still, motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2"))


@pytest.fixture(scope="module")
def sdxl():
    """The host's SDXL with two levels of one block."""
    config = unet_config("sdxl", **TINY)
    family = comfy.supported_models.SDXL(config)
    family.set_inference_dtype(torch.float32, None)
    model = family.get_model({})
    state = unet_state({key: value for key, value in family.unet_config.items() if key != "dtype"})
    assert not model.diffusion_model.load_state_dict(state).missing_keys
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())


def travel(clip: Any, text: str, frames: int = FRAMES, **options: Any) -> Any:
    return encode_travel(clip, plan_travel(text, frames, **options))


def encode(clip: Any, text: str) -> Any:
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def sample(model: Any, noise: Tensor, positive: Any, negative: Any) -> Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(2.0)
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, torch.zeros_like(noise), euler, SIGMAS, disable_pbar=True, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_keyframe_sees_what_clip_text_encode_gives(family: str, request) -> None:
    clip = request.getfixturevalue("clip" if family == "sd15" else "sdxl_clip")
    prompts = ["", "(a forest:1.3) at night", "(a:0.5), (b (c:1.4))"]
    ((embedding, options),) = travel(clip, "\n".join(f'{i}: "{prompt}"' for i, prompt in enumerate(prompts)), 3)
    assert embedding.shape[0] == options["pooled_output"].shape[0] == 3
    for row, pooled, prompt in zip(embedding, options["pooled_output"], prompts, strict=True):
        ((expected, expected_options),) = encode(clip, prompt)
        assert torch.equal(row, expected[0])
        assert torch.equal(pooled, expected_options["pooled_output"][0])


def test_embeddings_are_found(clip) -> None:
    ((with_it, _),) = travel(clip, "0: a embedding:learnt b\n1: a b", 2)
    assert torch.equal(with_it[:1], encode(clip, "a embedding:learnt b")[0][0])
    assert relative_error(with_it[0], with_it[1]) > 0.1


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_between_keyframes_it_is_the_hosts_average(family: str, request) -> None:
    clip = request.getfixturevalue("clip" if family == "sd15" else "sdxl_clip")
    ((embedding, options),) = travel(clip, "0: a forest\n4: a city by night", 5)
    first, second = encode(clip, "a forest"), encode(clip, "a city by night")
    for frame in range(5):
        ((expected, expected_options),) = nodes.ConditioningAverage().addWeighted(second, first, frame / 4)[0]
        assert torch.allclose(embedding[frame], expected[0], rtol=1e-5, atol=1e-6)
        assert torch.allclose(options["pooled_output"][frame], expected_options["pooled_output"][0], atol=1e-6)


def test_each_prompt_is_encoded_once(clip) -> None:
    calls: list[int] = []
    handle = clip.cond_stage_model.clip_l.transformer.register_forward_hook(lambda *_: calls.append(1))
    travel(clip, "0: a\n1: b\n2: a\n3: c\n5: b", prefix="head")
    handle.remove()
    assert len(calls) == 3


def test_scheduled_hooks_on_the_clip_travel(clip) -> None:
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    lora = {f"{key}.lora_up.weight": randn(3072, 4, seed=1), f"{key}.lora_down.weight": randn(4, 768, seed=2)}
    hooks, schedule = comfy.hooks.create_hook_lora(lora, 0.0, 1.0), comfy.hooks.HookKeyframeGroup()
    schedule.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    schedule.add(comfy.hooks.HookKeyframe(strength=0.2, start_percent=0.5))
    hooks.set_keyframes_on_hooks(schedule)
    (hooked,) = SetClipHooks().apply_hooks(clip, schedule_clip=True, apply_to_conds=True, hooks=hooks)
    found, expected = (
        travel(hooked, "0: a forest\n1: a city", 2),
        [encode(hooked, text) for text in ("a forest", "a city")],
    )
    assert len(found) == 2 and relative_error(found[0][0], found[1][0]) > 1e-3
    for part, first, second in zip(found, *expected, strict=True):
        assert torch.equal(part[0], torch.cat([first[0], second[0]]))
        rest = {key: value for key, value in first[1].items() if key != "pooled_output"}
        assert {key: value for key, value in part[1].items() if key != "pooled_output"} == rest
        assert {"hooks", "clip_start_percent", "clip_end_percent"} <= set(rest)


@pytest.mark.slow
def test_equal_prompts_are_no_travel_bit_for_bit(animated, clip) -> None:
    nothing, prompt = encode(clip, ""), "a (red:1.2) ball"
    expected = sample(animated, NOISE, encode(clip, prompt), nothing)
    for interpolation in (LINEAR, SLERP):
        same = travel(clip, f"0: {prompt}\n30%: {prompt}\n4-5: {prompt}", interpolation=interpolation)
        assert torch.equal(sample(animated, NOISE, same, nothing), expected)
    other = travel(clip, f"0: {prompt}\n5: a green triangle")
    assert relative_error(sample(animated, NOISE, other, nothing), expected) > 1e-3


@pytest.mark.slow
def test_long_and_short_prompts_keep_what_they_say(still, clip) -> None:
    """Without motion, frames do not see each other: each is what its prompt alone gives, however long the others are."""
    nothing = encode(clip, "")
    positive = travel(clip, TRAVEL, interpolation=STEP)
    assert positive[0][0].shape[1] == 2 * 77
    found = sample(still, NOISE, positive, nothing)
    for frame, prompt in enumerate(["(a forest:1.3) in spring"] * 2 + [LONG] * 3 + ["a red ball"]):
        alone = sample(still, NOISE[frame : frame + 1], encode(clip, prompt), nothing)
        assert relative_error(found[frame : frame + 1], alone) < 1e-5


@pytest.mark.parametrize("lengths", [(77, 154), (154, 231), (77, 231, 154)])
def test_lengths_are_met_by_repeating(lengths: tuple[int, ...]) -> None:
    embeddings = [randn(1, length, 8, seed=length) for length in lengths]
    query = randn(1, 5, 8)
    for short, long in zip(embeddings, same_length(embeddings), strict=True):
        assert long.shape[1] == np.lcm.reduce(lengths)
        attention = torch.nn.functional.scaled_dot_product_attention
        assert torch.allclose(attention(query, long, long), attention(query, short, short), atol=1e-6)


@pytest.mark.slow
def test_windows_see_the_prompts_of_their_frames(animated, still, clip) -> None:
    """Through windows and as one, without motion; with motion, a window of all frames is none."""
    nothing, positive, windows = encode(clip, ""), travel(clip, TRAVEL), Windows(4, 2)
    found = sample(apply_context_windows(still, windows), NOISE, positive, nothing)
    assert relative_error(found, sample(still, NOISE, positive, nothing)) < 1e-5
    moving = sample(apply_context_windows(animated, windows), NOISE, positive, nothing)
    fixed = sample(apply_context_windows(animated, windows), NOISE, travel(clip, "0: a red ball"), nothing)
    assert relative_error(moving, fixed) > 1e-3


@pytest.mark.slow
def test_sdxls_pooled_text_travels_too(sdxl, sdxl_clip) -> None:
    frames, nothing = 4, encode(sdxl_clip, "")
    positive = travel(sdxl_clip, "0: a forest\n3: a red ball, (snow:1.2)", frames, interpolation=SLERP)
    ((embedding, options),) = positive

    def alone(pooled: Tensor) -> Tensor:
        """Frame by frame, for without motion they do not see each other."""
        return torch.cat(
            [
                sample(sdxl, NOISE[i : i + 1], [[embedding[i : i + 1], {"pooled_output": pooled[i : i + 1]}]], nothing)
                for i in range(frames)
            ]
        )

    expected = alone(options["pooled_output"])
    for model in (sdxl, apply_context_windows(sdxl, Windows(3, 1))):
        assert relative_error(sample(model, NOISE[:frames], positive, nothing), expected) < 1e-5
    assert relative_error(alone(options["pooled_output"][:1].expand(frames, -1))[1:], expected[1:]) > 1e-3


@settings(deadline=None)
@given(st.floats(0.01, 3.1), st.floats(0, 1), st.floats(0.1, 10), st.floats(0.1, 10))
def test_slerp_turns_evenly(angle: float, share: float, first: float, second: float) -> None:
    """In a plane: complex numbers of even angle and length."""
    found = slerp(torch.tensor([[first, 0.0]]), second * torch.tensor([[np.cos(angle), np.sin(angle)]]).float(), share)
    expected = (first + (second - first) * share) * np.exp(1j * angle * share)
    assert abs(complex(*found[0].tolist()) - expected) < 2e-4 * max(first, second)


def test_slerp_goes_straight_where_there_is_no_turn() -> None:
    a, b, zero = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]]), torch.zeros(1, 2)
    assert torch.equal(slerp(a, a, 0.3), a)
    assert torch.allclose(slerp(a, b, 0.25), 1.25 * a)
    assert torch.allclose(slerp(zero, a, 0.5), a / 2)
    assert torch.allclose(slerp(a, -a, 0.25), a / 2, atol=1e-6)


def test_slerp_keeps_the_strength_that_linear_loses(clip) -> None:
    text = "0: a forest\n2: a red ball"
    ((straight, _),), ((turned, _),) = (travel(clip, text, 3, interpolation=one) for one in (LINEAR, SLERP))
    lengths = turned.norm(dim=-1)
    assert torch.allclose(lengths[1], (lengths[0] + lengths[2]) / 2, rtol=1e-4)
    assert (straight.norm(dim=-1)[1] < lengths[1] + 1e-4).all() and relative_error(straight[1], turned[1]) > 1e-3
    assert torch.equal(straight[[0, 2]], turned[[0, 2]])


def test_a_checkpoint_without_text_encoder_is_named() -> None:
    with pytest.raises(ValueError, match="clip: expected a text encoder, found none"):
        travel(None, "0: a")
