"""Servers started for other precisions of the UNet: the animation stays what it is in float32."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from diffdirector.tests.host.checkpoints import link_models
from diffdirector.tests.host.prompts import animation
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import Server

pytestmark = pytest.mark.slow


def frames(tmp_path, *arguments: str) -> np.ndarray:
    link_models(tmp_path)
    with Server(provision(), tmp_path, "--cpu", *arguments) as server:
        files = server.run(animation(steps=3))["save"]["images"]
        return np.stack([np.asarray(Image.open(io.BytesIO(server.file(file)))) for file in files])


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> np.ndarray:
    return frames(tmp_path_factory.mktemp("fp32"), "--fp32-unet")


@pytest.mark.parametrize(
    ("arguments", "mean_difference"),
    [
        (["--fp16-unet"], 0.5),
        (["--bf16-unet"], 5),
        (["--fp8_e4m3fn-unet"], 25),
        (["--use-pytorch-cross-attention"], 0.05),
        (["--use-split-cross-attention"], 0.05),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_precision(tmp_path, reference, arguments, mean_difference) -> None:
    found = frames(tmp_path, *arguments)
    assert np.abs(found.astype(int) - reference).mean() < mean_difference
    assert np.abs(reference[0].astype(int) - reference[1]).mean() > 25  # what another picture would differ by
