"""MotionDirector on every kind of motion model and on both families: what is trained is what the host would sample."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import pytest
import torch

from diffdirector.lora.patches import MotionLora, load_lora, with_motion_loras
from diffdirector.motion.formats import Version
from diffdirector.motion.identify import FileKind
from diffdirector.motion.module import motion_model_from_state
from diffdirector.motion.splice import apply_motion_model
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import load, randn, relative_error
from diffdirector.tests.host.weights import (
    NARROW_SDXL,
    TINY,
    load_unet,
    motion_config,
    motion_state,
    unet_config,
    unet_state,
)
from diffdirector.trainers import host
from diffdirector.trainers.dataset import LatentClips
from diffdirector.trainers.motion_director import MotionDirectorTraining, train_motion_director

from .test_motion_director import config, files
from .test_motion_module import FRAMES, drifting_clips, small_model

SDXL = Version.SDXL
# depths as the stock loader knows them from Segmind's Vega: the smallest of SDXL's family
VEGA = {"transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "transformer_depth_middle": -1}  # fmt: skip


def clips_of(version: Version) -> LatentClips:
    if version is not SDXL:
        return drifting_clips()
    clips = drifting_clips(side=8)  # after its two halvings there must be more than one place to attend to
    return LatentClips(clips.latents, randn(2, 5, 2048, seed=6), torch.zeros(len(clips), dtype=torch.long))


def models_of(version: Version):
    """A checkpoint and a motion model for it."""
    if version is SDXL:
        return (
            load_unet(unet_state(unet_config("sdxl", **NARROW_SDXL, **VEGA))),
            motion_model_from_state(motion_state(motion_config(SDXL, channels=(320, 320, 320))), "sdxl"),
        )
    return small_model(), motion_model_from_state(motion_state(tiny_motion_config(version)), str(version))


@pytest.mark.slow
@pytest.mark.parametrize("version", [Version.V1, Version.V2, Version.V3, Version.LCM, pytest.param(SDXL, marks=pytest.mark.slow)])  # fmt: skip
def test_it_trains_on_every_kind_and_sees_what_the_host_samples(version: Version, tmp_path: Path) -> None:
    model, motion = models_of(version)
    clips = clips_of(version)
    loaded = len(comfy.model_management.current_loaded_models)
    settings = config(steps=2, save_every=0, learning_rate=1e-2)
    train_motion_director(model, motion, clips, settings, files(tmp_path))
    assert len(comfy.model_management.current_loaded_models) <= loaded
    layers = load_lora(str(files(tmp_path).temporal), "t", FileKind.MOTION_LORA)
    applied = apply_motion_model(model, with_motion_loras(motion, [MotionLora("t", layers, 1.0)]))

    # the trainer's UNet call against the host's own, on the model as samplers use it
    x, t = randn(1, FRAMES, 4, 8, 8, seed=3), 700
    context = clips.text[:1]
    with host.training(), torch.no_grad():
        training = MotionDirectorTraining(model, motion, clips, settings)
        trained = host.predict(training.model, x, torch.tensor([float(t)]), context)[0]
        plain = host.predict(apply_motion_model(model, motion), x, torch.tensor([float(t)]), context)[0]
    assert relative_error(trained, plain) < 1e-5  # a LoRA that was not trained yet changes nothing
    load(applied)
    sampling = applied.get_model_object("model_sampling")
    sigma = sampling.sigmas[t]
    conditions = {}
    if version is SDXL:
        pooled = clips.text[:1, -1, : host.POOLED_WIDTH]
        y = model.model.encode_adm(pooled_output=pooled, width=64, height=64, device="cpu")
        context, conditions = context[:, :-1], {"y": y.expand(FRAMES, -1)}
    found = host.predict(applied, x, torch.tensor([float(t)]), clips.text[:1])[0]
    options = applied.model_options["transformer_options"] | {"cond_or_uncond": [0], "sigmas": sigma[None]}
    wrappers = {"wrappers": applied.wrappers} if applied.wrappers else {}
    denoised = applied.model.apply_model(
        x[0] * (1 + sigma**2) ** 0.5, sigma.expand(FRAMES), c_crossattn=context.expand(FRAMES, -1, -1),
        transformer_options=options | wrappers, **conditions,
    )  # fmt: skip
    expected = (x[0] * (1 + sigma**2) ** 0.5 - denoised) / sigma
    if version is not Version.LCM:  # its sampling mixes the prediction with the noisy clip
        assert relative_error(found, expected) < 1e-4
    assert relative_error(found, plain) > 1e-3  # what was trained shows


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_frozen_weights_stay_in_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = load_unet(unet_state(unet_config("sd15", **TINY), dtype=dtype), dtype)
    motion = motion_model_from_state(motion_state(tiny_motion_config(), dtype=torch.float16), "m", dtype=torch.bfloat16)
    with host.training():
        settings = config(steps=2, precision="bfloat16", save_every=0)
        training = MotionDirectorTraining(model, motion, drifting_clips(), settings)
        training.run(files(tmp_path), False, lambda report: None)
        unet = training.model.model.diffusion_model
        wide = [name for name, value in unet.named_parameters() if value.ndim > 1 and value.dtype != dtype]
        assert wide == []
        assert {value.dtype for value in training.parameters.values()} == {torch.float32}
        assert all(value.isfinite().all() for value in training.parameters.values())
        assert not any(value.requires_grad or value.grad is not None for value in unet.parameters())
