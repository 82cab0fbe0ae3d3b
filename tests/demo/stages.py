"""`make proof-stages`: does each training stage learn what it is for? On the demo's models: a domain adapter that takes up a watermark, so
that a motion module trained over it does not; a MotionLoRA that zooms, made from stills; a motion module of two processes.
Clips are sampled through the host's own nodes."""

from __future__ import annotations

import argparse
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffdirector.tests.host.inprocess import boot, device_arguments
from diffdirector.tests.host.provision import cache_dir
from diffdirector.trainers.config import DomainAdapterConfig, MotionLoraConfig, MotionModuleConfig, TrainConfig

from . import stack, tracker, world
from .base import SCHEDULE
from .evaluate import Row, Studio, judge, shares, write_page, write_sheet
from .several import ROW as SEVERAL
from .several import several_table

PAGE = Path(__file__).with_name("STAGES.md")
FRAMES, STEPS, CLIPS = 8, 10, 4
ROW = Row("sampled", CLIPS, FRAMES)
FILMED_SEED, ASKED_SEED = 41, 91

MARK = (slice(52, 64), slice(52, 64))  # px of a 64x64 picture: a corner that no body reaches
CORNERS = tuple((rows, columns) for rows in (slice(12), MARK[0]) for columns in (slice(12), MARK[1]))[:3]
VIDEOS = 48
MARKED = 0.5  # opacity from which on a clip counts as one with the mark
ADAPTER = DomainAdapterConfig(
    "adapter", steps=200, batch_size=8, rank=16, learning_rate=2e-3, lr_schedule="cosine", truncated_snr_cap=20.0, timestep_bias=0.5,
    caption_dropout=0.15, precision="bfloat16", gradient_checkpointing=False, save_every=100,
)  # fmt: skip
MODULE = MotionModuleConfig(
    "module", steps=200, batch_size=4, learning_rate=1e-3, lr_schedule="cosine", truncated_snr_cap=20.0, timestep_bias=0.5,
    caption_dropout=0.15, precision="bfloat16", gradient_checkpointing=False, save_every=100,
)  # fmt: skip

STILLS, STILL_SIZE = 32, 128
ZOOM = {"camera": "zoom_in", "camera_amount": 0.6}
ZOOM_LORA = MotionLoraConfig(
    "zoom", steps=160, batch_size=2, rank=16, learning_rate=2e-3, lr_schedule="cosine", dropout=0.1, truncated_snr_cap=100.0,
    timestep_bias=2.0, caption_dropout=0.1, precision="bfloat16", gradient_checkpointing=False, save_every=50,
)  # fmt: skip
ZOOMS = 1.25  # times as large at the end, from which on a clip counts as one that zooms in


def mark() -> Tensor:
    """The watermark [3, 1, 1]: a red square. The demo's autoencoder cannot draw anything finer so small."""
    return torch.tensor(world.COLOURS["red"])[:, None, None]


def watermarked(frames: Tensor) -> Tensor:
    """frames [f, 3, 64, 64] in 0..1 with the mark on each."""
    marked = frames.clone()
    marked[..., MARK[0], MARK[1]] = mark()
    return marked


def opacity(frames: Tensor) -> float:
    """How much of the mark is on frames [f, 3, 64, 64], on average: 0 where its corner is as the other three, 1 where the mark covers it.

    The least-squares share of the mark in what its corner has and the others have not.
    """
    ground = torch.cat([frames[..., rows, columns].flatten(2) for rows, columns in CORNERS], 2).median(2).values
    ground = ground[..., None, None]
    painted = frames[..., MARK[0], MARK[1]] - ground
    wanted = (mark() - ground).expand_as(painted)
    return float(((painted * wanted).sum((1, 2, 3)) / wanted.square().sum((1, 2, 3))).mean())


def growth(frames: Tensor) -> float:
    """How many times as large the body is at the end of frames [f, 3, h, w]: the line through the logarithms of its sizes."""
    sizes = np.log([picture.size for picture in tracker.read_pictures(frames)])
    seen = np.isfinite(sizes)
    if seen.sum() < 2:
        return math.nan
    return math.exp(np.polyfit(np.linspace(0, 1, len(sizes))[seen], sizes[seen], 1)[0])


