"""The README's moving picture: the first clips of the demo's page, above each the prompt that it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from diffdirector.motion.grid import clip_grid
from diffdirector.tests.host.provision import ROOT

from . import evaluate, world

BANNER = ROOT / "tests" / "demo" / "banner.webp"
CELL, ACROSS = 64, 8  # pixels of a clip and clips across in the sheet
SIZE, ROWS = 176, 2  # the same here, and how many rows
COLUMNS = 4


def main() -> None:
    sheet = evaluate.PAGE.with_name(evaluate.ROWS[0].sheet)
    clips = cut(sheet, COLUMNS * ROWS)
    captions = [world.caption(scene) for scene in evaluate.chosen(len(clips))]
    rows = [labelled(clips[at : at + COLUMNS], captions[at : at + COLUMNS]) for at in range(0, len(clips), COLUMNS)]
    write(torch.cat(rows, dim=1), BANNER)
    print(f"{BANNER}: {BANNER.stat().st_size} bytes")


def cut(sheet: Path, clips: int) -> list[Tensor]:
    """The first clips of a sheet, [f, h, w, 3] in 0..1."""
    with Image.open(sheet) as picture:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    whole = torch.from_numpy(np.stack(frames)).float() / 255
    at = [(CELL * (number // ACROSS), CELL * (number % ACROSS)) for number in range(clips)]
    return [enlarged(whole[:, top : top + CELL, left : left + CELL]) for top, left in at]


def enlarged(clip: Tensor) -> Tensor:
    channels_first = clip.movedim(-1, 1)
    return torch.nn.functional.interpolate(channels_first, size=(SIZE, SIZE), mode="bilinear").movedim(1, -1)


def labelled(clips: list[Tensor], captions: list[str]) -> Tensor:
    return clip_grid(clips, COLUMNS, [], captions, 13)


def write(clip: Tensor, path: Path) -> None:
    pictures = [Image.fromarray((frame * 255).round().byte().numpy()) for frame in clip]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=125, loop=0, quality=75, method=6)
