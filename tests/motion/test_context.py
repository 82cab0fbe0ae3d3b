"""Windows through the host's sampling, against the same windows sampled one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.controlnet
import comfy.samplers
import pytest
import torch
from comfy.cldm.cldm import ControlNet
from torch import Tensor

from diffdirector.motion.context import HANDLER, apply_context_windows, apply_views
from diffdirector.motion.module import TemporalTransformer, motion_model_from_state
from diffdirector.motion.splice import apply_motion_model
from diffdirector.motion.windows import FUSES, LOOPED, SCHEDULES, UNIFORM, Windows, plan, together
from diffdirector.tests.benchmarks.bench import PeakMemory
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import TOKENS, randn, relative_error
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, seeded, unet_config, unet_state

FRAMES = 14
SIGMAS = torch.tensor([3.0, 1.0, 0.0])
NOISE, TEXT, NOTHING = randn(FRAMES, 4, 4, 4), randn(1, TOKENS, 768, seed=1), randn(1, TOKENS, 768, seed=2)
WINDOWS = Windows(8, 3)


@pytest.fixture(scope="module")
def animated():
    model = load_unet(unet_state(unet_config("sd15", **TINY)))
    return apply_motion_model(model, motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2"))


def sample(
    model: Any, noise: Tensor, sigmas: Tensor = SIGMAS, positive: Tensor = TEXT, sampler: str = "euler", **cond: Any
) -> Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[positive, dict(cond)]], [[NOTHING, dict(cond)]])
    guider.set_cfg(2.0)
    latent = torch.zeros_like(noise)
    return guider.sample(noise, latent, comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True, seed=5)


def by_hand(
    model: Any, windows: Windows, noise: Tensor = NOISE, conds: Callable[[list[int]], dict] = lambda frames: {}
) -> Tensor:
    """Euler's steps, each from the average of what the windows predict on their own; conds: of a window's frames."""
    x = noise * SIGMAS[0]
    for step, (sigma, after) in enumerate(zip(SIGMAS[:-1], SIGMAS[1:], strict=True)):
        found = plan(windows, len(noise), step)
        clean = torch.zeros_like(x)
        for window, weights in zip(found.windows, found.weights, strict=True):
            frames = list(window)
            alone = sample(model, x[frames] / sigma, torch.stack([sigma, torch.tensor(0.0)]), **conds(frames))
            clean[frames] += torch.tensor(weights).view(-1, 1, 1, 1) * model.model.process_latent_in(alone)
        x = x + (x - clean) / sigma * (after - sigma)
    return model.model.process_latent_out(x)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "fuse"), zip(SCHEDULES, FUSES, strict=False))
def test_the_same_as_windows_one_by_one(animated, schedule: str, fuse: str) -> None:
    windows = Windows(8, 3, schedule=schedule, fuse=fuse, closed_loop=True)
    found = sample(apply_context_windows(animated, windows), NOISE)
    assert relative_error(found, by_hand(animated, windows)) < 1e-5
    assert relative_error(found, sample(animated, NOISE)) > 1e-2


@pytest.fixture
def calls(animated) -> Iterator[list[int]]:
    """The batch sizes of the UNet's evaluations."""
    sizes: list[int] = []
    unet = animated.model.diffusion_model
    hook = unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    hook.remove()


@pytest.mark.slow
def test_several_windows_at_once_are_the_same_as_one_by_one(animated, calls: list[int]) -> None:
    """With text, hints and a patch that all differ from frame to frame."""
    windows = Windows(4, 1)
    travelling = randn(FRAMES, TOKENS, 768, seed=6)
    hints = torch.rand(FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(8))

    def run(at_once: int) -> Tensor:
        calls.clear()
        model = apply_context_windows(animated, windows, at_once=at_once)
        model.set_model_attn2_output_patch(per_frame)
        return sample(model, NOISE, positive=travelling, **controlled(control_net(hints)))

    def per_frame(x: Tensor, options: dict[str, Any]) -> Tensor:
        frames = torch.tensor(options["ad_params"]["sub_idxs"] * len(options["cond_or_uncond"]))
        return x * (1 + frames.view(-1, 1, 1) / FRAMES)

    expected, alone = run(1), sum(calls)
    counted = len(calls)
    found = run(2)
    assert relative_error(found, expected) < 1e-5
    assert sum(calls) == alone and len(calls) == counted * len(together(plan(windows, FRAMES).windows, 2)) / len(
        plan(windows, FRAMES).windows
    )


@pytest.mark.slow
def test_no_more_windows_at_once_than_memory_allows(animated, calls: list[int], monkeypatch) -> None:
    windows, once = Windows(4, 0), torch.tensor([3.0, 0.0])

    def largest(room: float) -> int:
        calls.clear()
        monkeypatch.setattr(type(animated), "get_free_memory", lambda self, device: room)
        sample(apply_context_windows(animated, windows, at_once=3), randn(12, 4, 4, 4), once)
        return max(calls)

    needed = animated.model.memory_required([8, 4, 4, 4]) * 1.5
    assert [largest(needed * room) for room in (0.9, 1.1, 100)] == [4, 8, 24]  # the last with both conditionings


