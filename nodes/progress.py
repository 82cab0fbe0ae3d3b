"""The host's progress bar and its Cancel, for work that goes frame by frame."""

from __future__ import annotations

from collections.abc import Callable

from comfy import model_management
from comfy.utils import ProgressBar


def progress(total: int) -> Callable[[int], None]:
    """To be told how many of total are done. Raises the host's interruption when the user cancels."""
    bar = ProgressBar(total)

    def on_frame(done: int) -> None:
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done)

    return on_frame
