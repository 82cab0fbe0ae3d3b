"""Recipes from TOML files, for training without the graph."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..motion.module import load_motion_model
from . import host
from .config import ConfigError, MotionDirectorConfig, MotionModuleConfig, make_config
from .contact_sheet import contact_sheet
from .dataset import DatasetError, VideoSource, encode_clips, find_videos, read_text
from .loop import StepReport, TrainingDiverged
from .motion_director import MotionDirectorFiles, train_motion_director
from .motion_module import train_motion_module

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


KINDS = {"motion_module": MotionModuleConfig, "motion_director": MotionDirectorConfig}
DATASET = {
    "source", "caption", "caption_file", "frames", "frame_step", "start", "chunks", "width", "height", "aspect_buckets", "hflip", "repeats",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A recipe file, read and checked. checkpoint and motion_model are model files, output is a folder."""

    config: MotionModuleConfig | MotionDirectorConfig
    videos: list[VideoSource]
    checkpoint: Path
    motion_model: Path | None
    output: Path
    resume: bool


def read_recipe(path: Path) -> Recipe:
    """Raises ConfigError for what cannot be and DatasetError where there is no video, before any model is loaded."""
    if not path.is_file():
        raise ConfigError(f"--config: expected a recipe file, found no {path}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name}: expected TOML: {error}") from None
    _known(content, "", {"recipe", "output", "model", "dataset", "training"})
    kind = KINDS.get(content.get("recipe", ""))
    if kind is None:
        raise ConfigError(f"recipe: expected one of {', '.join(KINDS)}; found {content.get('recipe')}")
    model, training = (dict(content.get(table, {})) for table in ("model", "training"))
    _known(model, "model.", {"checkpoint", "motion_model"})
    tables = content.get("dataset", {})
    tables = tables if isinstance(tables, list) else [tables]
    motion_model = model.get("motion_model")
    if kind is MotionDirectorConfig and motion_model is None:
        raise ConfigError("model.motion_model: expected the motion model that the motion is taught to, found none")
    return Recipe(
        resume=bool(training.pop("resume", True)),
        config=make_config(kind, training),
        videos=[video for table in tables for video in _videos(table)],
        checkpoint=_file(model.get("checkpoint"), "model.checkpoint"),
        motion_model=None if motion_model is None else _file(motion_model, "model.motion_model"),
        output=Path(content.get("output", ".")),
    )


def run(config: Path) -> int | str:
    """Train as the recipe file says; a process's exit status: 0, or what was wrong."""
    try:
        recipe = read_recipe(config)
    except (ConfigError, DatasetError) as error:
        return str(error)
    try:
        print(f"{train(recipe)} is done.")
    except (ConfigError, DatasetError, TrainingDiverged) as error:
        return str(error)
    except KeyboardInterrupt:
        return f"Stopped. What was learnt is in {recipe.output}; the same command goes on from there."
    return 0


def train(recipe: Recipe) -> Path:
    """Returns the file of the result; <name>.clips.png beside it shows the clips. Interrupting it keeps what was learnt."""
    sheet = (contact_sheet(recipe.videos) * 255).round().byte()
    recipe.output.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.numpy()).save(recipe.output / f"{recipe.config.name}.clips.png")
    model, clip, vae = host.load_checkpoint(recipe.checkpoint)
    motion_model = None if recipe.motion_model is None else load_motion_model(str(recipe.motion_model))
    with tqdm(total=len(recipe.videos), desc="encoding", unit="video") as bar:
        clips = encode_clips(
            recipe.videos, host.encoder(model, vae, clip), recipe.output / "cache", lambda done, total: bar.update()
        )
    with tqdm(total=recipe.config.steps, desc=recipe.config.name, unit="step") as bar:

        def on_step(report: StepReport) -> None:
            losses = {name: f"{loss:.4f}" for name, loss in report.losses.items()}
            bar.set_postfix(losses | {"lr": f"{report.learning_rate:.1e}"}, refresh=False)
            bar.update(report.step - bar.n)

        config, running = recipe.config, {"resume": recipe.resume, "on_step": on_step}
        if isinstance(config, MotionModuleConfig):
            return train_motion_module(model, clips, config, recipe.output, start_from=motion_model, **running)
        assert motion_model is not None
        files = MotionDirectorFiles.in_folders(config.name, recipe.output, recipe.output)
        return train_motion_director(model, motion_model, clips, config, files, **running).temporal


def _videos(table: Mapping[str, Any]) -> list[VideoSource]:
    _known(table, "dataset.", DATASET)
    if "source" not in table:
        raise ConfigError("dataset.source: expected a video or a folder of videos, found none")
    settings = {key: value for key, value in table.items() if key not in ("source", "caption_file")}
    if table.get("caption_file"):
        settings["captions"] = [read_text(Path(table["caption_file"]))]
    return find_videos(Path(table["source"]), **settings)


def _known(table: Mapping[str, Any], prefix: str, names: set[str]) -> None:
    for key in table:
        if key not in names:
            raise ConfigError(f"{prefix}{key}: expected one of {', '.join(sorted(names))}")


def _file(path: str | None, key: str) -> Path:
    if path is None or not Path(path).is_file():
        raise ConfigError(f"{key}: expected a file, found {'none' if path is None else path}")
    return Path(path)
