"""`make proof`: does MotionDirector learn the motion of one clip, and only that? On the demo's models, with paths that their motion
module never saw. Every clip is sampled through the host's own nodes and read by the tracker."""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdirector.tests.host.inprocess import boot, device_arguments
from diffdirector.tests.host.provision import cache_dir
from diffdirector.trainers.config import MotionDirectorConfig

from . import stack, tracker, world
from .evaluate import Studio, write_sheet

PAGE = Path(__file__).with_name("MOTIONDIRECTOR.md")
MARK = ("<!-- table -->", "<!-- end of table -->")
FRAMES, CLIPS, SCENES_SEED = 16, 20, 5
FILMED = world.Scene("circle", "red", "white", "still")
PATHS = {"circle": world.circle_path(), "zig-zag": world.zigzag_path()}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # feed-forward layers learn this one clip's colours by heart
CONFIG = MotionDirectorConfig(
    "proof", steps=300, batch_size=2, rank=16, learning_rate=3e-3, spatial_learning_rate=3e-4, lr_schedule="cosine", dropout=0.1,
    temporal_targets=ATTENTION, truncated_snr_cap=200.0, timestep_bias=3.0, caption_dropout=0.1, precision="bfloat16",
    gradient_checkpointing=False, save_every=100,
)  # fmt: skip
COLOUR_UNSAID = "a circle moving on a white background"
LOOKS = {"spatial_learning_rate": 3e-3}  # what is filmed is to come back, and not only to stay out of the motion
LOOKS_CLIPS = 10
AS_CLIP = 0.8  # correlation from which on a path is the clip's


class Loras(NamedTuple):
    """Files of one training."""

    temporal: Path
    spatial: Path


class Found(NamedTuple):
    """Shares of clips whose path is the filmed one, and that have the colour and the shape of their prompt; and the
    mean correlation of their paths with the filmed one."""

    path: float
    correlation: float
    colour: float
    shape: float


@dataclass(frozen=True)
class Trial:
    """One line of the table. changes: to CONFIG; loras: which of them are used."""

    name: str
    path: str = "circle"
    temporal: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)
    clips: int = CLIPS
    sheet: str = ""


TRIALS = (
    Trial("circle", sheet="learnt-circle.webp"),
    Trial("zig-zag", path="zig-zag", sheet="learnt-zigzag.webp"),
    Trial("circle, without the LoRA", temporal=False, clips=10),
    Trial("circle, trained without the debias term", changes={"debias": 0.0}, clips=10),
    Trial("circle, trained without the spatial path", changes={"spatial_probability": 0.0}, clips=10),
)


