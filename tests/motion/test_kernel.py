"""Attention over time where gradients are wanted: the same numbers as PyTorch's kernel, on a CPU by the faster way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, autocast

from diffdirector.motion.module import SHORT, host_kernel
from diffdirector.tests.host.evaluate import randn, relative_error

HEADS, WIDTH = 8, 40


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():  # as in training; tests run as nodes do
        yield


def queries_keys_values(frames: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [randn(6, frames, HEADS * WIDTH, seed=seed).to(dtype).requires_grad_() for seed in range(3)]


def expected(tensors: list[Tensor]) -> list[Tensor]:
    """The result and the gradients, by PyTorch's own attention in float64."""
    tensors = [tensor.detach().double().requires_grad_() for tensor in tensors]
    out = F.scaled_dot_product_attention(*(tensor.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for tensor in tensors))
    out = out.transpose(1, 2).flatten(2)
    return [out, *torch.autograd.grad(out.square().sum(), tensors)]


def found(tensors: list[Tensor], options: dict[str, Any] | None = None) -> list[Tensor]:
    out = host_kernel(options)(*tensors, HEADS)
    return [out, *torch.autograd.grad(out.double().square().sum(), tensors)]


@pytest.mark.parametrize("frames", [2, 16, SHORT, SHORT + 1])
def test_results_and_gradients_are_those_of_plain_attention(frames: int) -> None:
    tensors = queries_keys_values(frames)
    for ours, theirs in zip(found(tensors), expected(tensors), strict=True):
        assert relative_error(ours.detach().double(), theirs.detach()) < 2e-6


def test_half_precision_is_rounded_at_the_end_only() -> None:
    """Scores rounded to bfloat16 on the way would be several times further off."""
    tensors = queries_keys_values(16, torch.bfloat16)
    with autocast("cpu", torch.bfloat16):
        ours = found([4 * tensor for tensor in tensors])
    theirs = expected([4 * tensor for tensor in tensors])[0]
    assert all(tensor.dtype == torch.bfloat16 for tensor in ours)
    assert relative_error(ours[0].detach().double(), theirs.detach()) < 2e-3


def test_another_packs_override_is_asked_there_too() -> None:
    asked: list[str] = []

    def override(function: Any, *arguments: Any, **options: Any) -> Tensor:
        asked.append(function.__name__)
        return function(*arguments, **options)

    tensors = queries_keys_values(16)
    found(tensors, {"optimized_attention_override": override})
    assert asked == ["attention_basic"]
    with torch.no_grad():
        host_kernel({"optimized_attention_override": override})(*tensors, HEADS)
    assert len(asked) == 2 and asked[1] != "attention_basic"
