"""How much a motion model does, against its own modules with their results changed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comfy.context_windows import IndexListContextHandler, get_matching_context_schedule, get_matching_fuse_method
from torch import Tensor, autocast

from diffdirector.lora.formats import LoraFormatError, read_lora
from diffdirector.lora.patches import MotionLora, merge_motion_loras, with_motion_loras
from diffdirector.motion.context import apply_context_windows, apply_views
from diffdirector.motion.curves import Curve, parse_curve
from diffdirector.motion.identify import FileKind
from diffdirector.motion.module import MotionModel, TemporalTransformer, motion_model_from_state
from diffdirector.motion.schedules import USE_EXISTING
from diffdirector.motion.splice import apply_motion_model
from diffdirector.motion.strength import ATTENTION, EFFECT, KINDS, MotionStrength, parse_blocks
from diffdirector.motion.windows import Windows, plan
from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import TOKENS, evaluate, randn, relative_error
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state

from .test_context import sample

FRAMES = 10
X, CONTEXT = randn(FRAMES, 4, 8, 8), randn(1, TOKENS, 768, seed=1)
NOISE = randn(FRAMES, 4, 4, 4)
SIGMAS = torch.tensor([8.0, 2.0, 0.5, 0.0])
RAMP = Curve(values=tuple(frame / 4 for frame in range(FRAMES)))
MASK = torch.rand(FRAMES, 24, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model():
    return load_unet(unet_state(unet_config("sd15", **TINY)))


def motion(state: dict[str, Tensor] | None = None) -> Any:
    return motion_model_from_state(state or motion_state(tiny_motion_config()), "tiny v2")


def animated(model: Any, *strengths: MotionStrength, handle: Any = None) -> Any:
    return apply_motion_model(model, handle or motion(), strengths=strengths)


Change = Callable[[str, Tensor, Tensor], Tensor]  # site, x, moved -> what is to come out


def changed(model: Any, change: Change) -> Any:
    """model with a motion model whose modules' results are changed by hand."""
    handle = motion()
    modules: MotionModel = handle.patcher.model
    for name, module in modules.named_modules():
        if isinstance(module, TemporalTransformer):
            site = name.removesuffix(".temporal_transformer")

            def forward(x: Tensor, *rest: Any, alone: Callable = module.forward, site: str = site) -> Tensor:
                return change(site, x, alone(x, *rest))

            module.forward = forward  # type: ignore[method-assign]
    return animated(model, handle=handle)


@pytest.mark.slow
def test_all_of_one_is_none_at_all(model) -> None:
    expected = evaluate(animated(model), X, CONTEXT)
    one = Curve(values=(1.0,))
    for kind in KINDS:
        strength = MotionStrength(kind, 1.0, one, one, torch.ones(1, 8, 8), {"mid": 1.0, "up.1": 1.0})
        assert relative_error(evaluate(animated(model, strength), X, CONTEXT), expected) < 1e-6
    assert torch.equal(evaluate(animated(model, MotionStrength()), X, CONTEXT), expected)


@pytest.mark.slow
def test_the_effect_over_frames_and_places(model) -> None:
    def change(site: str, x: Tensor, moved: Tensor) -> Tensor:
        mask = F.interpolate(MASK.unsqueeze(1), size=x.shape[2:], mode="bilinear", antialias=True)
        factor = 0.5 * torch.arange(FRAMES).view(-1, 1, 1, 1) / 4 * mask
        return x + factor * (moved - x)

    strength = MotionStrength(EFFECT, 0.5, RAMP, mask=MASK)
    found = evaluate(animated(model, strength), X, CONTEXT)
    assert relative_error(found, evaluate(changed(model, change), X, CONTEXT)) < 1e-5
    chained = evaluate(
        animated(model, MotionStrength(EFFECT, 0.5, mask=MASK), MotionStrength(EFFECT, 1.0, RAMP)), X, CONTEXT
    )
    assert relative_error(chained, found) < 1e-5
    assert relative_error(evaluate(animated(model), X, CONTEXT), found) > 1e-2


