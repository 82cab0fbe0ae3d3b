"""What one evaluation of the UNet is of: which frames of the clip, at which step. Read from the host's transformer_options. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

FRAMES_OF_WINDOW = "ad_params"  # where IP-Adapter packs look for the frames of a window, since AnimateDiff-Evolved
WINDOWS_AT_ONCE = "diffdirector_windows_at_once"  # how many windows lie one after the other under each conditioning
VIEWS = "diffdirector_views"  # the windows in which motion models see a clip


def clips_in(x: Tensor, options: dict[str, Any]) -> int:
    """Clips in a batch that the host made of several conditionings, each of one or more windows. x: [clips * frames, ...]."""
    clips = len(options.get("cond_or_uncond") or [0]) * options.get(WINDOWS_AT_ONCE, 1)
    if x.shape[0] % clips:
        raise ValueError(
            f"Expected a batch of {clips} conditionings with the same number of frames each; found {x.shape[0]} latents."
        )
    return clips


def frames_per_clip(x: Tensor, options: dict[str, Any]) -> int:
    """Frames that the motion model sees together. x: [clips * frames, ...]."""
    return x.shape[0] // clips_in(x, options)


class ClipFrames(NamedTuple):
    """Which frames of the whole clip each clip of a batch shows, equally many each, and how many the whole has."""

    clips: list[list[int]]
    total: int

    @property
    def length(self) -> int:
        return len(self.clips[0])

    def window(self, window: Sequence[int]) -> ClipFrames:
        """Of each clip these frames alone, by their places in it."""
        return ClipFrames([[clip[place] for place in window] for clip in self.clips], self.total)


def frames_of_clips(x: Tensor, options: dict[str, Any]) -> ClipFrames:
    """x: [clips * frames, ...]."""
    frames = frames_per_clip(x, options)
    shown, total = _frames_of_window(options) or (list(range(frames)), frames)
    clips = [shown[start : start + frames] for start in range(0, len(shown), frames)]
    return ClipFrames(clips * (len(x) // len(shown)), total)


def _frames_of_window(options: dict[str, Any]) -> tuple[list[int], int] | None:
    """(frames of a context window, how many the clip has), of our windows or of the host's; None outside of any."""
    ours, hosts = options.get(FRAMES_OF_WINDOW) or {}, options.get("context_window")
    if ours.get("sub_idxs") is not None:
        return list(ours["sub_idxs"]), ours["full_length"]
    if hosts is None or hosts.dim != 0:
        return None
    before = getattr(hosts, "causal_anchor_index", None)  # the frame that its causal_window_fix puts in front
    return [*([] if before is None or before < 0 else [before]), *hosts.index_list], hosts.total_frames


@lru_cache(maxsize=64)
def percent_of(sigma: float, sampling: Any) -> float:
    """How much of a sampling is done at this sigma, 0 to 1, as a noise schedule's percent_to_sigma counts it."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if sampling.percent_to_sigma(middle) > sigma else (low, middle)
    return high if high > 1e-5 else 0.0


def step_number(options: dict[str, Any]) -> int:
    """Of the step that an evaluation belongs to, counted from 0; 0 outside of any sampling.

    Samplers of higher order also ask at sigmas between two steps: that is the earlier one.
    """
    sigmas, schedule = options.get("sigmas"), options.get("sample_sigmas")
    if sigmas is None or schedule is None:
        return 0
    reached = torch.nonzero(schedule >= sigmas.max().to(schedule) * (1 - 1e-4))
    return int(reached[-1]) if len(reached) else 0
