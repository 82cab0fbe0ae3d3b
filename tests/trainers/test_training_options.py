"""What every training can do besides its objective: optimizers by name, clips held out, logs, and an end that keeps what was learnt."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffdirector.trainers import host
from diffdirector.trainers.checkpoint import ABANDONED, SaveError, load_state
from diffdirector.trainers.config import ConfigError, TrainConfig
from diffdirector.trainers.dataset import DatasetError
from diffdirector.trainers.denoiser import Denoiser
from diffdirector.trainers.errors import TrainingOutOfMemory
from diffdirector.trainers.loop import StepReport, Trainer, step_generator
from diffdirector.trainers.motion_director import train_motion_director
from diffdirector.trainers.optimizers import KINDS

from .test_motion_director import config, files, motion_model
from .test_motion_module import drifting_clips, small_model


class Cancel(Exception):
    pass


def line(generator: torch.Generator, weights: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights [64, 64] are to be those of a known linear map."""
    x = torch.randn(32, 64, generator=generator)
    yield "loss", (x @ weights - x @ torch.eye(64)).square().mean()


def trained(folder: Path, on_step=lambda report: None, **settings) -> torch.Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        weights = torch.nn.Parameter(torch.zeros(64, 64))
        run = TrainConfig("line", **({"steps": 40, "learning_rate": 1e-2, "save_every": 0} | settings))
        trainer = Trainer(
            {"weights": weights}, lambda generator: line(generator, weights), run, folder / "line.training", resume=True
        )
        trainer.run(on_step, lambda trainer: None)
        return weights.detach()


@pytest.mark.parametrize("optimizer", KINDS)
def test_every_optimizer_learns_and_resumes_to_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    losses: list[float] = []
    whole = trained(tmp_path / "whole", lambda report: losses.append(report.losses["loss"]), optimizer=optimizer)
    assert losses[-1] < 0.9 * losses[0]

    def cancel(report: StepReport) -> None:
        if report.step == 17:
            raise Cancel

    with pytest.raises(Cancel):
        trained(tmp_path / "parts", cancel, optimizer=optimizer)
    assert torch.equal(trained(tmp_path / "parts", optimizer=optimizer), whole)


def test_lion_takes_a_tenth_of_the_learning_rate(tmp_path: Path) -> None:
    """Its first step is as long as its learning rate in every direction."""
    moved = trained(tmp_path, optimizer="Lion", steps=1, weight_decay=0.0)
    assert torch.allclose(moved.abs().max(), torch.tensor(1e-3), rtol=1e-4)


def test_an_optimizer_that_is_not_known_or_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="optimizer: expected one of AdamW, Lion, .* found 'SGD'"):
        trained(tmp_path, optimizer="SGD")
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # as where it is not installed
    with pytest.raises(ConfigError, match='AdamW8bit needs bitsandbytes.*"pip install bitsandbytes", or choose AdamW'):
        trained(tmp_path, optimizer="AdamW8bit")


def test_resuming_with_another_optimizer_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, steps=2)
    with pytest.raises(ConfigError, match="run with seed 0, Lion .* found seed 0, AdamW .* without resume"):
        trained(tmp_path, steps=4, optimizer="Lion")


@pytest.mark.slow
def test_clips_held_out_are_measured_and_not_trained_on(tmp_path: Path) -> None:
    reports: list[StepReport] = []
    settings = config(held_out=2, validate_every=2, spatial_probability=0.0)
    train_motion_director(
        small_model(), motion_model(), drifting_clips(), settings, files(tmp_path), on_step=reports.append
    )
    measured = [report.validation for report in reports if report.validation is not None]
    assert [report.step for report in reports if report.validation is not None] == [2, 4, 6]
    assert len(set(measured)) == 3
    assert [losses.get("validation") for losses in load_state(files(tmp_path).state)["losses"]][1::2] == measured
    spoilt = drifting_clips()
    with torch.inference_mode():
        spoilt.latents[2:].fill_(7.0)  # the two that are held out
    train_motion_director(small_model(), motion_model(), spoilt, settings, files(tmp_path / "spoilt"))
    same, other = load_file(files(tmp_path).temporal), load_file(files(tmp_path / "spoilt").temporal)
    assert all(torch.equal(value, other[key]) for key, value in same.items())
    with pytest.raises(DatasetError, match="nothing to train on"):
        train_motion_director(
            small_model(), motion_model(), drifting_clips(1), config(held_out=1), files(tmp_path / "none")
        )


def test_noise_offset_shifts_a_whole_clip() -> None:
    with host.training():
        denoiser = Denoiser(small_model(), config(noise_offset=0.5))
        noise = denoiser.draw(torch.zeros(64, 4, 4, 16, 16), step_generator(0, 0)).noise
    means = noise.mean((3, 4))
    assert means.mean(1).std() == pytest.approx(0.5, rel=0.15)
    assert (means - means.mean(1, keepdim=True)).std() < 0.1


def test_tensorboard_reads_what_is_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses: list[float] = []
    trained(tmp_path, lambda report: losses.append(report.losses["loss"]), steps=5, tensorboard=True)
    logs = EventAccumulator(str(tmp_path / "tensorboard" / "line")).Reload()
    assert [event.value for event in logs.Scalars("loss")] == pytest.approx(losses)
    assert {"learning_rate", "gradient_norm"} <= set(logs.Tags()["scalars"])


def more_than_there_is() -> None:
    torch.empty(2**56)


def refused_by_the_driver() -> None:
    raise torch.AcceleratorError("CUDA error: out of memory")


@pytest.mark.parametrize("fails", [more_than_there_is, refused_by_the_driver])
def test_out_of_memory_says_what_lowers_it_and_keeps_what_was_learnt(tmp_path: Path, fails: Callable[[], None]) -> None:
    def greedy(report: StepReport) -> None:
        if report.step == 3:
            fails()

    with pytest.raises(TrainingOutOfMemory, match="Step 4 .* until step 3 is kept.*batch_size 1.*smaller or fewer"):
        trained(tmp_path, greedy, steps=5, batch_size=2)
    assert load_state(tmp_path / "line.training")["step"] == 3


def test_a_full_disk_keeps_the_last_save_and_a_later_run_goes_on(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", steps=6)
    trained(tmp_path / "parts", steps=3)
    before = (tmp_path / "parts" / "line.training").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SaveError, match=r"line.training cannot be written: .*Make room"):
            trained(tmp_path / "parts", steps=6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "parts" / "line.training").read_bytes() == before
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["line.training"]
    assert torch.equal(trained(tmp_path / "parts", steps=6), whole)


def test_what_a_killed_save_has_left_behind_goes_away_and_the_file_is_for_everyone(tmp_path: Path) -> None:
    names = [".line.training.1a2b3c4d", ".line.training.5e6f7a8b", ".other.training.1a2b3c4d"]
    for name in names:
        (tmp_path / name).write_text("half a file")
    long_ago = time.time() - 2 * ABANDONED
    for name in names[1:]:
        os.utime(tmp_path / name, (long_ago, long_ago))
    trained(tmp_path, steps=1)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"line.training", names[0], names[2]}  # names[0] may be another run's that writes it now
    (tmp_path / "plain").touch()
    assert (tmp_path / "line.training").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_takes_no_files_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    steps: list[StepReport] = []
    with pytest.raises(SaveError, match="file.*cannot be written: .*Not a directory"):
        train_motion_director(
            small_model(),
            motion_model(),
            drifting_clips(),
            config(),
            files(tmp_path / "file" / "loras"),
            on_step=steps.append,
        )
    assert steps == []