def test_the_effect_block_by_block(model) -> None:
    factors = {
        "down_blocks.0.motion_modules.0": 0.25,
        "down_blocks.1.motion_modules.0": 0.5,
        "mid_block.motion_modules.0": 0.0,
    }

    def change(site: str, x: Tensor, moved: Tensor) -> Tensor:
        return x + factors.get(site, 1.0) * (moved - x)

    strength = MotionStrength(blocks=parse_blocks("down: 0.5, down.0.0: 0.25\nmid: 0"))
    found = evaluate(animated(model, strength), X, CONTEXT)
    assert relative_error(found, evaluate(changed(model, change), X, CONTEXT)) < 1e-5


@pytest.mark.slow
def test_the_attention_scale_is_one_of_the_queries(model) -> None:
    state = motion_state(tiny_motion_config())
    scaled = {key: value * (1.5 if ".to_q." in key else 1) for key, value in state.items()}
    found = evaluate(animated(model, MotionStrength(ATTENTION, 1.5)), X, CONTEXT)
    assert relative_error(found, evaluate(animated(model, handle=motion(scaled)), X, CONTEXT)) < 1e-5
    assert relative_error(found, evaluate(animated(model), X, CONTEXT)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
def test_the_attention_scale_over_frames_and_places(model, chunked: bool, monkeypatch) -> None:
    """Against queries that are scaled on their way: rows are positions, then frames."""
    from diffdirector.motion import module as module_file

    handle = motion()
    for name, module in handle.patcher.model.named_modules():
        if name.endswith("to_q"):

            def scale(_: Any, arguments: Any, query: Tensor) -> Tensor:
                side = int(query.shape[0] ** 0.5)
                mask = F.interpolate(MASK.unsqueeze(1), size=(side, side), mode="bilinear", antialias=True)
                return query * mask.view(FRAMES, -1).T.unsqueeze(2) * torch.arange(FRAMES).view(1, -1, 1) / 4

            module.register_forward_hook(scale)
    expected = evaluate(animated(model, handle=handle), X, CONTEXT)
    if chunked:
        monkeypatch.setattr(module_file, "positions_per_chunk", lambda *_: 3)
    found = evaluate(animated(model, MotionStrength(ATTENTION, 1.0, RAMP, mask=MASK)), X, CONTEXT)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.slow
def test_a_curve_over_steps_that_ends_is_an_end_percent(model) -> None:
    over_steps = parse_curve("0%: 1, 30%: 0", "step")
    found = sample(animated(model, MotionStrength(over_steps=over_steps)), NOISE, SIGMAS)
    expected = sample(apply_motion_model(model, motion(), end_percent=0.3), NOISE, SIGMAS)
    assert torch.equal(found, expected)
    assert relative_error(sample(animated(model), NOISE, SIGMAS), expected) > 1e-3


@pytest.mark.slow
def test_curves_over_steps_go_by_the_part_of_the_schedule_that_is_done(model) -> None:
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([sampling.percent_to_sigma(part) for part in (0.2, 0.5)] + [0.0])
    half = parse_curve("0%: 1, 100%: 0")

    def change(site: str, x: Tensor, moved: Tensor) -> Tensor:
        return x + next(factors) * (moved - x)

    sites = len(tiny_motion_config().sites)
    factors = iter([0.8] * sites + [0.5] * sites)
    found = sample(
        apply_motion_model(model, motion(), beta_schedule=USE_EXISTING, strengths=[MotionStrength(over_steps=half)]),
        NOISE,
        sigmas,
    )
    by_hand = changed(model, change)
    by_hand.add_object_patch("model_sampling", sampling)
    assert relative_error(found, sample(by_hand, NOISE, sigmas)) < 1e-3
    factors = iter([0.8] * sites + [0.4] * sites)
    assert relative_error(found, sample(by_hand, NOISE, sigmas)) > 3e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [1, 3])
