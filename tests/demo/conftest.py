from __future__ import annotations

from pathlib import Path

import pytest

from . import evaluate, stack


@pytest.fixture(scope="session")
def studio(base: Path) -> evaluate.Studio:
    """At half of the pages' steps, which the bars allow for."""
    stack.link_models(base)
    return evaluate.Studio(steps=evaluate.STEPS // 2)
