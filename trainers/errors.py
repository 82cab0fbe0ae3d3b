"""What can go wrong while training, in words that say what to change."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .config import TrainConfig


class TrainingDiverged(ArithmeticError):
    """A loss or its gradient is no number any more; the message says what is kept and what to change."""

    def __init__(self, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        super().__init__(
            f"Step {step}: expected a finite gradient, found losses {dict(losses)}. What was learnt until step {step - 1} is "
            f'kept. Lower learning_rate (it is {learning_rate:g}), or set precision to "float32", and run again.'
        )


class TrainingOutOfMemory(MemoryError):
    """A step does not fit; the message says which settings lower what it takes."""

    def __init__(self, step: int, config: TrainConfig) -> None:
        advice = ["smaller or fewer frames in the dataset (width, height, frames)"]
        if config.batch_size > 1:
            advice.insert(0, f"batch_size 1 (it is {config.batch_size}), with accumulate for the same effect")
        if not config.gradient_checkpointing:
            advice.insert(0, "gradient_checkpointing on")
        super().__init__(
            f"Step {step} does not fit into memory. What was learnt until step {step - 1} is kept. To lower what a step takes, in this order: "
            f"{'; '.join(advice)}. Close other programs that use the device, and run again."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Of a device, whatever raises it there, or of the CPU's allocator, which has no exception of its own."""
    says = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in says or "DefaultCPUAllocator" in says
