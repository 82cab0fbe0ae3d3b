"""Sums of LoRAs and their reduction, against the dense matrices they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffdirector.lora.formats import LoraFormatError, LoraLayer
from diffdirector.lora.merge import merge, reduce

OUT, IN = 48, 32


def layer(rank: int, seed: int, alpha: float | None = None, shape: tuple[int, int] = (OUT, IN)) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(*size, generator=generator) for size in ((shape[0], rank), (rank, shape[1])))
    return LoraLayer(up, down, alpha)


def dense(layer: LoraLayer) -> Tensor:
    """In float64."""
    scale = 1.0 if layer.alpha is None else layer.alpha / layer.rank
    return scale * layer.up.double().flatten(1) @ layer.down.double().flatten(1)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -1.3), (2.0, 0.0), (-1.0, -1.0), (0.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_sum_is_exact_whatever_ranks_and_alphas(weights: tuple[float, float], dtype: torch.dtype) -> None:
    sources = [
        ({"a": layer(4, 1), "b": layer(2, 2, alpha=6.0)}, weights[0]),
        ({"a": layer(7, 3, alpha=2.0), "c": layer(3, 4)}, weights[1]),
    ]
    sources = [
        ({name: LoraLayer(v.up.to(dtype), v.down.to(dtype), v.alpha) for name, v in layers.items()}, weight)
        for layers, weight in sources
    ]
    found = merge(sources)
    for name in "abc":
        expected = sum(weight * dense(layers[name]) for layers, weight in sources if name in layers)
        torch.testing.assert_close(
            dense(found[name]) if name in found else 0 * expected, expected, rtol=1e-5, atol=1e-5
        )
    assert all(value.up.dtype == value.down.dtype == torch.float32 and value.alpha is None for value in found.values())
    if all(weights):
        assert [found[name].rank for name in "abc"] == [11, 2, 3]


def test_one_lora_stays_as_it_is_to_the_bit() -> None:
    only = {"a": layer(4, 1), "b": layer(9, 2)}
    for found in (merge([(only, 1.0)]), merge([(only, 1.0)], rank=9), merge([(only, 1.0), ({"a": layer(3, 5)}, 0.0)])):
        assert found.keys() == only.keys()
        assert all(torch.equal(found[n].up, only[n].up) and torch.equal(found[n].down, only[n].down) for n in only)


@pytest.mark.parametrize("rank", [1, 3, 8, 11, 31, 40])
def test_a_reduced_sum_is_the_best_of_its_rank(rank: int) -> None:
    """Its distance from the dense sum is the norm of the singular values that are left out (Eckart and Young)."""
    sources = [({"a": layer(20, 1)}, 1.0), ({"a": layer(25, 2, alpha=10.0)}, -0.8)]
    whole = dense(merge(sources)["a"])
    found = merge(sources, rank)["a"]
    assert found.rank == min(rank, OUT, IN)
    singular = torch.linalg.svdvals(whole)
    left_out = singular[found.rank :].norm()
    assert abs((dense(found) - whole).norm() - left_out) < 1e-5 * whole.norm()
    torch.testing.assert_close(torch.linalg.svdvals(dense(found))[:rank], singular[:rank], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.up.norm(dim=0), found.down.norm(dim=1))


def test_reducing_what_fits_the_rank_loses_nothing() -> None:
    once = layer(4, 1)
    twice = merge([({"a": once}, 1.0), ({"a": once}, 1.0)], rank=4)["a"]
    assert twice.rank == 4 and error(dense(twice), 2 * dense(once)) < 1e-6
    nothing = merge([({"a": once}, 1.0), ({"a": once}, -1.0)], rank=4)["a"]
    assert dense(nothing).abs().max() < 1e-5
    zero = reduce(LoraLayer(torch.zeros(OUT, 8), layer(8, 1).down), 2)
    assert zero.rank == 2 and not dense(zero).any()


def test_signs_do_not_depend_on_the_factors_signs() -> None:
    full = layer(12, 1)
    flipped = LoraLayer(-full.up.flip(1), -full.down.flip(0))
    one, other = reduce(full, 5), reduce(flipped, 5)
    assert error(other.up, one.up) < 1e-4 and error(other.down, one.down) < 1e-4
    assert (one.up.gather(0, one.up.abs().argmax(0, keepdim=True)) > 0).all()


def test_convolutions_of_one_pixel_are_matrices() -> None:
    flat = layer(4, 1)
    convolution = LoraLayer(flat.up[..., None, None], flat.down[..., None, None])
    found = merge([({"a": convolution}, 1.0), ({"a": flat}, 1.0)], rank=4)["a"]
    assert found.up.shape == (OUT, 4) and error(dense(found), 2 * dense(flat)) < 1e-6


def test_loras_of_other_models_or_damaged_ones_are_refused_by_name() -> None:
    with pytest.raises(LoraFormatError, match=r"a: expected a LoRA for a 48 x 32 matrix, found 64 x 32.*family"):
        merge([({"a": layer(4, 1)}, 1.0), ({"a": layer(4, 1, shape=(64, IN))}, 1.0)])
    with pytest.raises(LoraFormatError, match=r"a: expected up \[out, rank\].*damaged"):
        merge([({"a": LoraLayer(layer(4, 1).up, layer(3, 1).down)}, 1.0)])
    with pytest.raises(LoraFormatError, match="damaged"):
        merge([({"a": LoraLayer(torch.zeros(()), torch.zeros(4))}, 1.0)])
