"""The motion-module trainer on a small real UNet: it learns, resumes bit for bit, and writes files that others read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from diffdirector.motion.formats import Version, sinusoidal_encoding
from diffdirector.motion.module import load_motion_model, motion_model_from_state
from diffdirector.motion.splice import apply_motion_model
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import evaluate, randn, relative_error
from diffdirector.tests.host.oracle import oracle_unet
from diffdirector.tests.host.pia import pia_state
from diffdirector.tests.host.provision import ROOT
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state
from diffdirector.trainers import host
from diffdirector.trainers.checkpoint import load_state
from diffdirector.trainers.config import ConfigError, MotionModuleConfig
from diffdirector.trainers.dataset import LatentClips
from diffdirector.trainers.errors import TrainingDiverged
from diffdirector.trainers.loop import step_generator
from diffdirector.trainers.motion_module import (
    MotionModuleTraining,
    check_length,
    lengthened,
    train_motion_module,
)

FRAMES = 4


def small_model():
    return load_unet(unet_state(unet_config("sd15", **TINY)))


def drifting_clips(count: int = 4, side: int = 4) -> LatentClips:
    """Latents of one pattern each that shifts by one cell per frame: something to learn."""
    pictures = randn(count, 4, side, side, seed=5)
    latents = torch.stack([torch.roll(pictures, frame, dims=-1) for frame in range(FRAMES)], dim=1)
    return LatentClips(latents, randn(2, 8, 768, seed=6), torch.zeros(count, dtype=torch.long))


def config(**changes) -> MotionModuleConfig:
    settings = {
        "name": "drift",
        "steps": 20,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "save_every": 5,
        "max_frames": 8,
        "gradient_checkpointing": False,
    }
    return MotionModuleConfig(**(settings | changes))


@pytest.mark.slow
def test_twenty_steps_lower_a_fixed_validation_loss(tmp_path: Path) -> None:
    with host.training():
        training = MotionModuleTraining(small_model(), drifting_clips(), config())
        before = training.validation_loss()
        assert training.validation_loss() == before
        training.run(tmp_path, True, lambda report: None)
        assert training.validation_loss() < 0.9 * before


@pytest.mark.slow
def test_recomputing_activations_changes_no_gradient_and_repeats_nothing_costly() -> None:
    start = motion_model_from_state(motion_state(tiny_motion_config()), "tiny")

    def gradients(recomputed: bool) -> tuple[dict[str, torch.Tensor], dict[Any, int]]:
        with host.training(), FlopCounterMode(display=False) as work:
            training = MotionModuleTraining(
                small_model(), drifting_clips(), config(gradient_checkpointing=recomputed), start
            )
            training.loss(training.clips, step_generator(0, 0)).backward()
        found = {name: value.grad for name, value in training.parameters.items() if value.grad is not None}
        return found, work.get_flop_counts()["Global"]

    (kept, once), (recomputed, work) = gradients(False), gradients(True)
    assert len(kept) == len(recomputed) > 50
    assert all(relative_error(recomputed[name], kept[name]) < 1e-5 for name in kept)
    convolution, matrix = torch.ops.aten.convolution, torch.ops.aten.addmm
    assert once[convolution] <= work[convolution] < 1.05 * once[convolution]  # all but those of one position
    matrices = [sum(found[kind] for kind in (matrix, torch.ops.aten.mm)) for found in (work, once)]
    assert 1 < matrices[0] / matrices[1] < 1.31  # wide ones too


@pytest.mark.slow
def test_untrained_module_moves_nothing_and_the_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    model = small_model()
    x, context = randn(FRAMES, 4, 8, 8), randn(1, 8, 768, seed=1)
    plain = evaluate(model, x, context)
    unet = model.model.diffusion_model
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with host.training():
        fresh = MotionModuleTraining(model, drifting_clips(), config()).handle
    assert torch.equal(evaluate(apply_motion_model(model, fresh), x, context), plain)
    train_motion_module(model, drifting_clips(), config(steps=2), tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
    assert torch.equal(evaluate(model, x, context), plain)


@pytest.mark.slow
def test_only_the_chosen_weights_are_trained(tmp_path: Path) -> None:
    start = motion_model_from_state(motion_state(tiny_motion_config()), "start")
    chosen = config(steps=2, trainable=("attention_blocks.0.to_q",))
    path = train_motion_module(small_model(), drifting_clips(), chosen, tmp_path, start_from=start)
    trained, original = load_file(path), motion_state(tiny_motion_config())
    changed = {key for key, value in trained.items() if not torch.equal(value, original[key].to(value.dtype))}
    assert changed == {key for key in original if "attention_blocks.0.to_q" in key}


@pytest.mark.parametrize(
    ("spelling", "part"), [(("motion_modules.",), "motion_modules."), (("to_q",), "to_q"), (("to_q.",), "to_q.")]
)
def test_weights_are_chosen_as_other_trainers_spell_them(spelling: tuple[str, ...], part: str) -> None:
    """The original AnimateDiff's trainable_modules, Evo-Tuner's, and what its importer makes of them."""
    start = motion_model_from_state(motion_state(tiny_motion_config()), "start")
    with host.training():
        training = MotionModuleTraining(small_model(), drifting_clips(), config(trainable=spelling), start)
    names = {key for key in motion_state(tiny_motion_config()) if not key.endswith(".pe")}
    chosen = {key for key in names if part in key}
    assert set(training.parameters) == chosen and (chosen == names) == (part == "motion_modules.")


def test_weights_that_are_in_none_are_refused() -> None:
    with host.training(), pytest.raises(ConfigError, match="trainable: .* found attn_temp, which are in none"):
        MotionModuleTraining(small_model(), drifting_clips(), config(trainable=("attn_temp",)))


@pytest.mark.slow
@pytest.mark.parametrize("version", [Version.V1, Version.V2, Version.V3])
def test_a_checkpoints_encoding_goes_on_for_longer_clips(version: Version, tmp_path: Path) -> None:
    """What it has stays bit for bit; the file is of the same kind, and its model moves clips of that length."""
    state = motion_state(tiny_motion_config(version), dtype=torch.float16)
    start = motion_model_from_state(state, "start")
    still = randn(1, 48, 4, 8, 8, seed=5)
    clips = LatentClips(still, randn(2, 8, 768, seed=6), torch.zeros(1, dtype=torch.long))
    longer = config(steps=1, batch_size=1, max_frames=48, save_every=0)
    path = train_motion_module(small_model(), clips, longer, tmp_path, start_from=start)
    handle = load_motion_model(str(path))
    assert (handle.config.version, handle.config.max_frames) == (version, 48)
    for key, value in load_file(path).items():
        if key.endswith(".pe"):
            length = state[key].shape[1]
            assert length < 48 and torch.equal(value[:, :length], state[key].float())
            assert torch.equal(value[:, length:], sinusoidal_encoding(48, value.shape[2])[:, length:])


def test_an_encoding_is_not_shortened_and_another_one_not_guessed() -> None:
    state = motion_state(tiny_motion_config())
    assert all(torch.equal(value, state[key]) for key, value in lengthened(state, 16, "start").items())
    repeated = {key: value.repeat_interleave(2, 1) if key.endswith(".pe") else value for key, value in state.items()}
    assert lengthened(repeated, 64, "tuned").keys() == state.keys()
    with pytest.raises(
        ConfigError, match=r"max_frames: tuned has a positional encoding of its own for 64 frames, .* on to 65"
    ):
        lengthened(repeated, 65, "tuned")


def test_clips_that_it_can_never_see_are_refused() -> None:
    start = motion_model_from_state(motion_state(tiny_motion_config()), "start")
    with pytest.raises(ConfigError, match="max_frames: expected at least 33, .* the motion model takes 32"):
        check_length(33, config(max_frames=8), start)
    check_length(33, config(max_frames=33), start)
    with host.training(), pytest.raises(ConfigError, match="max_frames: expected at least 4, .* takes 3"):
        MotionModuleTraining(small_model(), drifting_clips(), config(max_frames=3))


@pytest.mark.parametrize(("frames", "version"), [(24, Version.V1), (32, Version.V3)])
def test_a_new_module_without_a_middle_is_v1s_or_v3s(frames: int, version: Version) -> None:
    with host.training():
        training = MotionModuleTraining(small_model(), drifting_clips(), config(max_frames=frames, middle=False))
    assert training.handle.config.version is version


def test_a_pia_is_no_start(tmp_path: Path) -> None:
    """Its convolution, which sees the picture, would be lost in the file."""
    start = motion_model_from_state(pia_state(), "pia.ckpt")
    with pytest.raises(
        ConfigError, match="found pia.ckpt, a PIA.*Start from an AnimateDiff motion model, or from none"
    ):
        train_motion_module(small_model(), drifting_clips(), config(steps=1), tmp_path, start_from=start)


@pytest.mark.slow
def test_interrupted_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Cancel(Exception):
        pass

    def cancel(report) -> None:
        if report.step == 7:
            raise Cancel

    settings = config(steps=12, ema_decay=0.9, warmup_steps=3, lr_schedule="cosine", image_fraction=0.3, accumulate=2)
    whole = load_file(train_motion_module(small_model(), drifting_clips(), settings, tmp_path / "whole"))
    with pytest.raises(Cancel):
        train_motion_module(small_model(), drifting_clips(), settings, tmp_path / "parts", on_step=cancel)
    assert load_state(tmp_path / "parts" / "drift.training")["step"] == 7
    assert (tmp_path / "parts" / "drift.safetensors").exists()
    resumed = load_file(train_motion_module(small_model(), drifting_clips(), settings, tmp_path / "parts"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_a_diverged_run_keeps_what_it_had_and_says_why(tmp_path: Path) -> None:
    clips = drifting_clips()
    whole = load_file(train_motion_module(small_model(), clips, config(steps=3), tmp_path / "whole"))

    def spoil(report) -> None:
        if report.step == 3:
            with torch.inference_mode():
                clips.latents.fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match=r"Step 4: .*until step 3 is kept. Lower learning_rate"):
        train_motion_module(small_model(), clips, config(steps=9), tmp_path / "spoilt", on_step=spoil)
    kept = load_file(tmp_path / "spoilt" / "drift.safetensors")
    assert all(torch.equal(value, whole[key]) for key, value in kept.items())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_checkpoint_in_half_precision_is_trained_on(tmp_path: Path, precision: str) -> None:
    model = load_unet(unet_state(unet_config("sd15", **TINY)), torch.float16)
    losses = []
    train_motion_module(
        model,
        drifting_clips(),
        config(steps=2, precision=precision),
        tmp_path,
        on_step=lambda report: losses.append(report.losses),
    )
    expected: list = []
    train_motion_module(
        small_model(),
        drifting_clips(),
        config(steps=2),
        tmp_path / "full",
        on_step=lambda report: expected.append(report.losses),
    )
    for found, full in zip(losses, expected, strict=True):
        assert abs(found["loss"] / full["loss"] - 1) < 0.02


_KILLED = """
import os, signal, sys
sys.path.insert(0, {helpers!r})
from as_package import load_package
load_package()
from diffdirector.tests.host.inprocess import boot
boot(["--cpu"])
from pathlib import Path
from diffdirector.tests.trainers.test_motion_module import config, drifting_clips, small_model
from diffdirector.trainers.motion_module import train_motion_module
def kill(report):
    if report.step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