@pytest.mark.slow
def test_one_window_of_the_whole_clip_is_no_windows_bit_for_bit(animated) -> None:
    expected = sample(animated, NOISE)
    for length in (FRAMES, FRAMES + 4):
        assert torch.equal(sample(apply_context_windows(animated, Windows(length)), NOISE), expected)


@pytest.mark.slow
def test_windows_before_the_motion_model_are_windows_too(animated) -> None:
    model = load_unet(unet_state(unet_config("sd15", **TINY)))
    motion = motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2")
    found = sample(apply_motion_model(apply_context_windows(model, WINDOWS), motion), NOISE)
    assert torch.equal(found, sample(apply_context_windows(animated, WINDOWS), NOISE))


@pytest.mark.slow
def test_a_loop_has_no_beginning(animated) -> None:
    """Turned noise gives the turned clip, where windows do not move with the steps."""
    windows = Windows(8, 1, schedule=LOOPED, closed_loop=True)
    model, once = apply_context_windows(animated, windows), torch.tensor([3.0, 0.0])
    found = sample(model, NOISE, once)
    turned = sample(model, NOISE.roll(7, 0), once)  # two windows, 7 frames apart
    assert relative_error(turned.roll(-7, 0), found) < 1e-5


@pytest.mark.slow
def test_a_loop_that_fits_into_one_window_is_turned_in_it(animated) -> None:
    windows = Windows(FRAMES, 4, schedule=LOOPED, closed_loop=True)
    found = sample(apply_context_windows(animated, windows), NOISE)
    assert relative_error(found, by_hand(animated, windows)) < 1e-5
    assert relative_error(found, sample(animated, NOISE)) > 1e-3


@pytest.mark.slow
def test_text_that_differs_from_frame_to_frame_is_each_windows_own(animated) -> None:
    travelling = randn(FRAMES, TOKENS, 768, seed=6)
    found = sample(apply_context_windows(animated, WINDOWS), NOISE, positive=travelling)
    expected = by_hand(animated, WINDOWS, conds=lambda frames: {"positive": travelling[frames]})
    assert relative_error(found, expected) < 1e-5


@pytest.mark.slow
def test_text_for_another_number_of_frames_is_warned_of() -> None:
    warnings: list[str] = []
    motion = motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2")
    model = load_unet(unet_state(unet_config("sd15", **TINY)))
    model = apply_context_windows(apply_motion_model(model, motion, warn=warnings.append), WINDOWS)
    for rows, expected in (
        (9, "Prompts for 9 frames, but the batch has 14: make them the same."),
        (FRAMES, ""),
        (1, ""),
    ):
        sample(model, NOISE, torch.tensor([3.0, 0.0]), positive=randn(rows, TOKENS, 768, seed=6))
        assert warnings.pop() == expected


def control_net(hints: Tensor, strength: float = 1.0) -> Any:
    """A small ControlNet through the stock loader."""
    config = unet_config("sd15", **TINY)
    with torch.device("meta"):
        skeleton = ControlNet(**config, hint_channels=3)
    state = seeded({key: tuple(value.shape) for key, value in skeleton.state_dict().items()}, seed=4)
    control = comfy.controlnet.load_controlnet_state_dict(state)
    assert control is not None
    return control.set_cond_hint(hints, strength, (0.0, 0.9))


def controlled(control: Any) -> dict[str, Any]:
    return {"control": control, "control_apply_to_uncond": True}


@pytest.mark.slow
@pytest.mark.parametrize("count", [FRAMES, 6])
def test_a_stock_controlnet_sees_the_frames_of_its_window(animated, count: int) -> None:
    hints = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    dealt = hints[[frame % count for frame in range(FRAMES)]]
    found = sample(apply_context_windows(animated, WINDOWS), NOISE, **controlled(control_net(hints)))
    expected = by_hand(animated, WINDOWS, conds=lambda frames: controlled(control_net(dealt[frames])))
    assert relative_error(found, expected) < 1e-5
    if count == FRAMES:
        shuffled = sample(apply_context_windows(animated, WINDOWS), NOISE, **controlled(control_net(hints.flip(0))))
        assert relative_error(shuffled, expected) > 1e-4


