"""`make demo-eval`: does what is asked for appear, and move as asked? Seeded clips through the host's own nodes, read by the tracker."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from diffdirector.tests.host.inprocess import boot, device_arguments
from diffdirector.tests.host.provision import cache_dir

from . import stack, tracker, world

PAGE = Path(__file__).with_name("README.md")
MARK = ("<!-- table -->", "<!-- end of table -->")
SCENES_SEED = 64
STEPS, CFG, SAMPLER, SCHEDULER = 20, 3.0, "dpmpp_2m", "normal"


class Verdict(NamedTuple):
    """What of a clip is as its caption says (the first four), and whether it is of one piece."""

    movement: bool
    colour: bool
    background: bool
    shape: bool
    even: bool
    whole: bool


ASKED = Verdict(0.85, 0.95, 0.95, 0.85, 0.90, 0.95)  # type: ignore[arg-type]
HEADINGS = ("movement", "colour", "background", "shape", "even steps", "nothing lost or doubled")


@dataclass(frozen=True)
class Row:
    """One line of the table: how its clips are sampled. strength 0 is the base on its own, on the same noise schedule."""

    name: str
    clips: int
    frames: int = 16
    size: int = 64
    strength: float = 1.0
    sheet: str = ""


ROWS = (
    Row("16 frames", 64, sheet="contact-sheet.webp"),
    Row("8 frames", 32, frames=8),
    Row("48 frames, in windows of 16", 4, frames=48),
    Row("128x128", 8, size=128),
    Row("without the motion module", 16, strength=0.0, sheet="without-motion.webp"),
)


class Studio:
    """The demo's models, loaded and sampled by the host's own nodes in this process, after boot()."""

    def __init__(self, steps: int = STEPS) -> None:
        import folder_paths

        import nodes
        from diffdirector.motion.context import apply_context_windows
        from diffdirector.motion.module import load_motion_model
        from diffdirector.motion.splice import apply_motion_model
        from diffdirector.motion.windows import Windows

        self.nodes, self.apply, self.steps = nodes, apply_motion_model, steps
        self.in_windows = lambda model: apply_context_windows(model, Windows())
        self.model, self.text, self.vae = nodes.CheckpointLoaderSimple().load_checkpoint(stack.CHECKPOINT)
        path = Path(folder_paths.models_dir) / "animatediff_models" / stack.MOTION_MODEL
        self.motion = load_motion_model(str(path))

    def on(self, model: Any) -> Studio:
        """The same with another checkpoint's MODEL."""
        other = copy.copy(self)
        other.model = model
        return other

    def clip(
        self,
        prompt: str,
        seed: int,
        row: Row = ROWS[0],
        motion: Any = None,
        conditioned: Callable[[Any, Any], Any] | None = None,
    ) -> Tensor:
        """Frames [f, 3, h, w] in 0..1. motion: another motion model than the demo's. conditioned: what further becomes of the
        prompts, positive and negative."""
        model = self.in_windows(self.apply(self.model, motion or self.motion, strength=row.strength))
        positive, negative = (self.nodes.CLIPTextEncode().encode(self.text, text)[0] for text in (prompt, ""))
        if conditioned is not None:
            positive, negative = conditioned(positive, negative)
        (latent,) = self.nodes.EmptyLatentImage().generate(row.size, row.size, row.frames)
        settings = (seed, self.steps, CFG, SAMPLER, SCHEDULER)
        (samples,) = self.nodes.KSampler().sample(model, *settings, positive, negative, latent)
        (images,) = self.nodes.VAEDecode().decode(self.vae, samples)
        return images.permute(0, 3, 1, 2)


def judge(scene: world.Scene, frames: Tensor) -> Verdict:
    """What the tracker says of frames that were to show scene."""
    clip = tracker.read_clip(frames)
    return Verdict(
        clip.movement == scene.movement,
        clip.colour == scene.colour,
        clip.background == scene.background,
        clip.shape == scene.shape,
        clip.even,
        clip.lost == clip.doubled == 0,
    )


def shares(verdicts: Sequence[Verdict]) -> Verdict:
    """Of each verdict, the share of clips that have it."""
    return Verdict(*(sum(column) / len(verdicts) for column in zip(*verdicts, strict=True)))  # type: ignore[arg-type]


def chosen(clips: int) -> list[world.Scene]:
    """The first so many of the table's scenes; among any few about as many of each kind."""
    return world.scenes(SCENES_SEED, clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, help="of each row, not more; the page is left as it is")
    parser.add_argument("--rows", type=int, help="the first so many rows only; the page is left as it is")
    arguments, for_comfyui = parser.parse_known_args()
    base = cache_dir() / "demo"
    boot([*device_arguments(), *for_comfyui], base)
    stack.link_models(base)
    with torch.inference_mode():
        whole = arguments.clips is None and arguments.rows is None
        sheets = PAGE.parent if whole else base / "output"
        sheets.mkdir(parents=True, exist_ok=True)
        found = table(Studio(), ROWS[: arguments.rows], arguments.clips, sheets)
    if whole:
        write_page(found, PAGE)
    print(f"{found}\nAll clips: {sheets}")


def table(studio: Studio, rows: Sequence[Row], at_most: int | None, sheets: Path) -> str:
    """A line for each row, and in sheets all clips of those that have a sheet."""
    lines = [
        "| | clips | " + " | ".join(HEADINGS) + " | seconds a clip |",
        "|---|" + "---|" * (len(HEADINGS) + 2),
        "| asked for | | " + " | ".join(f">= {share:.0%}" for share in ASKED) + " | |",
    ]
    for row in rows:
        started, clips = time.monotonic(), min(row.clips, at_most or row.clips)
        scenes = chosen(clips)
        made = [studio.clip(world.caption(scene), seed, row) for seed, scene in enumerate(scenes)]
        seconds = (time.monotonic() - started) / clips
        found = shares([judge(scene, frames) for scene, frames in zip(scenes, made, strict=True)])
        lines.append(
            f"| {row.name} | {clips} | " + " | ".join(f"{share:.0%}" for share in found) + f" | {seconds:.1f} |"
        )
        print(lines[-1], flush=True)
        if row.sheet:
            write_sheet(sheets / row.sheet, made)
    return "\n".join(lines)


def write_page(table: str, page: Path, mark: tuple[str, str] = MARK) -> None:
    """The page with this table in place of the one it has between the two marks."""
    text = page.read_text()
    before, after = text.split(mark[0])[0], text.split(mark[1])[1]
    page.write_text(before + mark[0] + "\n" + table + "\n" + mark[1] + after)


def write_sheet(path: Path, clips: Sequence[Tensor], columns: int = 8) -> None:
    """All clips side by side, moving."""
    rows = [torch.cat(list(clips[i : i + columns]), dim=3) for i in range(0, len(clips), columns)]
    frames = (torch.cat([row for row in rows if row.shape[3] == rows[0].shape[3]], dim=2) * 255).round().byte()
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=125, loop=0, quality=80)