train_motion_module(small_model(), drifting_clips(), config(steps=10), Path({folder!r}), on_step=kill)
"""


@pytest.mark.slow
def test_kill_9_loses_only_the_steps_since_the_last_save(tmp_path: Path) -> None:
    whole = load_file(train_motion_module(small_model(), drifting_clips(), config(steps=10), tmp_path / "whole"))
    script = _KILLED.format(helpers=str(ROOT / "tests" / "host"), folder=str(tmp_path / "killed"))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert load_state(tmp_path / "killed" / "drift.training")["step"] == 5
    resumed = load_file(train_motion_module(small_model(), drifting_clips(), config(steps=10), tmp_path / "killed"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_saved_module_gives_the_same_prediction_in_diffusers(tmp_path: Path) -> None:
    model, unet, shape = small_model(), unet_state(unet_config("sd15", **TINY)), unet_config("sd15", **TINY)
    path = train_motion_module(model, drifting_clips(), config(steps=5), tmp_path)
    x, context = randn(FRAMES, 4, 8, 8), randn(1, 8, 768, seed=1)
    animated = apply_motion_model(model, load_motion_model(str(path)))
    state = {key: value.float() for key, value in load_file(path).items()}
    theirs = oracle_unet(shape, unet, state)
    expected = theirs(x.unsqueeze(0).transpose(1, 2), 500, context.expand(FRAMES, -1, -1)).sample[0].transpose(0, 1)
    assert relative_error(evaluate(animated, x, context), expected) < 1e-5
    assert relative_error(evaluate(model, x, context), expected) > 1e-3
    with safe_open(path, "pt") as file:
        assert file.metadata()["trained_steps"] == "5"


@pytest.mark.slow
def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    train_motion_module(small_model(), drifting_clips(), config(steps=1), tmp_path)
    with pytest.raises(ConfigError, match="seed 1, AdamW and .* found seed 0"):
        train_motion_module(small_model(), drifting_clips(), config(steps=2, seed=1), tmp_path)
    train_motion_module(small_model(), drifting_clips(), config(steps=1, seed=1), tmp_path, resume=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, "name: expected a file name without folders"),
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected more than 0"),
        ({"lr_schedule": "step"}, "lr_schedule: expected 'constant' or 'cosine', found 'step'"),
        ({"image_fraction": 1.0}, "image_fraction: expected from 0 to below 1"),
        ({"trainable": ()}, "trainable: expected at least one"),
        ({"max_frames": -1}, "max_frames: expected 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)
