"""UNet, motion model and SparseCtrl together, through the host's sampling, against diffusers' with the original's norms.

The weights are "quiet": little is written to the residual streams, so that the epsilon of every norm that reads them
shows. A wrong one costs 1e-4 or more; what agrees does so to 3e-6. The noise schedule and Euler's steps are the test's own.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from typing import Any

import comfy.sd
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from diffdirector.motion.context import apply_context_windows
from diffdirector.motion.formats import Version
from diffdirector.motion.module import motion_model_from_state
from diffdirector.motion.sparse_formats import SparseKind
from diffdirector.motion.sparsectrl import SparseControl, sparse_ctrl_from_state
from diffdirector.motion.splice import apply_motion_model
from diffdirector.motion.windows import Windows, plan
from diffdirector.tests.host.checkpoints import taesd_state, tiny_motion_config
from diffdirector.tests.host.evaluate import randn, relative_error
from diffdirector.tests.host.oracle import diffusers_unet, oracle_unet
from diffdirector.tests.host.sparse import SD15_CHANNELS, TINY_CHANNELS, diffusers_sparse, sparse_oracle, sparse_state
from diffdirector.tests.host.weights import TINY, load_unet, motion_config, motion_state, unet_config, unet_state
from diffdirector.tests.motion.test_context import NOTHING, TEXT, controlled, sample

KINDS = list(SparseKind)
TOLERANCE = 1e-5
FRAMES, SIDE = 6, 4
INDICES, PLACES = "0, -2", [0, -2]
GUIDANCE, SCALE = 2.0, 0.18215  # of sample(), and of SD1.5's latents
ALPHAS = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear").alphas_cumprod  # as v3 is configured
STEM = "controlnet_cond_embedding"

# The layers that write to a stream, in the names of the host, of AnimateDiff and of diffusers; those that only pass one on.
WRITE = (
    r"^conv_in|^input_blocks\.0\.0|in_layers\.2|conv1|emb_layers\.1|time_emb_proj|out_layers\.3|conv2|proj_in|to_out\.0"
    rf"|net\.2|{STEM}|{STEM}\.conv_out"
)
PASS = r"skip_connection|conv_shortcut|\.op|\.conv|proj_out|controlnet_down_blocks\.\d+|controlnet_mid_block"
LOUD = re.compile(rf"({WRITE})\.(weight|bias)$|({PASS})\.bias$")


def quiet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for key, value in state.items():
        if LOUD.search(key):
            value.mul_(0.01)
    return state


class Networks:
    """The same tensors for both sides. The SparseCtrls of both kinds share all but their stems."""

    def __init__(self, config: dict[str, Any], motion: dict[str, Tensor], channels: tuple[int, ...]) -> None:
        self.config, self.motion, self.channels = config, quiet(motion), channels
        self.model = apply_motion_model(load_unet(quiet(unet_state(config))), motion_model_from_state(motion, "v3"))
        encoder = quiet(sparse_state(SparseKind.RGB, channels))
        stems = {kind: quiet(sparse_state(kind)) for kind in KINDS}
        self.sparse = {
            kind: {key: value for key, value in encoder.items() if STEM not in key}
            | {key: value for key, value in stem.items() if STEM in key}
            for kind, stem in stems.items()
        }

    def control(self, kind: SparseKind) -> SparseControl:
        return sparse_ctrl_from_state(self.sparse[kind], kind.name)

    def unet_oracle(self, build: Callable[..., nn.Module] = oracle_unet) -> nn.Module:
        return build(self.config, self.model.model.diffusion_model.state_dict(), self.motion)

    def sparse_oracle(self, kind: SparseKind, build: Callable[..., nn.Module] = sparse_oracle) -> nn.Module:
        return build(kind, self.sparse[kind], self.channels)


def added(sparse: nn.Module, x: Tensor, step: int, seen: Tensor, strength: float = 1.0) -> list[Tensor]:
    """To the UNet's skips and middle, without and with the prompt. seen: conditions and mask [1, c + 1, frames, h, w]."""
    video, texts = for_both(x)
    skips, middle = sparse(
        video, step, texts, seen[:, :-1], strength, conditioning_mask=seen[:, -1:], return_dict=False
    )
    return [*skips, middle]


def noise_in(unet: nn.Module, x: Tensor, step: int, added: list[Tensor]) -> Tensor:
    """In x [frames, 4, h, w], guided."""
    video, texts = for_both(x * ALPHAS[step] ** 0.5)
    *skips, middle = added
    given = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
    without, wanted = unet(video, step, texts, **given).sample.transpose(1, 2)
    return without + GUIDANCE * (wanted - without)


def for_both(x: Tensor) -> tuple[Tensor, Tensor]:
    """The clip twice [2, 4, frames, h, w], and the text of each frame, without and with the prompt."""
    return x.transpose(0, 1).expand(2, -1, -1, -1, -1), torch.cat([NOTHING, TEXT]).repeat_interleave(len(x), 0)


