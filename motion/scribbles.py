"""Pictures -> scribbles as SparseCtrl was trained on them: light lines on black. Pure tensors."""

from __future__ import annotations

import torch
from kornia.filters import canny, gaussian_blur2d
from torch import Tensor

LINES, CANNY, DRAWING = "lines", "canny", "drawing"
METHODS = [LINES, CANNY, DRAWING]

SHARPNESS = 60.0  # of a line's border in contrast, XDoG's phi


def scribbles(images: Tensor, method: str, threshold: float) -> Tensor:
    """images [n, height, width, channels] in 0 to 1 -> lines of the same size, [n, height, width, 3].

    lines: soft ones where it is darker than around (XDoG, Winnemoeller et al. 2012, doi:10.1016/j.cag.2012.03.004).
    canny: edges one pixel wide. drawing: for what is drawn already, its range stretched as the original's
    normalize_condition_images does, dark on light turned round. threshold, 0 to 1: the least contrast of a line; not for drawings.
    """
    grey = images[..., :3].mean(-1)[:, None]
    if method == DRAWING:
        low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
        stretched = (grey - low) / (high - low).clamp(min=1e-6)
        found = torch.where(stretched.mean((2, 3), keepdim=True) > 0.5, 1 - stretched, stretched)
    elif method == CANNY:
        high = max(threshold, 0.02)
        found = canny(grey / 3, low_threshold=high / 2, high_threshold=high)[
            1
        ]  # its gradient of a whole step is about 3
    else:
        fine = max(0.5, min(grey.shape[2:]) / 340)
        darker = _blurred(grey, 1.6 * fine) - _blurred(grey, fine)
        found = torch.tanh(SHARPNESS * (darker - threshold / 10)).clamp(min=0)  # a whole step's response is about 0.1
    return found[:, 0, :, :, None].expand(-1, -1, -1, 3).contiguous()


def _blurred(grey: Tensor, sigma: float) -> Tensor:
    reach = min(int(3 * sigma) + 1, min(grey.shape[2:]) - 1)  # a border can reflect no more than there is
    return gaussian_blur2d(grey, (2 * reach + 1, 2 * reach + 1), (sigma, sigma))
