"""Group norms that see whole clips: what AnimateDiff v1 does to the image UNet (use_inflated_groupnorm: false). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_open: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def frames_seen_by(norm: nn.Module) -> int | None:
    """Of the over_clips that is open for this norm; None where none is."""
    return _open.get(norm)


@contextmanager
def over_clips(norms: Sequence[nn.Module], frames: int) -> Iterator[None]:
    """While open, these group norms take [clips * frames, c, h, w] as [clips, c, frames * h, w]."""

    def gather(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        n, c, h, w = args[0].shape
        return (args[0].view(n // frames, frames, c, h, w).transpose(1, 2).reshape(n // frames, c, frames * h, w),)

    def spread(_: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        clips, c, height, w = out.shape
        return out.view(clips, c, frames, height // frames, w).transpose(1, 2).reshape(clips * frames, c, -1, w)

    hooks = [
        hook for norm in norms for hook in (norm.register_forward_pre_hook(gather), norm.register_forward_hook(spread))
    ]
    _open.update(dict.fromkeys(norms, frames))
    try:
        yield
    finally:
        for norm in norms:
            _open.pop(norm, None)
        for hook in hooks:
            hook.remove()