def sigma(step: int) -> Tensor:
    return ((1 - ALPHAS[step]) / ALPHAS[step]).sqrt()


def noise_found(model: Any, control: SparseControl | None, noise: Tensor, step: int) -> Tensor:
    """What the host finds in noise at this step, from one step of sampling."""
    start = sigma(step)
    clean = sample(model, noise, torch.stack([start, torch.tensor(0.0)]), **(controlled(control) if control else {}))
    return noise - SCALE * clean / start


def pictures(count: int, side: int = SIDE) -> Tensor:
    return torch.rand(count, 3, 8 * side, 8 * side, generator=torch.Generator().manual_seed(8))


def seen_by_oracle(kind: SparseKind, given: Tensor, vae: Any, frames: int, places: list[int] = PLACES) -> Tensor:
    """Conditions and mask, both zero wherever no picture is, [1, c + 1, frames, h, w]."""
    conditions = SCALE * vae.encode(given.movedim(1, -1)) if kind is SparseKind.RGB else given
    video = torch.zeros(frames, kind.channels, *conditions.shape[2:])
    video[places, :-1], video[places, -1] = conditions, 1
    return video.transpose(0, 1)[None]


@pytest.fixture(scope="module")
def tiny() -> Networks:
    return Networks(unet_config("sd15", **TINY), motion_state(tiny_motion_config(Version.V3)), TINY_CHANNELS)


@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=taesd_state(seed=3))


