"""`make demo-sparse`: do clips begin and end at the pictures that a SparseCtrl is shown? The demo's models through the host's own
nodes and ours, on scenes of the world; every clip is compared with the one whose first and last frame it was shown."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdirector.tests.host.inprocess import boot, device_arguments
from diffdirector.tests.host.provision import cache_dir

from . import sparse, stack, tracker, world
from .evaluate import Studio, write_page, write_sheet

PAGE = Path(__file__).with_name("SPARSECTRL.md")
FRAMES, CLIPS, SCENES_SEED = 16, 8, 77
THERE = 4.0  # px of a centroid from where it should be


HEADINGS = (
    "PSNR of first and last frame, dB",
    "first within 4 px",
    "last within 4 px",
    "colour as prompted",
    "one body in all frames",
)


class Found(NamedTuple):
    """Of first and of last frames: PSNR with those of the scene's clip in dB, and the share whose body is where it is there;
    and the share of clips with the scene's colour, and of those whose frames all have one body."""

    psnr: float
    first: float
    last: float
    colour: float
    whole: float


@dataclass(frozen=True)
class Trial:
    """One line of the table. shown: the SparseCtrl's kind, none for the prompt alone. unsaid: what the prompts leave out."""

    name: str
    shown: str = ""
    indices: str = "0, -1"
    unsaid: str = ""
    sheet: str = ""


TRIALS = (
    Trial("nothing shown"),
    Trial("pictures, first and last", "rgb", sheet="held-pictures.webp"),
    Trial("picture, first", "rgb", "0"),
    Trial("scribbles, first and last", "scribble", sheet="held-scribbles.webp"),
    Trial("pictures, first and last; no word of a movement", "rgb", unsaid="movement"),
    Trial("nothing; no word of a movement", unsaid="movement"),
)


def scenes(count: int) -> list[world.Scene]:
    """Those that travel, so that first and last frame differ."""
    return [
        scene for scene in world.scenes(SCENES_SEED, 4 * count) if scene.movement in ("left", "right", "up", "down")
    ][:count]


def shown_to(studio: Studio, trial: Trial, filmed: Tensor) -> Any:
    """What puts filmed frames [f, 3, h, w] into (positive, negative), as the graph does."""
    from diffdirector.motion.scribbles import LINES
    from diffdirector.nodes.sparsectrl import ApplySparseCtrl, LoadSparseCtrl, ScribblePreprocessor

    control = LoadSparseCtrl.execute(stack.SPARSE_FILES[trial.shown]).result[0]
    pictures = filmed.movedim(1, -1)
    if trial.shown == "scribble":
        pictures = ScribblePreprocessor.execute(pictures, LINES, sparse.LINE_THRESHOLD).result[0]
    return lambda positive, negative: (
        ApplySparseCtrl.execute(positive, negative, control, pictures, trial.indices, vae=studio.vae).result
    )


def measured(filmed: Sequence[Tensor], made: Sequence[Tensor], subjects: Sequence[world.Scene]) -> Found:
    ends = [0, -1]
    errors = torch.stack([(one[ends] - other[ends]).square().mean() for one, other in zip(filmed, made, strict=True)])
    read = [[tracker.read_clip(clip) for clip in clips] for clips in (filmed, made)]
    there = [
        [distance(one.pictures[end], other.pictures[end]) <= THERE for end in ends]
        for one, other in zip(*read, strict=True)
    ]
    share = torch.tensor(there).float().mean(0).tolist()
    clips = read[1]
    return Found(
        float((-10 * errors.log10()).mean()),
        *share,
        sum(clip.colour == scene.colour for clip, scene in zip(clips, subjects, strict=True)) / len(clips),
        sum(clip.lost == clip.doubled == 0 for clip in clips) / len(clips),
    )


def distance(one: tracker.Picture, other: tracker.Picture) -> float:
    """Between their bodies, in px; not a number where one has none."""
    return math.dist((one.x, one.y), (other.x, other.y))


def run(studio: Studio, trial: Trial, count: int) -> tuple[Found, list[Tensor]]:
    """Clips of count scenes as the trial says, each with its own seed."""
    subjects = scenes(count)
    filmed = [world.render(scene, FRAMES) for scene in subjects]
    made = [
        studio.clip(
            world.caption(scene, trial.unsaid),
            seed,
            conditioned=shown_to(studio, trial, frames) if trial.shown else None,
        )
        for seed, (scene, frames) in enumerate(zip(subjects, filmed, strict=True))
    ]
    return measured(filmed, made, subjects), [frame for pair in zip(filmed, made, strict=True) for frame in pair]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, help="the first so many only; the page is left as it is")
    parser.add_argument("--clips", type=int, default=CLIPS, help="of each trial, not more")
    arguments, for_comfyui = parser.parse_known_args()
    base = cache_dir() / "demo"
    boot([*device_arguments(), *for_comfyui], base)
    stack.link_models(base)
    whole = arguments.trials is None and arguments.clips == CLIPS
    sheets = PAGE.parent if whole else base / "output"
    sheets.mkdir(parents=True, exist_ok=True)
    lines = [
        f"| shown | clips | {' | '.join(HEADINGS)} | seconds a clip |",
        "|---" * 8 + "|",
    ]
    print("\n".join(lines), flush=True)
    with torch.inference_mode():
        studio = Studio()
        for trial in TRIALS[: arguments.trials]:
            started = time.monotonic()
            found, clips = run(studio, trial, arguments.clips)
            seconds = (time.monotonic() - started) / arguments.clips
            shares = " | ".join(f"{share:.0%}" for share in found[1:])
            lines.append(f"| {trial.name} | {arguments.clips} | {found.psnr:.1f} | {shares} | {seconds:.1f} |")
            print(lines[-1], flush=True)
            if trial.sheet:
                write_sheet(sheets / trial.sheet, clips)
    if whole:
        write_page("\n".join(lines), PAGE)
    print(f"All clips: {sheets}")
