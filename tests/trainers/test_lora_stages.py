"""Domain adapters and MotionLoRAs on a small real UNet: each trains its own weights, files give what was trained, runs resume bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.sd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffdirector.lora.patches import MotionLora, apply_domain_adapter, load_lora, with_motion_loras
from diffdirector.motion.identify import FileKind
from diffdirector.motion.splice import apply_motion_model
from diffdirector.tests.host.evaluate import evaluate, randn, relative_error
from diffdirector.trainers import host
from diffdirector.trainers.config import ConfigError, DomainAdapterConfig, LoraConfig, MotionLoraConfig
from diffdirector.trainers.dataset import DatasetError, LatentClips
from diffdirector.trainers.domain_adapter import DomainAdapterTraining, train_domain_adapter
from diffdirector.trainers.loop import step_generator
from diffdirector.trainers.lora_training import LORA, LoraFiles, LoraTraining
from diffdirector.trainers.motion_lora import MotionLoraTraining, train_motion_lora

from .test_kinds import SDXL, clips_of, models_of
from .test_motion_director import motion_model
from .test_motion_module import FRAMES, drifting_clips, small_model

SMALL = {"name": "drift", "steps": 4, "rank": 4, "learning_rate": 1e-2, "batch_size": 2, "save_every": 2}


class Stage(NamedTuple):
    config: type[LoraConfig]
    training: Callable[..., LoraTraining]
    train: Callable[..., Path]
    motion: bool

    def models(self) -> list[Any]:
        return [small_model(), *([motion_model()] if self.motion else [])]

    def of(self, model: Any, motion: Any, **changes: Any) -> LoraTraining:
        return self.training(model, motion if self.motion else None, drifting_clips(), self.config(**SMALL | changes))

    def run(self, folder: Path, clips: Any = None, settings: Any = (), **options: Any) -> Path:
        config, files = self.config(**SMALL | dict(settings)), LoraFiles.of_one("drift", folder)
        return self.train(*self.models(), clips or drifting_clips(), config, files, **options)


ADAPTER = Stage(DomainAdapterConfig, DomainAdapterTraining, train_domain_adapter, False)
MOTION = Stage(MotionLoraConfig, MotionLoraTraining, train_motion_lora, True)
stages = pytest.mark.parametrize("stage", [ADAPTER, MOTION], ids=["domain adapter", "motion lora"])


@pytest.mark.slow
@stages
def test_it_trains_its_lora_and_nothing_else(stage: Stage) -> None:
    with host.training():
        training = stage.of(small_model(), motion_model())
        (loss,) = [loss for _, loss in training.losses(step_generator(0, 0))]
        loss.backward()
        networks = [patcher.model for patcher in (training.model, *training.model.get_nested_additional_models())]
        assert not any(value.requires_grad for network in networks for value in network.parameters())
        assert all(value.grad is not None for value in training.parameters.values())
        trained = {name.split(".", 1)[1].rsplit(".", 1)[0] for name in training.parameters}
        assert all(name.endswith(("to_q", "to_k", "to_v", "to_out.0")) for name in trained)
        if stage is ADAPTER:
            attentions = {part for name in trained for part in ("attn1", "attn2") if part in name}
            assert attentions == {"attn1", "attn2"} and not any("motion_modules" in name for name in trained)
            x, text = training.drawn(training.clips, 3, 0.0, step_generator(0, 1))
            assert x.shape[:2] == (3, 1) and len(text) == 3
            frames = training.clips.latents.flatten(0, 1)
            assert all((frames == picture).flatten(1).all(1).sum() == 1 for picture in x[:, 0])
        else:
            assert all("motion_modules" in name and "attention_blocks" in name for name in trained)


@pytest.mark.slow
@stages
def test_the_file_gives_what_was_trained_and_the_models_stay_as_they_are(stage: Stage, tmp_path: Path) -> None:
    model, motion, (x, context) = small_model(), motion_model(), (randn(FRAMES, 4, 8, 8), randn(1, 8, 768, seed=1))
    applied = lambda model, motion: apply_motion_model(model, motion) if stage.motion else model  # noqa: E731
    plain = evaluate(applied(model, motion), x, context)
    files = LoraFiles.of_one("drift", tmp_path)
    with host.training():
        training = stage.of(model, motion, alpha=8.0, ema_decay=0.5)
        training.run(files, True, lambda report: None)
        weights = torch.load(files.state, weights_only=True)["averaged"]
        with torch.no_grad():
            for name, value in training.parameters.items():
                value.copy_(weights[name])
            expected = host.predict(training.model, x[None], torch.tensor([500.0]), context)[0]
    assert torch.equal(evaluate(applied(model, motion), x, context), plain)
    state = load_file(files.loras[LORA])
    assert not [key for key in state if "alpha" in key]
    if stage.motion:
        layers = load_lora(str(files.loras[LORA]), "drift", FileKind.MOTION_LORA)
        found = evaluate(
            apply_motion_model(model, with_motion_loras(motion, [MotionLora("t", layers, 1.0)])), x, context
        )
        site = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks"
        assert {f"{site}.0.processor.to_q_lora.up.weight", f"{site}.1.processor.to_out_lora.down.weight"} <= set(state)
    else:
        layers = load_lora(str(files.loras[LORA]), "drift", FileKind.SPATIAL_LORA)
        found = evaluate(apply_domain_adapter(model, "drift", layers, 1.0), x, context)
        loaded, _ = comfy.sd.load_lora_for_models(model, None, dict(state), 1.0, 0.0)  # the host's LoRA loader
        assert relative_error(evaluate(loaded, x, context), expected) < 1e-5
        assert len(loaded.patches) == len(state) // 2
        assert torch.equal(evaluate(apply_domain_adapter(model, "drift", layers, 0.0), x, context), plain)
    assert relative_error(found, expected) < 1e-5
    assert relative_error(plain, expected) > 1e-3
    with safe_open(files.loras[LORA], "pt") as file:
        metadata = file.metadata()
    kind = "motion_lora" if stage.motion else "domain_adapter"
    assert (metadata["model_type"], metadata["trained_steps"], metadata["rank"]) == (kind, "4", "4")
    assert metadata["dataset"] == drifting_clips().digest


@pytest.mark.slow
@stages
def test_a_cancelled_run_keeps_what_it_learnt_and_resumes_to_the_same_bits(stage: Stage, tmp_path: Path) -> None:
    class Cancel(Exception):
        pass

    measured = []

    def cancel(report) -> None:
        measured.append(report.validation)
        if report.step == 3:
            raise Cancel

    settings = {"steps": 5, "dropout": 0.2, "ema_decay": 0.9, "warmup_steps": 2, "lr_schedule": "cosine", "accumulate": 2,
                "held_out": 1, "validate_every": 2}  # fmt: skip
    whole = load_file(stage.run(tmp_path / "whole", settings=settings))
    with pytest.raises(Cancel):
        stage.run(tmp_path / "parts", settings=settings, on_step=cancel)
    assert [value is None for value in measured] == [True, False, True]
    kept = load_file(tmp_path / "parts" / "drift.safetensors")
    resumed = load_file(stage.run(tmp_path / "parts", settings=settings))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert not all(torch.equal(kept[key], whole[key]) for key in whole)


@pytest.mark.slow
@stages
def test_recomputing_activations_changes_no_gradient(stage: Stage) -> None:
    found = []
    for recomputed in (False, True):
        with host.training():
            training = stage.of(small_model(), motion_model(), gradient_checkpointing=recomputed, dropout=0.3)
            for _, loss in training.losses(step_generator(0, 0)):
                loss.backward()
            found.append({name: value.grad for name, value in training.parameters.items() if name.endswith(".up")})
    assert all(relative_error(found[1][name], found[0][name]) < 1e-5 for name in found[0])


@pytest.mark.slow
@stages
def test_wrong_inputs_are_refused(stage: Stage, tmp_path: Path) -> None:
    animated = apply_motion_model(small_model(), motion_model())
    with (
        host.training(),
        pytest.raises(ValueError, match="without a motion model, found one with motion. Connect what goes"),
    ):
        stage.of(animated, motion_model())
    with host.training(), pytest.raises(ConfigError, match="targets: expected the end of a layer's name, such as to_q"):
        stage.of(small_model(), motion_model(), targets=("norm1", "conv_in"))
    if stage.motion:
        long = LatentClips(randn(1, 40, 4, 8, 8), randn(2, 8, 768), torch.zeros(1, dtype=torch.long))
        with pytest.raises(
            ConfigError, match="frames: expected clips of at most 32, as motion moves them, found 40. Lower"
        ):
            stage.run(tmp_path, long)
    with pytest.raises(ConfigError, match="rank: expected at least 1, found 0"):
        stage.config(**SMALL | {"rank": 0})
    with pytest.raises(DatasetError, match="Holding 4 clips out"):
        stage.run(tmp_path, settings={"held_out": 4})
    stage.run(tmp_path, settings={"steps": 1})
    with pytest.raises(ConfigError, match="learnt from the same dataset"):
        stage.run(tmp_path, drifting_clips(3), {"steps": 1})
    with pytest.raises(ConfigError, match="learnt from the same held_out, found one with held_out 0"):
        stage.run(tmp_path, settings={"steps": 1, "held_out": 1})
    with pytest.raises(ConfigError, match="learnt from the same alpha"):
        stage.run(tmp_path, settings={"steps": 1, "alpha": 2.0})


@pytest.mark.slow
@stages
def test_sdxl(stage: Stage, tmp_path: Path) -> None:
    model, motion = models_of(SDXL)
    models = [model, motion] if stage.motion else [model]
    files, config = LoraFiles.of_one("drift", tmp_path), stage.config(**SMALL | {"steps": 1, "batch_size": 1})
    state = load_file(stage.train(*models, clips_of(SDXL), config, files))
    ups = [value for key, value in state.items() if "up.weight" in key]
    assert ups and all(value.abs().max() > 0 for value in ups)
    if not stage.motion:
        keys = comfy.lora.model_lora_keys_unet(model.model, {})
        assert len(comfy.lora.load_lora(dict(state), keys)) == len(ups)