@pytest.fixture(scope="module")
def controls(tiny) -> dict[SparseKind, SparseControl]:
    return {kind: tiny.control(kind) for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_evaluation(tiny, controls, vae, kind: SparseKind) -> None:
    """With guidance, so that both halves of the batch count."""
    noise, seen = randn(FRAMES, 4, SIDE, SIDE), seen_by_oracle(kind, pictures(2), vae, FRAMES)
    found = noise_found(tiny.model, controls[kind].conditioned(pictures(2), INDICES, vae=vae), noise, 500)
    x, unet, sparse = noise * sigma(500), tiny.unet_oracle(), tiny.sparse_oracle(kind)
    expected = added(sparse, x, 500, seen)
    assert relative_error(found, noise_in(unet, x, 500, expected)) < TOLERANCE

    def off(unet: nn.Module = unet, sparse: nn.Module = sparse, seen: Tensor = seen) -> float:
        return relative_error(found, noise_in(unet, x, 500, added(sparse, x, 500, seen)))

    conditions, mask = seen.split([kind.channels - 1, 1], 1)
    differences = {
        "no SparseCtrl": relative_error(found, noise_in(unet, x, 500, [0 * part for part in expected])),
        "with the prompt alone": relative_error(found, noise_in(unet, x, 500, [halved(part) for part in expected])),
        "a frame later": off(seen=seen.roll(1, 2)),
        "no mask": off(seen=torch.cat([conditions, 0 * mask], 1)),
        "a mask at every frame": off(seen=torch.cat([conditions, torch.ones_like(mask)], 1)),
        "the UNet's norms as diffusers publishes them": off(unet=tiny.unet_oracle(diffusers_unet)),
        "SparseCtrl's norms as diffusers publishes them": off(sparse=tiny.sparse_oracle(kind, diffusers_sparse)),
    }
    for part, name in (
        (unet, "down_blocks.1.motion_modules.0.norm.norm"),
        (unet, "up_blocks.1.motion_modules.1.transformer_blocks.0.norm2"),
        (unet, "mid_block.resnets.0.norm1"),
        (sparse, "down_blocks.1.motion_modules.0.norm.norm"),
        (sparse, "down_blocks.0.motion_modules.0.transformer_blocks.0.norm1"),
        (sparse, "mid_block.resnets.1.norm1"),
    ):
        norm: Any = part.get_submodule(name)
        right = norm.eps
        norm.eps = {1e-5: 1e-6, 1e-6: 1e-5}[right]
        differences[f"another epsilon in {name} of {type(part).__name__}"] = off()
        norm.eps = right
    assert min(differences.values()) > 5 * TOLERANCE, differences


def halved(part: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(part[: len(part) // 2]), part[len(part) // 2 :]])


@pytest.fixture
def full_size() -> Iterator[Networks]:
    yield Networks(unet_config("sd15"), motion_state(motion_config(Version.V3)), SD15_CHANNELS)
    gc.collect()


@pytest.mark.slow
@pytest.mark.full_size
def test_one_evaluation_at_full_size(full_size, vae) -> None:
    """Of both kinds in a chain, with different pictures at different frames."""
    noise, given, step = randn(8, 4, 8, 8), pictures(4, side=8).split(2), 500
    x, places = noise * sigma(step), ([0, -2], [3, 4])
    control, expected = None, []
    for kind, shown, at in zip(KINDS, given, places, strict=True):
        own = full_size.control(kind).conditioned(shown, f"{at[0]} {at[1]}", vae=vae, strength=0.8)
        control = own.set_previous_controlnet(control)
        seen = seen_by_oracle(kind, shown, vae, len(x), at)
        expected.append(added(full_size.sparse_oracle(kind), x, step, seen, 0.8))
    found, unet = noise_found(full_size.model, control, noise, step), full_size.unet_oracle()
    assert (
        relative_error(found, noise_in(unet, x, step, [sum(parts) for parts in zip(*expected, strict=True)]))
        < TOLERANCE
    )
    assert relative_error(found, noise_in(unet, x, step, expected[0])) > 1e-2  # the check can fail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "strength", "start", "end", "at_work"),
    [
        (SparseKind.RGB, 0.7, 0.0, 1.0, [True, True, True]),
        (SparseKind.RGB, 1.6, 0.0, 0.5, [True, False, False]),
        (SparseKind.SCRIBBLE, 1.6, 0.3, 0.8, [False, True, False]),
    ],
)
def test_a_whole_sampling(tiny, controls, vae, kind, strength, start, end, at_work: list[bool]) -> None:
    """With a strength and a part of the sampling; its steps lie at 10, 60 and 90 % of it."""
    steps, noise = (900, 400, 100), randn(FRAMES, 4, SIDE, SIDE)
    sigmas = torch.stack([*map(sigma, steps), torch.tensor(0.0)])
    unet, sparse, seen = tiny.unet_oracle(), tiny.sparse_oracle(kind), seen_by_oracle(kind, pictures(2), vae, FRAMES)

    def expected(at_work: list[bool]) -> Tensor:
        x = noise * sigmas[0]
        for step, works, now, after in zip(steps, at_work, sigmas[:-1], sigmas[1:], strict=True):
            x = x + noise_in(unet, x, step, added(sparse, x, step, seen, strength * works)) * (after - now)
        return x / SCALE

    control = controls[kind].conditioned(pictures(2), INDICES, vae=vae, strength=strength, percent_range=(start, end))
    found = sample(tiny.model, noise, sigmas, **controlled(control))
    assert relative_error(found, expected(at_work)) < TOLERANCE
    for step in range(3):
        other = [works is not (number == step) for number, works in enumerate(at_work)]
        assert relative_error(found, expected(other)) > 5 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [1, 2])
def test_windows_without_a_picture_are_those_of_strength_0_bit_for_bit(
    tiny, controls, vae, kind: SparseKind, at_once: int
) -> None:
    windows, noise = Windows(4, 1), randn(10, 4, SIDE, SIDE)
    model = apply_context_windows(tiny.model, windows, at_once=at_once)

    def found(strength: float) -> Tensor:
        control = controls[kind].conditioned(pictures(1), "1", vae=vae, strength=strength)
        return noise_found(model, control, noise, 500)

    at_0, at_1 = found(0.0), found(1.0)
    assert torch.equal(at_0, noise_found(model, None, noise, 500))
    touched = {frame for window in plan(windows, 10).windows if 1 in window for frame in window}
    assert 1 < len(touched) < 7
    for frame in range(10):
        assert torch.equal(at_1[frame], at_0[frame]) is (frame not in touched)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_at_frames_that_are_not_named_change_nothing(tiny, controls, vae, kind: SparseKind) -> None:
    """A clip of pictures, of which the indices take some."""
    clip, noise = pictures(FRAMES), randn(FRAMES, 4, SIDE, SIDE)

    def found(*changed: int) -> Tensor:
        given = clip.clone()
        given[list(changed)] = 0.5
        return noise_found(tiny.model, controls[kind].conditioned(given, INDICES, vae=vae), noise, 500)

    expected = found()
    assert torch.equal(found(1, 2, 3, 5), expected)
    assert not torch.equal(found(0), expected) and not torch.equal(found(4), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_without_a_picture_have_no_condition_and_no_mask(tiny, controls, vae, kind: SparseKind) -> None:
    """By the first skip, which no motion module has reached. A black picture is not the same as none: its mask is set."""
    noise, black = randn(FRAMES, 4, SIDE, SIDE), torch.zeros_like(pictures(2))
    added: list[Tensor] = []
    unet = tiny.model.model.diffusion_model
    hook = unet.register_forward_pre_hook(
        lambda _, args, kwargs: added.append(kwargs["control"]["output"][0].clone()), with_kwargs=True
    )
    for given in (pictures(2), black):
        noise_found(tiny.model, controls[kind].conditioned(given, INDICES, vae=vae), noise, 500)
    hook.remove()
    empty = torch.zeros_like(seen_by_oracle(kind, black, vae, FRAMES))
    skips, _ = tiny.sparse_oracle(kind)(
        torch.zeros(1, 4, FRAMES, SIDE, SIDE), 500, TEXT.expand(FRAMES, -1, -1), empty[:, :-1], conditioning_mask=empty[:, -1:], return_dict=False
    )  # fmt: skip
    for found in added:
        for half in found.chunk(2):
            off = [relative_error(frame, expected) for frame, expected in zip(half, skips[0], strict=True)]
            assert [error < TOLERANCE for error in off] == [False, True, True, True, False, True]
            assert min(off[0], off[4]) > 1e-3
