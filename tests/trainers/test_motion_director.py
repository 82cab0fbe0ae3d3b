"""MotionDirector on a small real UNet: each path trains its own LoRA, files give what was trained, runs resume bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import Conv2d, Linear

from diffdirector.lora.formats import read_lora
from diffdirector.lora.layers import TrainableLora
from diffdirector.lora.patches import MotionLora, apply_domain_adapter, load_lora, with_motion_loras
from diffdirector.motion.identify import FileKind
from diffdirector.motion.module import motion_model_from_state
from diffdirector.motion.splice import apply_motion_model
from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import evaluate, randn, relative_error
from diffdirector.tests.host.weights import TINY, motion_state, unet_config, unet_state
from diffdirector.trainers import host
from diffdirector.trainers.config import ConfigError, MotionDirectorConfig
from diffdirector.trainers.loop import step_generator
from diffdirector.trainers.motion_director import (
    MotionDirectorFiles,
    MotionDirectorTraining,
    train_motion_director,
)

from .test_motion_module import FRAMES, drifting_clips, small_model


def config(**changes) -> MotionDirectorConfig:
    settings = {
        "name": "drift",
        "steps": 6,
        "rank": 4,
        "learning_rate": 1e-2,
        "spatial_learning_rate": 1e-2,
        "save_every": 2,
    }
    return MotionDirectorConfig(**(settings | changes))


def files(folder: Path) -> MotionDirectorFiles:
    return MotionDirectorFiles.in_folders("drift", folder, folder)


def motion_model():
    return motion_model_from_state(motion_state(tiny_motion_config()), "motion")


def gradients(**changes) -> dict[str, torch.Tensor]:
    """Of one step, after two steps of training: up starts at zero, so that down has no gradient in the first."""
    with host.training():
        training = MotionDirectorTraining(
            small_model(), motion_model(), drifting_clips(), config(spatial_probability=1.0, **changes)
        )
        optimizer = torch.optim.SGD(training.parameters.values(), lr=1e-2)
        for step in range(3):
            optimizer.zero_grad()
            for _, loss in training.losses(step_generator(0, step)):
                loss.backward()
            optimizer.step()
        return {name: value.grad for name, value in training.parameters.items()}


@pytest.mark.slow
def test_each_path_trains_its_own_lora() -> None:
    with host.training():
        training = MotionDirectorTraining(
            small_model(), motion_model(), drifting_clips(), config(spatial_probability=1.0)
        )
        for path, loss in training.losses(step_generator(0, 0)):
            loss.backward()
            trained = {name.split(".")[0] for name, value in training.parameters.items() if value.grad is not None}
            assert trained == {path} and loss.item() > 0
            for value in training.parameters.values():
                value.grad = None
        without = MotionDirectorTraining(
            small_model(), motion_model(), drifting_clips(), config(spatial_probability=0.0)
        )
        assert [path for path, _ in without.losses(step_generator(0, 0))] == ["temporal"]


@pytest.mark.slow
def test_recomputing_activations_changes_no_gradient() -> None:
    kept, recomputed = gradients(gradient_checkpointing=False), gradients(gradient_checkpointing=True)
    assert all(relative_error(recomputed[name], kept[name]) < 1e-5 for name in kept if kept[name].norm() > 1e-7)
    assert sum(bool(value.norm() > 1e-7) for value in kept.values()) > 0.9 * len(kept)


@pytest.mark.slow
def test_the_files_give_what_was_trained_and_the_models_stay_as_they_are(tmp_path: Path) -> None:
    model, motion, (x, context) = small_model(), motion_model(), (randn(FRAMES, 4, 8, 8), randn(1, 8, 768, seed=1))
    plain = evaluate(apply_motion_model(model, motion), x, context)
    with host.training():
        training = MotionDirectorTraining(model, motion, drifting_clips(), config(alpha=8.0))
        training.run(files(tmp_path), True, lambda report: None)
        for lora in training.loras.values():
            lora.enabled = True
        with torch.no_grad():
            expected = host.predict(training.model, x[None], torch.tensor([500.0]), context)[0]
    assert torch.equal(evaluate(apply_motion_model(model, motion), x, context), plain)

    temporal = load_lora(str(files(tmp_path).temporal), "temporal", FileKind.MOTION_LORA)
    spatial = load_lora(str(files(tmp_path).spatial), "spatial", FileKind.SPATIAL_LORA)
    adapted = apply_domain_adapter(model, "spatial", spatial, 1.0)
    found = evaluate(
        apply_motion_model(adapted, with_motion_loras(motion, [MotionLora("t", temporal, 1.0)])), x, context
    )
    assert relative_error(found, expected) < 1e-5
    assert relative_error(plain, expected) > 1e-3
    keys = load_file(files(tmp_path).temporal)
    site = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    assert {
        f"{site}.attention_blocks.0.processor.to_q_lora.up.weight",
        f"{site}.attention_blocks.1.processor.to_out_lora.down.weight",
        f"{site}.ff.net.0.processor.proj_lora.up.weight",
        f"{site}.ff.net.processor.2_lora.up.weight",
    } <= set(keys)
    assert not [key for key in keys if "alpha" in key or "temporal" not in key]
    with safe_open(files(tmp_path).temporal, "pt") as file:
        metadata = file.metadata()
    assert metadata["model_type"] == "motion_director" and metadata["trained_steps"] == "6" and metadata["rank"] == "4"
    assert metadata["motion_model"] == "motion" and metadata["dataset"] == drifting_clips().digest


@pytest.mark.slow
def test_the_stock_lora_loader_takes_the_spatial_lora(tmp_path: Path) -> None:
    import comfy.lora

    model = small_model()
    train_motion_director(model, motion_model(), drifting_clips(), config(steps=1), files(tmp_path))
    state = load_file(files(tmp_path).spatial)
    loaded = comfy.lora.load_lora(dict(state), comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=True)
    assert len(loaded) == len(state) // 2


@pytest.mark.slow
def test_interrupted_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Cancel(Exception):
        pass

    def cancel(report) -> None:
        assert set(report.losses) <= {"spatial", "temporal"}
        if report.step == 3:
            raise Cancel

    settings = config(dropout=0.2, ema_decay=0.9, warmup_steps=2, lr_schedule="cosine", accumulate=2)
    whole = train_motion_director(small_model(), motion_model(), drifting_clips(), settings, files(tmp_path / "whole"))
    parts = files(tmp_path / "parts")
    with pytest.raises(Cancel):
        train_motion_director(small_model(), motion_model(), drifting_clips(), settings, parts, on_step=cancel)
    assert load_file(parts.temporal)
    train_motion_director(small_model(), motion_model(), drifting_clips(), settings, parts)
    for one, other in ((whole.temporal, parts.temporal), (whole.spatial, parts.spatial)):
        resumed = load_file(other)
        assert all(torch.equal(value, resumed[key]) for key, value in load_file(one).items())


@pytest.mark.slow
def test_resuming_with_another_rank_is_refused(tmp_path: Path) -> None:
    train_motion_director(small_model(), motion_model(), drifting_clips(), config(steps=1), files(tmp_path))
    with pytest.raises(ConfigError, match="0 of them of the same name and size. Choose another name"):
        train_motion_director(small_model(), motion_model(), drifting_clips(), config(steps=2, rank=8), files(tmp_path))


@pytest.mark.slow
def test_another_clip_under_the_same_name_is_refused(tmp_path: Path) -> None:
    """Else the motion of the earlier clip would come out, without a word."""
    train_motion_director(small_model(), motion_model(), drifting_clips(), config(steps=1), files(tmp_path))
    kept = files(tmp_path).temporal.read_bytes()
    for clips, changes, learnt_from in (
        (drifting_clips(3), {}, "dataset"),
        (drifting_clips(), {"alpha": 2.0}, "alpha"),
    ):
        with pytest.raises(
            ConfigError, match=f"learnt from the same {learnt_from}, found one with .*Choose another name"
        ):
            train_motion_director(small_model(), motion_model(), clips, config(steps=1, **changes), files(tmp_path))
    assert files(tmp_path).temporal.read_bytes() == kept
    train_motion_director(
        small_model(), motion_model(), drifting_clips(3), config(steps=1), files(tmp_path), resume=False
    )


@pytest.mark.slow
def test_it_trains_beside_a_domain_adapter() -> None:
    """The adapter's patches are in the weights that are trained beside."""
    model, motion, (x, context) = small_model(), motion_model(), (randn(FRAMES, 4, 8, 8), randn(1, 8, 768, seed=1))
    unet = unet_config("sd15", **TINY)
    layers = read_lora(
        loras.in_original_naming(loras.spatial_lora(unet, unet_state(unet), 4, 5)), FileKind.SPATIAL_LORA
    )
    adapted = apply_domain_adapter(model, "adapter", layers, 1.0)
    expected, plain = (evaluate(apply_motion_model(which, motion), x, context) for which in (adapted, model))
    with host.training(), torch.no_grad():
        training = MotionDirectorTraining(adapted, motion, drifting_clips(), config())
        found = host.predict(training.model, x[None], torch.tensor([500.0]), context)[0]
    assert relative_error(found, expected) < 1e-5 < 1e-3 < relative_error(plain, expected)


