"""Pictures -> scribbles as SparseCtrl was trained on them: light lines on black. Pure tensors."""

from __future__ import annotations

import torch
from kornia.filters import canny, gaussian_blur2d, sobel
from kornia.morphology import dilation, erosion
from torch import Tensor

LINES, CANNY, SOBEL, DRAWING = "lines", "canny", "sobel", "drawing"
METHODS = [LINES, CANNY, SOBEL, DRAWING]

SHARPNESS = 60.0  # of a line's border in contrast, XDoG's phi
WHOLE_STEP = 3.0  # what canny's gradient is about where black ends and white begins
CROSS = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])


def scribbles(
    images: Tensor, method: str, threshold: float, *, thickness: int = 0, invert: bool = False, normalize: bool = False
) -> Tensor:
    """images [n, height, width, channels] in 0 to 1 -> lines of the same size, [n, height, width, 3].

    lines: soft ones where it is darker than around (XDoG, Winnemoeller et al. 2012, doi:10.1016/j.cag.2012.03.004).
    canny: edges one pixel wide. sobel: edges as light as they are sharp. drawing: for what is drawn already, its range
    stretched as the original's normalize_condition_images does, dark on light turned round. threshold, 0 to 1: the least
    contrast of a line; not for drawings. Then, in this order: normalize stretches each picture to 0 to 1, invert exchanges
    light and dark, thickness widens light lines by so many pixels on each side, or narrows them where it is negative.
    """
    grey = images[..., :3].mean(-1)[:, None]
    if method == DRAWING:
        stretched = _stretched(grey)
        found = torch.where(stretched.mean((2, 3), keepdim=True) > 0.5, 1 - stretched, stretched)
    elif method == CANNY:
        high = max(threshold, 0.02)
        found = canny(grey / WHOLE_STEP, low_threshold=high / 2, high_threshold=high)[1]
    elif method == SOBEL:
        edges = (2 * sobel(grey, eps=1e-12)).clamp(max=1)  # 1 where black ends and white begins
        found = torch.where(edges > max(threshold, 1e-5), edges, 0)
    else:
        fine = max(0.5, min(grey.shape[2:]) / 340)
        darker = _blurred(grey, 1.6 * fine) - _blurred(grey, fine)
        found = torch.tanh(SHARPNESS * (darker - threshold / 10)).clamp(min=0)  # a whole step's response is about 0.1
    found = _stretched(found) if normalize else found
    found = 1 - found if invert else found
    for _ in range(abs(thickness)):
        found = (dilation if thickness > 0 else erosion)(found, CROSS.to(found))
    return found[:, 0, :, :, None].expand(-1, -1, -1, 3).contiguous()


def _stretched(grey: Tensor) -> Tensor:
    low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
    return (grey - low) / (high - low).clamp(min=1e-6)


def _blurred(grey: Tensor, sigma: float) -> Tensor:
    reach = min(int(3 * sigma) + 1, min(grey.shape[2:]) - 1)  # a border can reflect no more than there is
    return gaussian_blur2d(grey, (2 * reach + 1, 2 * reach + 1), (sigma, sigma))