def test_windows_and_views_take_the_values_of_their_own_frames(model, kind: str, at_once: int) -> None:
    """Each window alone, with a curve and a mask of its frames only."""
    windows = Windows(4, 0, schedule="batched")
    frames = 12
    noise, once = randn(frames, 4, 4, 4), torch.tensor([3.0, 0.0])
    values, mask = [0.2 * frame for frame in range(frames)], randn(frames, 4, 4, seed=8).abs()

    def strength(of: list[int]) -> MotionStrength:
        return MotionStrength(kind, 1.0, Curve(values=tuple(values[frame] for frame in of)), mask=mask[of])

    every = animated(model, strength(list(range(frames))))
    found = sample(apply_context_windows(every, windows, at_once=at_once), noise, once)
    for window in plan(windows, frames).windows:
        alone = sample(animated(model, strength(list(window))), noise[list(window)], once)
        assert relative_error(found[list(window)], alone) < 1e-5
    views = sample(apply_views(every, windows), noise, once)
    assert relative_error(views, found) < 1e-5  # nothing but motion modules looks beyond a frame


@pytest.mark.parametrize("causal_window_fix", [False, True])
def test_the_hosts_own_windows_take_the_values_of_their_own_frames(model, causal_window_fix: bool) -> None:
    """Shown at a keyframe that no window alone would have; against our windows, which are those of the host here."""
    noise, once = randn(12, 4, 4, 4), torch.tensor([3.0, 0.0])
    every = animated(model, MotionStrength(over_frames=parse_curve("0: 0, 11: 2"), mask=randn(12, 4, 4, seed=8).abs()))
    schedule, fuse = get_matching_context_schedule("batched"), get_matching_fuse_method("flat")
    theirs = every.clone()
    theirs.model_options["context_handler"] = IndexListContextHandler(
        schedule, fuse, context_length=4, dim=0, causal_window_fix=causal_window_fix
    )
    found, expected = (
        sample(theirs, noise, once),
        sample(apply_context_windows(every, Windows(4, 0, schedule="batched")), noise, once),
    )
    assert relative_error(found[:4], expected[:4]) < 1e-5
    assert (relative_error(found, expected) < 1e-5) != causal_window_fix  # with it, windows have a frame more


def test_a_constant_beside_a_curve_in_half_precision(model) -> None:
    """What is left alone in a view stays exactly so, and masks are scaled in full precision."""
    strength = MotionStrength(mask=MASK[:1], blocks={"down": 0.0})
    with autocast("cpu", torch.bfloat16):
        assert evaluate(animated(model, strength), X, CONTEXT).isfinite().all()
    nothing = apply_views(animated(model, MotionStrength(amount=0.0)), Windows(4, 1))
    assert torch.equal(evaluate(nothing, X, CONTEXT), evaluate(model, X, CONTEXT))


def camera(strength: float, **curves: Curve) -> MotionLora:
    state = loras.in_diffusers_naming(loras.motion_lora(motion_state(tiny_motion_config()), rank=4, seed=3), alpha=2.0)
    return MotionLora("camera", read_lora(state, FileKind.MOTION_LORA), strength, **curves)


def with_camera(model: Any, strength: float, **curves: Curve) -> Any:
    return animated(model, handle=with_motion_loras(motion(), [camera(strength, **curves)]))


@pytest.mark.slow
def test_a_motion_lora_of_constant_strength_is_the_merged_one(model) -> None:
    expected = evaluate(with_camera(model, 0.7), X, CONTEXT)
    curves = {"over_frames": Curve(values=(0.5,)), "over_steps": Curve(values=(2.0,))}
    assert relative_error(evaluate(with_camera(model, 0.7, **curves), X, CONTEXT), expected) < 1e-5
    assert relative_error(evaluate(animated(model), X, CONTEXT), expected) > 1e-2