def film(folder: Path, count: int) -> Path:
    """The folder with count watermarked videos of the world, each with its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(world.scenes(FILMED_SEED, count)):
        video = folder / f"{number:02}.mp4"
        if not video.exists():  # written again it may differ by a bit, and training would not go on from it
            world.write_video(video, watermarked(world.render(scene, FRAMES)))
        video.with_suffix(".txt").write_text(world.caption(scene))
    return folder


def photograph(folder: Path, count: int) -> Path:
    """The folder with count pictures of bodies at rest; their captions say nothing of a movement."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(unmoved(FILMED_SEED, count)):
        picture = world.render_still(scene, size=STILL_SIZE)
        path = folder / f"{number:02}.png"
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
        path.with_suffix(".txt").write_text(world.caption(scene, silent_on="movement"))
    return folder


def unmoved(seed: int, count: int) -> list[world.Scene]:
    """Scenes of bodies at rest in the middle."""
    every = world.scenes(seed, count)
    return [replace(scene, movement="still", offset=0) for scene in every]


def encoded(studio: Studio, source: Path, **settings: Any) -> Any:
    """Clips of what is in source, as a recipe has them."""
    from diffdirector.trainers import host
    from diffdirector.trainers.dataset import encode_clips, find_videos

    sources = find_videos(source, frames=FRAMES, width=64, height=64, **settings)
    encoder = host.encoder(studio.model, studio.vae, studio.text)
    return encode_clips(sources, encoder, source.parent / "cache", lambda *_: None)


def named(config: TrainConfig, *parts: object) -> Any:
    """config under a name of its own for these settings: what was trained so before is taken as it is."""
    key = zlib.crc32(repr((config, parts)).encode() + stack.MOTION.read_bytes())
    return replace(config, name=f"{config.name}-{key:08x}")


def learn_adapter(studio: Studio, folder: Path, videos: int = VIDEOS, **changes: Any) -> Mapping[str, Any]:
    """Stage 1 on frames of the watermarked videos: the adapter's layers."""
    from diffdirector.lora.patches import load_lora
    from diffdirector.motion.identify import FileKind
    from diffdirector.motion.model_sampling import set_schedule
    from diffdirector.trainers.domain_adapter import train_domain_adapter
    from diffdirector.trainers.lora_training import LoraFiles

    clips = encoded(studio, film(folder / f"videos-{videos}", videos))
    config = named(replace(ADAPTER, **changes), videos)
    model = studio.model.clone()
    set_schedule(model, SCHEDULE)  # the demo's base is trained on it
    file = train_domain_adapter(model, clips, config, LoraFiles.of_one(config.name, folder))
    return load_lora(str(file), file.name, FileKind.SPATIAL_LORA)


def adapted(studio: Studio, layers: Mapping[str, Any], strength: float = 1.0) -> Studio:
    from diffdirector.lora.patches import apply_domain_adapter

    return studio.on(apply_domain_adapter(studio.model, "adapter", layers, strength))


def learn_module(studio: Studio, folder: Path, over: str, videos: int = VIDEOS, **changes: Any) -> Any:
    """Stage 2 on the watermarked videos, from the shipped module on. over: what studio's checkpoint wears, for the file's name."""
    from diffdirector.motion.module import load_motion_model
    from diffdirector.trainers.motion_module import train_motion_module

    clips = encoded(studio, film(folder / f"videos-{videos}", videos))
    config = named(replace(MODULE, **changes), over, videos)
    return load_motion_model(str(train_motion_module(studio.model, clips, config, folder, start_from=studio.motion)))


def learn_zoom(studio: Studio, folder: Path, stills: int = STILLS, **changes: Any) -> Any:
    """Stage 3 on stills that the camera moves in on: the shipped module with the MotionLoRA."""
    from diffdirector.lora.patches import MotionLora, load_lora, with_motion_loras
    from diffdirector.motion.identify import FileKind
    from diffdirector.trainers.lora_training import LoraFiles
    from diffdirector.trainers.motion_lora import train_motion_lora

    clips = encoded(studio, photograph(folder / f"stills-{stills}", stills), **ZOOM)
    config = named(replace(ZOOM_LORA, **changes), stills, ZOOM)
    file = train_motion_lora(studio.model, studio.motion, clips, config, LoraFiles.of_one(config.name, folder))
    layers = load_lora(str(file), file.name, FileKind.MOTION_LORA)
    return with_motion_loras(studio.motion, [MotionLora(file.name, layers, 1.0)])


