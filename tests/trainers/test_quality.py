"""The quality loop: motion metrics on clips whose motion is known, the best checkpoint of a training, the page of its samples."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffdirector.tests.host.evaluate import randn
from diffdirector.trainers import quality
from diffdirector.trainers.checkpoint import best_of
from diffdirector.trainers.config import (
    MotionDirectorConfig,
    MotionModuleConfig,
    SparseCtrlConfig,
    TrainConfig,
)
from diffdirector.trainers.loop import StepReport, Trainer
from diffdirector.trainers.motion_director import MotionDirectorFiles, train_motion_director
from diffdirector.trainers.motion_module import train_motion_module
from diffdirector.trainers.quality import mean_motion, motion_of
from diffdirector.trainers.sampling import Previews, run_with_previews
from diffdirector.trainers.sparse_ctrl import train_sparse_ctrl

from .test_motion_director import motion_model
from .test_motion_module import drifting_clips, small_model

WIDTH = 96


def texture(seed: int = 0) -> Tensor:
    """[h, w] of soft blotches."""
    rough = randn(1, 1, 16, 16, seed=seed).mul(0.2).add(0.5)
    return F.interpolate(rough, size=(WIDTH, WIDTH), mode="bicubic").clamp(0, 1)[0, 0]


def in_colour(frames: list[Tensor]) -> Tensor:
    return torch.stack(frames).unsqueeze(-1).expand(-1, -1, -1, 3)


def square(pixels: int, frames: int = 4) -> Tensor:
    """A light square on black, moving so many pixels a frame to the right."""
    clip = torch.zeros(frames, WIDTH, WIDTH)
    for number, frame in enumerate(clip):
        frame[30:60, 20 + pixels * number : 50 + pixels * number] = 1
    return in_colour(list(clip))


def pan(pixels: int) -> Tensor:
    return in_colour([texture().roll(pixels * number, 1) for number in range(4)])


@pytest.mark.parametrize("clip", [square, pan])
@pytest.mark.parametrize("pixels", [3, 6])
def test_flow_is_how_far_things_move_and_what_moves_stays_the_same(clip, pixels: int) -> None:
    found = motion_of(clip(pixels))
    assert found is not None
    assert found.flow * WIDTH == pytest.approx(pixels, rel=0.1)
    assert found.consistency > 0.7


def test_a_still_clip_does_not_move_and_noise_does_not_stay_the_same() -> None:
    for still in (pan(0), square(0), torch.zeros(3, 64, 48, 3)):
        found = motion_of(still)
        assert found is not None and found.flow == 0 and found.consistency == pytest.approx(1, abs=1e-4)
    noise = motion_of(randn(4, WIDTH, WIDTH, 3).mul(0.3).add(0.5))
    others = motion_of(in_colour([texture(number) for number in range(4)]))
    boiling = motion_of(in_colour([0.7 * texture() + 0.3 * texture(number) for number in range(1, 5)]))
    assert noise is not None and others is not None and boiling is not None
    assert noise.consistency < 0.15 and others.consistency < 0.4 and 0.6 < boiling.consistency < 0.85


def test_a_clip_of_another_size_is_measured_alike() -> None:
    large = pan(3)
    small = F.interpolate(large.movedim(-1, 1), scale_factor=0.5, mode="area").movedim(1, -1)
    one, other = motion_of(large), motion_of(small)
    assert one is not None and other is not None
    assert other.flow == pytest.approx(one.flow, rel=0.05) and abs(other.consistency - one.consistency) < 0.05
    both = mean_motion([pan(2), pan(4)])
    assert both is not None and both.flow == pytest.approx(one.flow, rel=0.05)


def test_what_cannot_be_measured_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert motion_of(pan(3)[:1]) is None and mean_motion([]) is None
    spoilt = pan(3).clone()
    spoilt[1] = torch.nan  # of a training that went wrong
    assert motion_of(spoilt) is not None
    monkeypatch.setitem(sys.modules, "cv2", None)  # as where it is not installed
    quality._flow_estimator.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert motion_of(pan(3)) is None and motion_of(pan(3)) is None
    finally:
        quality._flow_estimator.cache_clear()
    said = [record.message for record in caplog.records if "DiffDirector" in record.message]
    assert len(said) == 1 and "pip install opencv-python-headless" in said[0]


def of_motion_module(folder: Path, settings: dict[str, Any], **options: Any) -> Path:
    return train_motion_module(small_model(), drifting_clips(), MotionModuleConfig(**settings), folder, **options)


def of_motion_director(folder: Path, settings: dict[str, Any], **options: Any) -> Path:
    files = MotionDirectorFiles.in_folders(settings["name"], folder, folder)
    models = small_model(), motion_model()
    config = MotionDirectorConfig(**settings, rank=4)
    return train_motion_director(*models, drifting_clips(), config, files, **options).temporal


def of_sparse_ctrl(folder: Path, settings: dict[str, Any], **options: Any) -> Path:
    models = small_model(), motion_model()
    return train_sparse_ctrl(*models, drifting_clips(), SparseCtrlConfig(**settings), folder, **options)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.slow
@pytest.mark.parametrize("train", [of_motion_module, of_motion_director, of_sparse_ctrl])
def test_every_recipe_keeps_what_validation_finds_best(train: Callable[..., Path], tmp_path: Path) -> None:
    reports: list[StepReport] = []
    settings = {"name": "v1.5", "steps": 1, "held_out": 1, "ema_decay": 0.5, "save_every": 0}
    path = train(tmp_path, settings, on_step=reports.append)
    for last in sorted(tmp_path.glob("*.safetensors")):
        if not last.stem.endswith(".best"):
            best = best_of(last)
            found = metadata_of(best)
            assert (found["trained_steps"], float(found["validation_loss"])) == ("1", reports[0].validation)
            same, other = load_file(last), load_file(best)
            assert same.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in same.items())
    assert best_of(path) == path.with_name("v1.5.best.safetensors")


def distance_training(folder: Path, steps: int, losses_of: list[float], saved: list[int], **settings: Any) -> Trainer:
    """A run whose validation measures these losses."""
    weight = torch.nn.Parameter(torch.zeros(1))

    def losses(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        yield "loss", (weight - 1).square().sum()

    config = TrainConfig("distance", steps=steps, validate_every=1, save_every=0, **settings)
    measured = iter(losses_of)
    trainer = Trainer({"w": weight}, losses, config, folder / "d.training", True, validation=lambda: next(measured))
    trainer.run(lambda report: None, lambda trainer: None, lambda trainer: saved.append(trainer.step))
    return trainer


def test_the_best_is_the_best_of_all_runs(tmp_path: Path) -> None:
    """Of equal ones the first; a loss that is no number is never the best."""
    saved: list[int] = []
    with torch.inference_mode(False), torch.enable_grad():
        trainer = distance_training(tmp_path, 5, [math.nan, 3.0, 2.0, 2.5, 2.0], saved)
        assert saved == [2, 3] and trainer.best == (2.0, 3) and trainer.reached()["validation_loss"] == "2.0"
        assert distance_training(tmp_path, 7, [2.2, 1.5], saved).best == (1.5, 7)
    assert saved == [2, 3, 7]


def test_what_is_measured_is_what_is_saved(tmp_path: Path) -> None:
    """With ema_decay the averaged weights; measuring changes nothing of the training."""
    seen: list[float] = []
    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.nn.Parameter(torch.zeros(1))

        def losses(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
            yield "loss", (weight - 1).square().sum()

        def validation() -> float:
            seen.append(float(weight))
            return float((weight - 1).square())

        config = TrainConfig("mean", steps=4, learning_rate=0.1, ema_decay=0.9, validate_every=3, save_every=0)
        saved: list[float] = []
        trainer = Trainer({"w": weight}, losses, config, tmp_path / "mean.training", False, validation=validation)
        trainer.run(lambda report: saved.append(float(trainer.weights()["w"])), lambda trainer: None)
    assert seen == [saved[2], saved[3]]
    assert float(weight) > saved[3] + 0.04
    assert trainer.best == (pytest.approx((saved[3] - 1) ** 2), 4)


def previewed(folder: Path, steps: int, made: Callable[[int], Tensor] | None) -> Trainer:
    """A run that averages and validates; every second step and the last one shows what made gives for it."""
    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.nn.Parameter(torch.zeros(4))

        def losses(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
            yield "loss", (weight - torch.randn(4, generator=generator)).square().sum()

        config = TrainConfig("a & b", steps=steps, ema_decay=0.9, validate_every=2, tensorboard=True)
        validation = lambda: float((weight - 1).square().sum())  # noqa: E731
        trainer = Trainer({"w": weight}, losses, config, folder / "a & b.training", True, validation=validation)

        def sample(previews: Previews) -> Tensor:
            assert made is not None and torch.equal(weight, saved[-1])
            return made(trainer.step)

        def on_step(report: StepReport) -> None:
            saved.append(trainer.weights()["w"].clone())

        saved: list[Tensor] = []
        compared = mean_motion([pan(2)])
        previews = made and Previews(None, None, None, 4, WIDTH, WIDTH, every=2, prompt="<b>", compared=compared)
        run_with_previews(
            trainer,
            previews,
            sample,
            folder / "a & b.webp",
            on_step,
            lambda trainer: None,
            lambda trainer: None,
        )
        return trainer


@pytest.mark.slow
def test_a_page_shows_every_sample_of_all_runs(tmp_path: Path) -> None:
    """With its clip, losses and motion; TensorBoard gets them, too; what is trained is the same."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (4, 5):
        trainer = previewed(tmp_path, steps, pan)
    page = (tmp_path / "a & b.samples.html").read_text(encoding="utf-8")
    clips = [unquote(address) for address in re.findall(r'<img src="([^"]+)"', page)]
    assert clips == [f"a & b.samples/step-{step:06}.webp" for step in (5, 4, 2)]
    for step, clip in zip((5, 4, 2), clips, strict=True):
        with Image.open(tmp_path / clip) as animation:
            assert animation.n_frames == 4
        motion = motion_of(pan(step))
        assert motion is not None and f"<dt>flow</dt><dd>{motion.flow:.2%}</dd>" in page
    assert page.count("<dt>held out</dt>") == page.count("<dt>loss</dt>") == page.count("<dt>consistency</dt>") == 3
    assert f"<dt>loss</dt><dd>{trainer.losses[4]['loss']:.4f}</dd>" in page  # of the steps since the sample before
    assert trainer.best is not None and f"lowest loss, {trainer.best[0]:.4f}, after step {trainer.best[1]}." in page
    assert "<h1>a &amp; b</h1>" in page and "<q>&lt;b&gt;</q>" in page and "http" not in page
    logs = EventAccumulator(str(tmp_path / "tensorboard" / "a & b")).Reload()
    assert (
        [event.step for event in logs.Scalars("flow/sample")]
        == [event.step for event in logs.Images("sample")]
        == [2, 4, 5]
    )
    assert {"flow/dataset", "consistency/sample"} <= set(logs.Tags()["scalars"])

    plain = previewed(tmp_path / "plain", 5, None)
    assert torch.equal(plain.weights()["w"], trainer.weights()["w"])
    assert torch.equal(plain.parameters["w"], trainer.parameters["w"])
    assert not list((tmp_path / "plain").glob("*samples*"))


def test_a_run_from_the_start_has_a_page_of_its_own_also_where_nothing_is_measured(tmp_path: Path) -> None:
    previewed(tmp_path, 2, pan)
    (tmp_path / "a & b.training").unlink()
    previewed(tmp_path, 1, lambda step: pan(step)[:1])  # a picture, as of a domain adapter
    page = (tmp_path / "a & b.samples.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>Step (\d+)</h2>", page) == ["1"]
    assert "<dt>flow</dt>" not in page and "<dt>loss</dt>" in page