def test_a_lora_comes_off_without_a_trace() -> None:
    with torch.inference_mode(False):
        layers = {"linear": Linear(8, 6), "convolution": Conv2d(4, 5, 1)}
        inputs = {"linear": randn(2, 8), "convolution": randn(2, 4, 3, 3)}
        lora = TrainableLora(layers, rank=2, alpha=4.0, dropout=0.0, generator=step_generator(0, 0))
        plain = {name: layer(inputs[name]) for name, layer in layers.items()}
        for name, value in lora.parameters().items():
            value.data.copy_(randn(*value.shape, seed=len(name)))
        stored = lora.layers(lora.parameters())
        for name, layer in layers.items():
            delta = (stored[name].up.flatten(1) @ stored[name].down.flatten(1)).view(layer.weight.shape)
            found = layer(inputs[name])
            lora.enabled = False
            merged = torch.func.functional_call(layer, {"weight": layer.weight + delta}, inputs[name])
            torch.testing.assert_close(found, merged)
            lora.enabled = True
        lora.enabled = False
        assert all(torch.equal(layer(inputs[name]), plain[name]) for name, layer in layers.items())
        lora.enabled = True
        lora.detach()
        assert all(torch.equal(layer(inputs[name]), plain[name]) for name, layer in layers.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank: expected at least 1"),
        ({"debias": -1.0}, "debias: expected 0 or more"),
        ({"spatial_probability": 2.0}, "from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_targets_that_match_nothing_are_refused() -> None:
    with host.training(), pytest.raises(ConfigError, match="targets: expected the end of a layer's name"):
        MotionDirectorTraining(small_model(), motion_model(), drifting_clips(), config(temporal_targets=("to_x",)))