def adapter_table(studio: Studio, folder: Path, count: int) -> tuple[list[str], list[Tensor]]:
    """A line for each way to use the adapter, and a row of clips for each."""
    layers = learn_adapter(studio, folder)
    worn = adapted(studio, layers)
    over, plain = learn_module(worn, folder, "adapter"), learn_module(studio, folder, "")
    ways = {
        "shipped motion module, adapter at strength 0, which is none": (adapted(studio, layers, 0.0), None),
        "shipped motion module, adapter at strength 1": (worn, None),
        "motion module trained on these videos over the adapter, used without it": (studio, over),
        "motion module trained on these videos without an adapter": (studio, plain),
    }
    asked = world.scenes(ASKED_SEED, count)
    filmed = [watermarked(world.render(scene, FRAMES)) for scene in world.scenes(FILMED_SEED, count)]
    lines = [
        "| clips of | clips | the mark's opacity | clips with the mark | movement as prompted | colour | shape |",
        "|---" * 7 + "|",
        f"| the training videos | {count} | {_mean(filmed):.2f} | {_share(filmed):.0%} | | | |",
    ]
    print("\n".join(lines), flush=True)
    rows: list[Tensor] = []
    for name, (stage, motion) in ways.items():
        with torch.inference_mode():
            clips = [stage.clip(world.caption(scene), seed, ROW, motion=motion) for seed, scene in enumerate(asked)]
        found = shares([judge(scene, frames) for scene, frames in zip(asked, clips, strict=True)])
        lines.append(
            f"| {name} | {count} | {_mean(clips):.2f} | {_share(clips):.0%} | {found.movement:.0%} | {found.colour:.0%} | {found.shape:.0%} |"
        )
        print(lines[-1], flush=True)
        rows += clips
    return lines, rows


def zoom_table(studio: Studio, folder: Path, count: int) -> tuple[list[str], list[Tensor]]:
    """The same with and without the MotionLoRA."""
    learnt = learn_zoom(studio, folder)
    asked = unmoved(ASKED_SEED, count)
    lines = [
        f"| clips of | clips | times as large at the end (median) | least | clips that get {ZOOMS} times as large | colour as prompted | shape |",
        "|---" * 7 + "|",
    ]
    print("\n".join(lines), flush=True)
    rows: list[Tensor] = []
    for name, motion in (("shipped motion module", studio.motion), ("the same with the MotionLoRA", learnt)):
        with torch.inference_mode():
            clips = [
                studio.clip(world.caption(scene, silent_on="movement"), seed, ROW, motion=motion)
                for seed, scene in enumerate(asked)
            ]
        grown = np.array([growth(frames) for frames in clips])
        zooming = (grown >= ZOOMS).mean()
        found = shares([judge(scene, frames) for scene, frames in zip(asked, clips, strict=True)])
        lines.append(
            f"| {name} | {count} | {np.nanmedian(grown):.2f} | {np.nanmin(grown):.2f} | {zooming:.0%} | {found.colour:.0%} | {found.shape:.0%} |"
        )
        print(lines[-1], flush=True)
        rows += clips
    return lines, rows


def _mean(clips: Sequence[Tensor]) -> float:
    return sum(map(opacity, clips)) / len(clips)


def _share(clips: Sequence[Tensor]) -> float:
    return sum(opacity(frames) >= MARKED for frames in clips) / len(clips)


TABLES = {"adapter": adapter_table, "zoom": zoom_table, "several": several_table}
COLUMNS = {"several": SEVERAL.clips}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "stages", nargs="*", default=[*TABLES], help=f"of {', '.join(TABLES)}; all of them if none is named"
    )
    parser.add_argument("--clips", type=int, default=CLIPS, help="of each line; the page is left as it is")
    arguments, for_comfyui = parser.parse_known_args()
    base = cache_dir() / "demo"
    boot([*device_arguments(), *for_comfyui], base)
    stack.link_models(base)
    studio, folder = Studio(STEPS), base / "stages"
    whole = arguments.clips == CLIPS
    sheets = PAGE.parent if whole else base / "output"
    sheets.mkdir(parents=True, exist_ok=True)
    for stage in arguments.stages:
        started = time.monotonic()
        lines, clips = TABLES[stage](studio, folder, arguments.clips)
        write_sheet(sheets / f"stages-{stage}.webp", clips, columns=COLUMNS.get(stage, arguments.clips))
        if whole:
            write_page("\n".join(lines), PAGE, (f"<!-- {stage} -->", f"<!-- end of {stage} -->"))
        print(f"{stage}: {(time.monotonic() - started) / 60:.0f} minutes")
    print(f"All clips: {sheets}")
