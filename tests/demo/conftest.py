from __future__ import annotations

from pathlib import Path

import pytest

from . import evaluate, stack


@pytest.fixture(scope="session")
def studio(base: Path) -> evaluate.Studio:
    """At half of the pages' steps, which the bars allow for."""
    stack.link_models(base)
    return evaluate.Studio(steps=evaluate.STEPS // 2)


@pytest.fixture(scope="session")
def quick(studio: evaluate.Studio) -> evaluate.Studio:
    """The same in bfloat16, for what is far from its bar: near one, the rounding of another processor would decide."""
    from comfy_extras.nodes_model_advanced import ModelComputeDtype

    return studio.on(ModelComputeDtype().patch(studio.model, "bf16")[0])