@pytest.mark.slow
def test_chained_controlnets_see_them_too(animated) -> None:
    first, second = (torch.rand(FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (8, 9))

    def chain(frames: list[int]) -> dict[str, Any]:
        return controlled(control_net(first[frames]).set_previous_controlnet(control_net(second[frames], 0.5)))

    found = sample(apply_context_windows(animated, WINDOWS), NOISE, **chain(list(range(FRAMES))))
    assert relative_error(found, by_hand(animated, WINDOWS, conds=chain)) < 1e-5


def test_attention_patches_are_told_the_frames_of_the_window(animated) -> None:
    """As IP-Adapter packs ask: `ad_params` in the attention's options; and nothing of it stays."""
    seen, model = [], apply_context_windows(animated, WINDOWS).clone()

    def patch(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        seen.append((tuple(options["ad_params"]["sub_idxs"]), options["ad_params"]["full_length"]))
        return q, k, v

    model.set_model_attn2_patch(patch)
    sample(model, NOISE, torch.tensor([3.0, 0.0]))
    assert set(seen) == {(window, FRAMES) for window in plan(WINDOWS, FRAMES).windows}
    left = model.model_options["transformer_options"]
    assert "ad_params" not in left and "context_window" not in left


@pytest.mark.slow
def test_freenoise_lends_later_frames_the_first_windows_noise(animated) -> None:
    seen: list[Tensor] = []
    model = apply_context_windows(animated, WINDOWS, freenoise=True)
    model.set_model_sampler_pre_cfg_function(lambda args: (seen.append(args["input"]), args["conds_out"])[1])
    sample(model, NOISE.clone())
    noise = seen[0] / SIGMAS[0]
    assert torch.allclose(noise[:8], NOISE[:8], atol=1e-5)
    for frame in noise:
        assert min(float((frame - first).abs().max()) for first in NOISE[:8]) < 1e-4
    again = apply_context_windows(model, WINDOWS)  # without
    seen.clear()
    sample(again, NOISE.clone())
    assert torch.allclose(seen[0] / SIGMAS[0], NOISE, atol=1e-5)


@pytest.mark.slow
def test_windows_longer_than_the_motion_models_limit_are_refused(animated) -> None:
    with pytest.raises(ValueError, match="moves at most 32 frames at a time, a context window has 40"):
        sample(apply_context_windows(animated, Windows(40)), randn(44, 4, 4, 4))
    assert sample(apply_context_windows(animated, Windows(32)), randn(36, 4, 4, 4)).shape[0] == 36


@pytest.mark.slow
def test_steps_between_the_schedules_keep_their_windows(animated) -> None:
    """Samplers of second order ask at sigmas that no step has."""
    windows, used = Windows(8, 3, schedule=UNIFORM), []
    model = apply_context_windows(animated, windows)
    handler = model.model_options[HANDLER]
    model.set_model_sampler_pre_cfg_function(
        lambda args: (used.append(dict(handler._weights_of)), args["conds_out"])[1]
    )
    found = sample(model, NOISE, sampler="dpm_2")
    assert found.isfinite().all()
    plans = [plan(windows, FRAMES, step) for step in (0, 0, 1)]
    assert used == [dict(zip(one.windows, one.weights, strict=True)) for one in plans] and used[1] != used[2]


@pytest.mark.slow
def test_views_are_windows_inside_the_motion_modules(animated, monkeypatch) -> None:
    """The image model sees whole clips; each motion module's effect is the average over its windows."""
    windows = Windows(8, 3)
    found, whole = sample(apply_views(animated, windows), NOISE), sample(animated, NOISE)
    weight_of = plan(windows, FRAMES)
    for module in animated.get_attachment("diffdirector").motions[0].model.modules():
        if isinstance(module, TemporalTransformer):

            def forward(x: Tensor, frames: int, *rest: Any, alone: Callable = module.forward) -> Tensor:
                assert frames == FRAMES
                out = x.clone()
                for clip, effect in zip(x.split(frames), out.split(frames), strict=True):
                    for window, weights in zip(weight_of.windows, weight_of.weights, strict=True):
                        change = alone(clip[list(window)], len(window), *rest) - clip[list(window)]
                        for frame, weight, of_frame in zip(window, weights, change, strict=True):
                            effect[frame] += weight * of_frame
                return out

            monkeypatch.setattr(module, "forward", forward)
    assert relative_error(found, sample(animated, NOISE)) < 1e-5
    monkeypatch.undo()
    for other in (whole, sample(apply_context_windows(animated, windows), NOISE)):
        assert relative_error(found, other) > 1e-3


@pytest.mark.slow
def test_views_of_the_whole_clip_are_none_bit_for_bit(animated) -> None:
    expected = sample(animated, NOISE)
    assert torch.equal(sample(apply_views(animated, Windows(FRAMES)), NOISE), expected)


@pytest.mark.slow
def test_views_lift_the_motion_models_limit(animated) -> None:
    noise = randn(40, 4, 4, 4)
    with pytest.raises(ValueError, match="at most 32 frames"):
        sample(animated, noise)
    assert sample(apply_views(animated, Windows(16)), noise).isfinite().all()
    with pytest.raises(ValueError, match="at most 32 frames at a time, a view has 36"):
        sample(apply_views(animated, Windows(36)), noise)
    both = apply_views(apply_context_windows(animated, Windows(32)), Windows(16, schedule=UNIFORM))
    assert sample(both, noise).isfinite().all()


@pytest.mark.slow
def test_512_frames_take_the_memory_of_32(animated) -> None:
    """The weights, and the most that a step takes beyond."""
    model, once = apply_context_windows(animated, Windows()), torch.tensor([3.0, 0.0])
    weights = sum(value.nbytes for value in animated.model.state_dict().values())

    def peak(frames: int) -> float:
        with PeakMemory("cpu") as memory:
            sample(model, randn(frames, 4, 4, 4), once)
        return weights + memory.bytes

    peak(32)
    assert peak(512) <= 1.15 * peak(32)