@pytest.mark.slow
def test_a_motion_lora_over_frames(model) -> None:
    """Against the difference that the merged one makes to each layer, scaled frame by frame."""
    handle, merged = (
        motion(),
        motion(
            loras.merged(
                motion_state(tiny_motion_config()),
                loras.motion_lora(motion_state(tiny_motion_config()), rank=4, seed=3),
                0.7 * 2 / 4,
            )
        ),
    )
    layers = dict(merged.patcher.model.named_modules())
    for name, module in handle.patcher.model.named_modules():
        if ".to_" in name and hasattr(module, "weight"):

            def mix(_: Any, arguments: Any, out: Tensor, other: Any = layers[name]) -> Tensor:
                return out + torch.arange(FRAMES).view(1, -1, 1) / 4 * (other(arguments[0]) - out)

            module.register_forward_hook(mix)
    found = evaluate(with_camera(model, 0.7, over_frames=RAMP), X, CONTEXT)
    assert relative_error(found, evaluate(animated(model, handle=handle), X, CONTEXT)) < 1e-5


@pytest.mark.slow
def test_a_motion_lora_over_steps(model) -> None:
    sigmas = torch.tensor([3.0, 0.0])
    early = parse_curve("0%: 1, 50%: 0", "step")
    found = sample(with_camera(model, 1.0, over_steps=early), NOISE, sigmas)
    sampling = animated(model).get_model_object("model_sampling")
    later = float(sampling.percent_to_sigma(0.5)) > 3.0
    expected = sample(animated(model) if later else with_camera(model, 1.0), NOISE, sigmas)
    assert relative_error(found, expected) < 1e-5
    start = torch.tensor([float(sampling.percent_to_sigma(0.1)), 0.0])
    found = sample(with_camera(model, 1.0, over_steps=early), NOISE, start)
    assert relative_error(found, sample(with_camera(model, 1.0), NOISE, start)) < 1e-5


@pytest.mark.slow
def test_a_motion_lora_over_frames_in_windows(model) -> None:
    windows, noise, once = Windows(4, 0, schedule="batched"), randn(12, 4, 4, 4), torch.tensor([3.0, 0.0])
    values = tuple(0.2 * frame for frame in range(12))
    every = with_camera(model, 0.7, over_frames=Curve(values=values))
    found = [sample(apply_context_windows(every, windows, at_once=count), noise, once) for count in (1, 3)]
    for window in plan(windows, 12).windows:
        own = with_camera(model, 0.7, over_frames=Curve(values=values[window[0] : window[-1] + 1]))
        alone = sample(own, noise[list(window)], once)
        assert all(relative_error(clip[list(window)], alone) < 1e-5 for clip in found)


def test_nothing_stays_on_the_layers(model) -> None:
    handle = with_motion_loras(motion(), [camera(1.0, over_frames=RAMP)])
    evaluate(animated(model, handle=handle), X, CONTEXT)
    assert not any(module._forward_hooks for module in handle.patcher.model.modules())


def test_what_cannot_be_is_refused_before_sampling(model) -> None:
    with pytest.raises(ValueError, match="no block 'down.7'. It has down, down.0, down.0.0, down.1, .*mid, up"):
        animated(model, MotionStrength(blocks={"down.7": 1.0}))
    with pytest.raises(ValueError, match="blocks: expected down, down.1, .* found 'middle'"):
        MotionStrength(blocks={"middle": 1.0})
    for text in ("mid: 1, down=2", "mid: nan", "mid: inf", "mid"):
        with pytest.raises(ValueError, match="such as down.1: 0.5, found"):
            parse_blocks(text)
    with pytest.raises(ValueError, match="expected mid once"):
        parse_blocks("mid: 1, mid: 0")
    with pytest.raises(ValueError, match="expected a percentage"):
        sample(animated(model, MotionStrength(over_steps=parse_curve("0: 1, 5: 0"))), NOISE, SIGMAS)
    with pytest.raises(ValueError, match="expected a frame of the clip"):
        sample(animated(model, MotionStrength(over_frames=parse_curve("0: 1, 99: 0"))), NOISE, SIGMAS)
    with pytest.raises(ValueError, match="kind: expected effect or attention scale"):
        MotionStrength("volume")
    with pytest.raises(LoraFormatError, match="camera: its strength changes"):
        merge_motion_loras([camera(1.0, over_frames=RAMP)])