def film(folder: Path, path: str, said: str) -> Path:
    """The clip, as a user has it: an mp4 with its caption beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    video = folder / f"{path}.mp4"
    world.write_video(video, world.render(FILMED, FRAMES, path=PATHS[path]))
    video.with_suffix(".txt").write_text(said)
    return video


def caption(scene: world.Scene) -> str:
    """It moves, but how is not said: there is no word for it."""
    return world.caption(scene, silent_on="movement").replace(" on a", " moving on a")


def subjects(count: int) -> list[world.Scene]:
    """Scenes that share neither colour nor shape nor background with the filmed one."""
    return [
        scene for scene in world.scenes(SCENES_SEED, 20 * count)
        if not {scene.colour, scene.shape, scene.background} & {FILMED.colour, FILMED.shape, FILMED.background}
    ][:count]  # fmt: skip


def learn(studio: Studio, folder: Path, path: str, said: str = "", **changes: Any) -> Loras:
    """Train on the filmed clip in folder, with its whole caption or what is said; what was trained so before is taken as it is."""
    from diffdirector.trainers import host
    from diffdirector.trainers.dataset import encode_clips, find_videos
    from diffdirector.trainers.motion_director import MotionDirectorFiles, train_motion_director

    video = film(folder, path, said or caption(FILMED))
    config = replace(CONFIG, **changes)
    name = f"{path}-{zlib.crc32(repr((said, config)).encode() + stack.MOTION.read_bytes()):08x}"
    sources = find_videos(video, frames=FRAMES, width=64, height=64)
    clips = encode_clips(
        sources, host.encoder(studio.model, studio.vae, studio.text), folder / "cache", lambda *_: None
    )
    files = MotionDirectorFiles.in_folders(name, folder, folder)
    train_motion_director(studio.model, studio.motion, clips, replace(config, name=name), files)
    return Loras(files.temporal, files.spatial)


def use(studio: Studio, loras: Loras, spatial: float = 0.0) -> tuple[Studio, Any]:
    """(studio with the spatial LoRA on its checkpoint at that strength, motion model with the temporal one)."""
    from diffdirector.lora.patches import MotionLora, apply_domain_adapter, load_lora, with_motion_loras
    from diffdirector.motion.identify import FileKind

    layers = load_lora(str(loras.temporal), loras.temporal.name, FileKind.MOTION_LORA)
    motion = with_motion_loras(studio.motion, [MotionLora(loras.temporal.name, layers, 1.0)])
    looks = load_lora(str(loras.spatial), loras.spatial.name, FileKind.SPATIAL_LORA) if spatial else {}
    return studio.on(apply_domain_adapter(studio.model, "looks", looks, spatial)), motion


def correlation(frames: Tensor, path: world.Route) -> float:
    """Of the tracked centroids of frames [f, 3, h, w] with a path at the same moments; each about its own middle."""
    pose = path(torch.linspace(0, 1, len(frames)))
    wanted = torch.stack([pose.x, pose.y], 1)
    found = torch.tensor([(picture.x, picture.y) for picture in tracker.read_clip(frames).pictures]) / 64
    wanted, found = wanted - wanted.mean(0), (found - found.nanmean(0)).nan_to_num()
    return float((wanted * found).sum() / (wanted.norm() * found.norm()).clamp(min=1e-6))


def judged(scenes: Sequence[world.Scene], clips: Sequence[Tensor], path: world.Route) -> Found:
    read = [tracker.read_clip(frames) for frames in clips]
    correlations = torch.tensor([correlation(frames, path) for frames in clips])
    return Found(
        float((correlations >= AS_CLIP).float().mean()),
        float(correlations.mean()),
        sum(clip.colour == scene.colour for clip, scene in zip(read, scenes, strict=True)) / len(scenes),
        sum(clip.shape == scene.shape for clip, scene in zip(read, scenes, strict=True)) / len(scenes),
    )


def share_of_the_filmed_subject(studio: Studio, motion: Any = None) -> float:
    """Share of clips that show the filmed colour and shape where the prompt is the training's, which does not say the colour."""
    clips = [tracker.read_clip(studio.clip(COLOUR_UNSAID, seed, motion=motion)) for seed in range(LOOKS_CLIPS)]
    return sum((clip.colour, clip.shape) == (FILMED.colour, FILMED.shape) for clip in clips) / len(clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, help="the first so many only; the page is left as it is")
    parser.add_argument("--clips", type=int, default=CLIPS, help="of each trial, not more")
    arguments, for_comfyui = parser.parse_known_args()
    base = cache_dir() / "demo"
    boot([*device_arguments(), *for_comfyui], base)
    stack.link_models(base)
    studio, folder = Studio(), base / "proof"
    whole = arguments.trials is None and arguments.clips == CLIPS
    sheets = PAGE.parent if whole else base / "output"
    lines = [
        f"| | clips | on the clip's path (correlation >= {AS_CLIP}) | mean correlation | colour as prompted | shape as prompted | minutes |",
        "|---" * 7 + "|",
        "| asked for | 20 | >= 80% | | >= 90% | | |",
    ]
    print("\n".join(lines), flush=True)
    for trial in TRIALS[: arguments.trials]:
        started = time.monotonic()
        found, clips = run(studio, folder, trial, min(trial.clips, arguments.clips))
        minutes = (time.monotonic() - started) / 60
        lines.append(
            f"| {trial.name} | {len(clips)} | {found.path:.0%} | {found.correlation:.2f} | {found.colour:.0%} | {found.shape:.0%} | {minutes:.0f} |"
        )
        print(lines[-1], flush=True)
        if trial.sheet:
            write_sheet(sheets / trial.sheet, [world.render(FILMED, FRAMES, path=PATHS[trial.path]), *clips], columns=7)
    if whole:
        loras = learn(studio, folder / "looks", "circle", COLOUR_UNSAID, **LOOKS)
        with torch.inference_mode():
            both, alone = (share_of_the_filmed_subject(*use(studio, loras, strength)) for strength in (1.0, 0.0))
            neither = share_of_the_filmed_subject(studio)
        subject = (
            f'Trained with the caption "{COLOUR_UNSAID}", and prompted with it, both LoRAs bring the filmed red circle back in '
            f"{both:.0%} of {LOOKS_CLIPS} clips; the temporal LoRA alone shows one in {alone:.0%}; neither in {neither:.0%}."
        )
        text = PAGE.read_text()
        before, after = text.split(MARK[0])[0], text.split(MARK[1])[1]
        PAGE.write_text("\n".join([before + MARK[0], *lines, "", subject, MARK[1]]) + after)
        print(subject)
    print(f"All clips: {sheets}")


def run(studio: Studio, folder: Path, trial: Trial, count: int) -> tuple[Found, list[Tensor]]:
    """Train what the trial says, and sample count clips of other subjects with it."""
    motion = studio.motion
    if trial.temporal:
        motion = use(studio, learn(studio, folder, trial.path, **trial.changes))[1]
    scenes = subjects(count)
    with torch.inference_mode():
        clips = [studio.clip(caption(scene), seed, motion=motion) for seed, scene in enumerate(scenes)]
    return judged(scenes, clips, PATHS[trial.path]), clips
