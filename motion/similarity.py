"""How like PIA's picture each frame of a clip is asked to be: the original's tables, and what lies beyond their 16 frames. Pure.

PIA calls it the affinity, or the motion magnitude (arXiv:2312.13964; github.com/open-mmlab/PIA, animatediff/utils/util.py).
"""

from __future__ import annotations

from .settings import check

TRAINED_FRAMES = 16
# By the distance of a frame from the picture's: the original's numbers. The last one stays; a loop's are 16 and come back to 1.
TABLES: dict[str, tuple[float, ...]] = {
    "small motion": (1.0, 0.9, 0.85, 0.85, 0.85, 0.8),
    "moderate motion": (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75),
    "large motion": (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5),
    "loop, small motion": (1.0, 0.9, 0.85, 0.85, 0.85, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.85, 0.85, 0.9, 1.0),
    "loop, moderate motion": (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75, 0.75, 0.75, 0.75, 0.75, 0.78, 0.79, 0.8, 0.8, 1.0),
    "loop, large motion": (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.8, 1.0),
    "style transfer, small motion": (0.5, 0.4, 0.4, 0.4, 0.35, 0.3),
    "style transfer, moderate motion": (0.5, 0.4, 0.4, 0.4, 0.35, 0.35, 0.3, 0.25, 0.2),
    "style transfer, large motion": (0.5, 0.2),
}
MOTIONS = list(TABLES)


def similarities(motion: str, frames: int, picture_frame: int = 0) -> list[float]:
    """For each of so many frames, where the picture is the frame picture_frame (-1: the last); 1 is the picture itself.

    Clips longer than 16 frames: the last number stays, as in the original. A loop's table, which the original would hold
    at its closing 1, is drawn apart in its middle instead (or cut there, for shorter clips), so that every loop closes.
    Raises ValueError for a frame that the clip does not have.
    """
    place = picture_frame + frames if picture_frame < 0 else picture_frame
    check(0 <= place < frames, "frame", f"one of the clip's {frames}, 0 to {frames - 1}", picture_frame)
    table = TABLES[motion]
    if len(table) == TRAINED_FRAMES:
        first, second = min(TRAINED_FRAMES // 2, (frames + 1) // 2), min(TRAINED_FRAMES // 2, frames // 2)
        table = (*table[:first], *[table[first - 1]] * (frames - first - second), *table[TRAINED_FRAMES - second :])
    return [table[min(abs(frame - place), len(table) - 1)] for frame in range(frames)]
