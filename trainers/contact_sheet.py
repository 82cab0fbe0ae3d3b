"""One picture of what will be trained on. No host import."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .sources import Clip
from .video import left_out, nothing_usable

GAP = 2


def contact_sheet(sources: Sequence[Clip], rows: int = 16, columns: int = 8, height: int = 96) -> Tensor:
    """[h, w, 3] in [0, 1]: a row per clip, decoded as training will see it, of columns evenly spaced frames.

    rows: of more clips than that, evenly spaced ones are shown; a repeated clip once. What cannot be decoded is logged and another is shown.
    Raises DatasetError, with every reason, when nothing can be decoded.
    """
    distinct = list({id(source): source for source in sources}.values())
    every = -(-len(distinct) // rows)
    shown: dict[int, Tensor] = {}
    reasons: list[str] = []
    for index in sorted(range(len(distinct)), key=lambda index: index % every):
        with left_out(reasons):
            shown[index] = _row(distinct[index].read(), columns, height)
        if len(shown) == rows:
            break
    if not shown:
        raise nothing_usable(reasons)
    width = max(row.shape[1] for row in shown.values())
    padded = [F.pad(shown[index], (0, 0, 0, width - shown[index].shape[1], 0, GAP)) for index in sorted(shown)]
    return torch.cat(padded)[:-GAP]


def _row(clip: Tensor, columns: int, height: int) -> Tensor:
    """clip [frames, 3, h, w] -> [height, w, 3], its first frame at the left, its last at the right."""
    picked = torch.linspace(0, len(clip) - 1, min(columns, len(clip))).round().long()
    width = max(1, round(clip.shape[3] * height / clip.shape[2]))
    small = F.interpolate(clip[picked], size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    spaced = F.pad(small.clamp(0, 1), (0, GAP)).permute(2, 0, 3, 1).flatten(1, 2)
    return spaced[:, :-GAP]
