"""Several LoRAs as one: their exact weighted sum, and what of it a lower rank can hold. Pure: torch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .formats import LoraLayer, check_shape


def merge(sources: Sequence[tuple[Mapping[str, LoraLayer], float]], rank: int = 0) -> dict[str, LoraLayer]:
    """Layer name -> the sum of weight * alpha / rank * up @ down over the sources (layers, weight) that have the layer.

    Exact with rank 0: ups and downs stand side by side and ranks add up. Otherwise every layer of more than that rank is reduced to it.
    The result is in float32 matrices (1x1 convolutions too) with alpha folded into up. Raises LoraFormatError for shapes that do not fit.
    """
    used = [source for source in sources if source[1] != 0] or sources
    terms: dict[str, list[LoraLayer]] = {}
    for layers, weight in used:
        for name, layer in layers.items():
            others = terms.setdefault(name, [])
            first = others[0] if others else layer
            check_shape(name, layer, first.up.shape[:1] + first.down.shape[1:2])
            others.append(_scaled(layer, weight))
    summed = {
        name: LoraLayer(torch.cat([term.up for term in found], 1), torch.cat([term.down for term in found]))
        for name, found in terms.items()
    }
    return {name: reduce(layer, rank) for name, layer in summed.items()} if rank else summed


def reduce(layer: LoraLayer, rank: int) -> LoraLayer:
    """The closest layer of that rank (Eckart and Young 1936), its singular values shared evenly by up and down.

    layer: float32 matrices, alpha folded in. The decomposition is of the product of the factors' triangular parts, a matrix of the
    layer's rank, so that up @ down itself is never formed. A layer that has no more than that rank stays as it is.
    """
    if layer.rank <= rank:
        return layer
    left, of_up = torch.linalg.qr(layer.up)
    right, of_down = torch.linalg.qr(layer.down.T)
    u, singular, v = torch.linalg.svd(of_up @ of_down.T, full_matrices=False)
    root = singular[:rank].sqrt()
    up = left @ u[:, :rank] * root
    down = root[:, None] * (v[:rank] @ right.T)
    # A decomposition leaves the signs open: the largest entry of each column of up is made positive, on every machine
    signs = up.gather(0, up.abs().argmax(0, keepdim=True)).sign()
    return LoraLayer(up * signs, down * signs.T)


def _scaled(layer: LoraLayer, weight: float) -> LoraLayer:
    scale = weight * (1.0 if layer.alpha is None else layer.alpha / layer.rank)
    return LoraLayer(layer.up.float().flatten(1) * scale, layer.down.float().flatten(1))
