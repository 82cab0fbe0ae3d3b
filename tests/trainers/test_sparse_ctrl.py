"""The SparseCtrl trainer on a small real UNet: it starts from nothing said, learns, resumes bit for bit, and its files are SparseCtrls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.model_management import load_models_gpu
from diffusers import SparseControlNetModel
from safetensors.torch import load_file
from torch import Tensor

from diffdirector.motion.formats import MotionFormatError
from diffdirector.motion.module import host_kernel, motion_model_from_state
from diffdirector.motion.scribbles import LINES, SOBEL, scribbles
from diffdirector.motion.sparse_export import diffusers_config
from diffdirector.motion.sparse_formats import SparseKind, read_sparse_ctrl
from diffdirector.motion.sparsectrl import load_sparse_ctrl, sparse_ctrl_from_state
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import randn, relative_error
from diffdirector.tests.host.sparse import in_original_naming, sparse_state, with_the_originals_norms
from diffdirector.tests.host.weights import NARROW_SDXL, TINY, load_unet, motion_state, unet_config, unet_state
from diffdirector.tests.trainers.test_kinds import VEGA
from diffdirector.trainers import host
from diffdirector.trainers.checkpoint import load_state
from diffdirector.trainers.config import ConfigError, SparseCtrlConfig
from diffdirector.trainers.dataset import Encoder, LatentClips
from diffdirector.trainers.loop import step_generator
from diffdirector.trainers.sparse_ctrl import (
    SparseCtrlTraining,
    check_trainable,
    encoder_for,
    new_sparse_ctrl_state,
    result_in,
    shown_frames,
    train_sparse_ctrl,
    with_scribbles,
)

FRAMES = 4
KINDS = [kind.name.lower() for kind in SparseKind]


def small_model() -> Any:
    return load_unet(unet_state(unet_config("sd15", **TINY)))


def motion() -> Any:
    return motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2")


def clips(count: int = 4) -> LatentClips:
    """Latents with scribbles after them."""
    return LatentClips(
        randn(count, FRAMES, 4 + 64, 4, 4, seed=5), randn(2, 8, 768, seed=6), torch.zeros(count, dtype=torch.long)
    )


def config(**changes: Any) -> SparseCtrlConfig:
    return SparseCtrlConfig(
        **(
            {
                "name": "s",
                "steps": 12,
                "batch_size": 2,
                "learning_rate": 1e-3,
                "save_every": 5,
                "gradient_checkpointing": False,
            }
            | changes
        )
    )


def loss_of(training: SparseCtrlTraining, seed: int = 9) -> float:
    with torch.no_grad():
        return sum(float(loss) for _, loss in training.losses(step_generator(seed, 0)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_if_nothing_were_shown_and_learns(kind: str, tmp_path: Path) -> None:
    with host.training():
        training = SparseCtrlTraining(small_model(), motion(), clips(), config(kind=kind))
        generator = step_generator(9, 0)
        x, text = clips().sample(generator, 2, 0.1)
        for _ in range(2):
            shown_frames(FRAMES, training.config, generator)
        with torch.no_grad():
            plain = float(training.denoiser.loss(x[:, :, :4], text, generator))
        before = loss_of(training)
        assert abs(before / plain - 1) < 1e-6
        training.run(tmp_path, True, lambda report: None)
        assert loss_of(training) < 0.95 * before


@pytest.mark.slow
def test_recomputing_activations_changes_no_gradient() -> None:
    def gradients(recomputed: bool) -> dict[str, torch.Tensor]:
        with host.training():
            training = SparseCtrlTraining(small_model(), motion(), clips(), config(gradient_checkpointing=recomputed))
            with torch.no_grad():
                for number, value in enumerate(training.parameters.values()):  # its outputs begin as zeros
                    value += 0.02 * randn(*value.shape, seed=number)
            for _, loss in training.losses(step_generator(0, 0)):
                loss.backward()
        return {name: value.grad for name, value in training.parameters.items() if value.grad is not None}

    kept, recomputed = gradients(False), gradients(True)
    assert len(kept) == len(recomputed) > 50
    assert all(torch.equal(recomputed[name], kept[name]) for name in kept)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_file_is_the_trained_sparsectrl(kind: str, tmp_path: Path) -> None:
    """Under the names that the original's files have, and it says in this pack what it said in training."""
    path = train_sparse_ctrl(small_model(), motion(), clips(), config(kind=kind, steps=3), tmp_path)
    names = in_original_naming(sparse_state(SparseKind[kind.upper()]))
    assert {key: tuple(value.shape) for key, value in load_file(path).items()} == {key: tuple(value.shape) for key, value in names.items()}  # fmt: skip
    loaded = load_sparse_ctrl(str(path))
    with host.training():
        training = SparseCtrlTraining(small_model(), motion(), clips(), config(kind=kind, steps=3))
        training.run(tmp_path, True, lambda report: None)  # it is at its end already
    conditions = randn(3, loaded.config.kind.channels, *([64, 64] if kind == "scribble" else [8, 8]))

    def said(encoder: Any) -> Tensor:
        text, times = randn(FRAMES, 8, 768, seed=3), torch.full((FRAMES,), 400.0)
        return encoder.encode(conditions, torch.ones(3), [0, -1, -1, 1], times, text, FRAMES, host_kernel(), 1.0)[
            "middle"
        ][0]

    with torch.no_grad():
        expected = said(training.encoder)
        assert expected.abs().max() > 0
        assert relative_error(said(loaded.patcher.model), expected) < 2e-3  # the file is in half precision


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_takes_the_folder_that_is_written_for_it(kind: str, tmp_path: Path) -> None:
    """Its class, with the original's norms, says what ours says of the same file."""
    settings = config(kind=kind, steps=2, layout="diffusers")
    path = train_sparse_ctrl(small_model(), motion(), clips(), settings, tmp_path)
    assert path == result_in(tmp_path, settings) and {file.name for file in path.parent.iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    theirs = with_the_originals_norms(SparseControlNetModel.from_pretrained(path.parent).eval())
    ours = load_sparse_ctrl(str(path))
    load_models_gpu([ours.patcher])
    ours.patcher.model.float()
    side = 64 if kind == "scribble" else 8
    conditions = randn(2, ours.config.kind.channels, side, side)
    conditions[0, -1], conditions[1] = 1, 0
    text, shown = randn(FRAMES, 8, 768, seed=3), [-1, 0, -1, -1]
    video = conditions[shown][None].transpose(1, 2)
    with torch.no_grad():
        found = ours.patcher.model.encode(
            conditions, torch.ones(2), shown, torch.full((FRAMES,), 500.0), text, FRAMES, host_kernel(), 1.0
        )
        skips, middle = theirs(
            torch.zeros(1, 4, FRAMES, 8, 8), 500, text, video[:, :-1], conditioning_mask=video[:, -1:], return_dict=False
        )  # fmt: skip
    for part, expected in zip((*found["output"], *found["middle"]), (*skips, middle), strict=True):
        assert expected.abs().max() > 0 and relative_error(part, expected) < 1e-5
    shapes = {name: tuple(value.shape) for name, value in load_file(path).items()}
    assert shapes == {name: tuple(value.shape) for name, value in sparse_state(SparseKind[kind.upper()]).items()}


def test_what_diffusers_has_no_counterpart_of_keeps_the_originals_layout() -> None:
    whole, _ = read_sparse_ctrl(sparse_state(SparseKind.RGB))
    assert diffusers_config(whole)["down_block_types"] == ["CrossAttnDownBlockMotion", "DownBlockMotion"]
    (first, second), motions = whole.levels, dict(list(whole.motion.sites.items())[:1])
    for changes, message in (
        ({"middle_depth": -1}, "a middle with attention"),
        ({"levels": (first, (second[0], 2))}, "levels of as many layers"),
        ({"levels": ((320, 2), (320, 2)), "depths": (1, 0, 0, 0)}, "layers of a level that are alike"),
        ({"motion": replace(whole.motion, sites=motions)}, "a motion module after each layer"),
    ):
        with pytest.raises(MotionFormatError, match=f"layout: .* expects {message}.* Choose the original's layout"):
            diffusers_config(replace(whole, **changes))


@pytest.mark.slow
def test_interrupted_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Cancel(Exception):
        pass

    def cancel(report: Any) -> None:
        if report.step == 4:
            raise Cancel

    settings = config(steps=7, ema_decay=0.9)
    whole = load_file(train_sparse_ctrl(small_model(), motion(), clips(), settings, tmp_path / "whole"))
    with pytest.raises(Cancel):
        train_sparse_ctrl(small_model(), motion(), clips(), settings, tmp_path / "parts", on_step=cancel)
    assert load_state(tmp_path / "parts" / "s.training")["step"] == 4
    resumed = load_file(train_sparse_ctrl(small_model(), motion(), clips(), settings, tmp_path / "parts"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_one_kind_starts_from_the_other(tmp_path: Path) -> None:
    rgb = load_sparse_ctrl(str(train_sparse_ctrl(small_model(), motion(), clips(), config(steps=3), tmp_path)))
    with host.training():
        other = SparseCtrlTraining(small_model(), motion(), clips(), config(kind="scribble"), rgb).encoder.state_dict()
        fresh = SparseCtrlTraining(small_model(), motion(), clips(), config(kind="scribble")).encoder.state_dict()
    known = rgb.patcher.model.state_dict()
    stem = train_sparse_ctrl(
        small_model(), motion(), clips(), config(name="t", kind="scribble", steps=2, trainable=("cond_embedding",)), tmp_path, start_from=rgb
    )  # fmt: skip
    before, after = load_file(tmp_path / "s.safetensors"), load_file(stem)
    changed = {key for key, value in after.items() if key not in before or not torch.equal(value, before[key])}
    assert changed == {key for key in after if "cond_embedding" in key}
    for key, value in other.items():
        assert torch.equal(value, fresh[key] if key.startswith("input_hint_block.") else known[key].float()), key


@pytest.mark.slow
def test_a_unet_without_a_middle_gets_one_that_says_nothing_yet() -> None:
    model = load_unet(unet_state(unet_config("sd15", **TINY | {"transformer_depth_middle": -2})))
    state = new_sparse_ctrl_state(model, SparseKind.RGB, 16, step_generator(0, 0))
    assert "mid_block.resnets.0.conv1.weight" in state and "mid_block.resnets.1.conv1.weight" not in state
    with host.training():
        without = {
            key: value for key, value in motion_state(tiny_motion_config()).items() if not key.startswith("mid_block.")
        }
        training = SparseCtrlTraining(model, motion_model_from_state(without, "tiny, no middle"), clips(), config())
        assert training.control.config.middle_depth == -1
        assert loss_of(training) > 0


def test_shown_frames() -> None:
    """Ends in the share that is asked for; others everywhere, one to so many, none of them twice."""
    drawn = [shown_frames(8, config(ends=0.5, shown=3), step_generator(0, number)) for number in range(600)]
    assert all(len(set(places)) == len(places) and set(places) <= set(range(8)) for places in drawn)
    ends = sum(places in ([0], [7], [0, 7]) for places in drawn) / len(drawn)
    assert 0.45 < ends < 0.65  # a few of the others are ends too
    assert {len(places) for places in drawn} == {1, 2, 3} and {place for places in drawn for place in places} == set(
        range(8)
    )
    assert all(
        places in ([0], [7], [0, 7])
        for places in (shown_frames(8, config(ends=1.0), step_generator(1, n)) for n in range(30))
    )


def test_scribbles_go_with_their_latents() -> None:
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    plain = Encoder(lambda frames: frames[:, :1, ::8, ::8].expand(-1, 4, -1, -1), lambda text: torch.zeros(1), "k", "t")
    encoder = with_scribbles(plain, LINES, 0.1)
    latents = encoder.latents(pixels)
    assert latents.shape == (2, 68, 2, 2) and torch.equal(latents[:, :4], plain.latents(pixels))
    expected = scribbles(pixels.movedim(1, -1), LINES, 0.1)[..., 0]
    assert torch.equal(torch.nn.functional.pixel_shuffle(latents[:, 4:], 8)[:, 0], expected)
    assert len({encoder.key, plain.key, with_scribbles(plain, LINES, 0.2).key}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "depth"}, "kind: expected 'rgb' or 'scribble', found 'depth'"),
        ({"ends": 1.5}, "ends: expected from 0 to 1"),
        ({"shown": 0}, "shown: expected at least 1"),
        ({"layout": "kohya"}, "layout: expected 'original' or 'diffusers', found 'kohya'"),
        ({"scribble_method": "hed"}, "scribble_method: expected 'lines' or .* found 'hed'"),
        ({"trainable": ()}, "trainable: expected at least one"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.slow
def test_what_it_cannot_start_from_or_see_is_said() -> None:
    wide = sparse_ctrl_from_state(sparse_state(SparseKind.RGB, (320, 640)), "wide")
    with (
        host.training(),
        pytest.raises(ConfigError, match="start_from: expected .*; wide is made for one of another shape"),
    ):
        SparseCtrlTraining(small_model(), motion(), clips(), config(), wide)
    start = sparse_ctrl_from_state(sparse_state(SparseKind.RGB), "start")
    check_trainable(small_model(), motion(), 32, config(max_frames=8), start)  # it keeps its own
    for frames, max_frames, limit in ((33, 64, "32 frames, as many as tiny v2"), (9, 8, "8 frames, as many as the SparseCtrl")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"expected clips of at most {limit}.* found {frames}"):
            check_trainable(small_model(), motion(), frames, config(max_frames=max_frames), None)


def test_scribbles_are_made_as_the_settings_say() -> None:
    plain = Encoder(lambda frames: frames[:, :1, ::8, ::8].expand(-1, 4, -1, -1), lambda text: torch.zeros(1), "k", "t")
    assert encoder_for(config(), plain) is plain
    settings = config(kind="scribble", scribble_method=SOBEL, scribble_threshold=0.3)
    assert encoder_for(settings, plain).key == with_scribbles(plain, SOBEL, 0.3).key


@pytest.mark.slow
def test_what_it_cannot_be_trained_on_is_said(tmp_path: Path) -> None:
    plain = LatentClips(clips().latents[:, :, :4], clips().text, clips().caption_of)
    with pytest.raises(ValueError, match=r"clips: expected latents with a scribble .* 68 channels, found 4"):
        train_sparse_ctrl(small_model(), motion(), plain, config(kind="scribble"), tmp_path)
    train_sparse_ctrl(small_model(), motion(), plain, config(steps=1), tmp_path)
    with pytest.raises(ConfigError, match=r"trainable: expected parts of the weights' names, found \('typo',\)"):
        train_sparse_ctrl(small_model(), motion(), clips(), config(trainable=("typo",)), tmp_path)
    with pytest.raises(ValueError, match="SparseCtrls are trained on SD1.5 checkpoints; this one is SDXL"):
        train_sparse_ctrl(
            load_unet(unet_state(unet_config("sdxl", **NARROW_SDXL, **VEGA))), motion(), clips(), config(), tmp_path
        )
