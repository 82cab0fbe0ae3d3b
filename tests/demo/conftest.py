from __future__ import annotations

from pathlib import Path

import pytest

from . import evaluate, stack


@pytest.fixture(scope="session")
def studio(base: Path) -> evaluate.Studio:
    """At half of the pages' steps and in bfloat16, which the bars allow for."""
    from comfy_extras.nodes_model_advanced import ModelComputeDtype

    stack.link_models(base)
    studio = evaluate.Studio(steps=evaluate.STEPS // 2)
    return studio.on(ModelComputeDtype().patch(studio.model, "bf16")[0])
