"""Recipe files, read and checked: TOML of ours, or the YAML of another trainer (original_config.py). Pure: no host."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import (
    ConfigError,
    DomainAdapterConfig,
    MotionDirectorConfig,
    MotionLoraConfig,
    MotionModuleConfig,
    SparseCtrlConfig,
    make_config,
)  # fmt: skip
from .dataset import VideoSource, check_captions, find_videos, read_text
from .original_config import is_original_config, read_original_config
from .presets import PRESETS
from .shards import Shard, find_shards, is_shards

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KINDS = {
    "motion_module": MotionModuleConfig,
    "motion_director": MotionDirectorConfig,
    "sparse_ctrl": SparseCtrlConfig,
    "domain_adapter": DomainAdapterConfig,
    "motion_lora": MotionLoraConfig,
}
DATASET = {
    "source", "caption", "caption_file", "frames", "frame_step", "start", "chunks", "width", "height", "aspect_buckets", "hflip", "repeats",
    "camera", "camera_amount",
    "videos",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """checkpoint, motion_model, domain_adapter and sparse_ctrl (to start from) are model files, output is a folder;
    sample_prompt "" is no previews, sample_every 0 only one at the end."""

    config: MotionModuleConfig | MotionDirectorConfig | SparseCtrlConfig | DomainAdapterConfig | MotionLoraConfig
    videos: list[VideoSource]
    checkpoint: Path
    motion_model: Path | None
    domain_adapter: Path | None
    output: Path
    resume: bool
    sample_prompt: str
    sample_every: int
    sparse_ctrl: Path | None = None
    shards: Sequence[Shard] = ()  # in place of videos

    @property
    def frames(self) -> int:
        """Of the longest clip."""
        return max(clip.frames for clip in (*self.videos, *(shard.clip for shard in self.shards)))


def read_recipe(path: Path) -> Recipe:
    """Raises ConfigError for what cannot be and DatasetError where there is no video, before any model is loaded."""
    if not path.is_file():
        raise ConfigError(f"--config: expected a recipe file, found no {path}")
    content = read_original_config(path) if is_original_config(path) else _toml(path)
    _known(content, "", {"recipe", "preset", "output", "model", "dataset", "training", "sample"})
    kind = KINDS.get(content.get("recipe", ""))
    if kind is None:
        raise ConfigError(f"recipe: expected one of {', '.join(KINDS)}; found {content.get('recipe')}")
    model, training, sample = (dict(content.get(table, {})) for table in ("model", "training", "sample"))
    start = {"sparse_ctrl"} if kind is SparseCtrlConfig else set()
    _known(model, "model.", {"checkpoint", "motion_model", "domain_adapter"} | start)
    _known(sample, "sample.", {"prompt", "every"})
    if kind in (MotionDirectorConfig, MotionLoraConfig) and not model.get("motion_model"):
        raise ConfigError("model.motion_model: expected the motion model that the motion is taught to, found none")
    if kind is SparseCtrlConfig and not model.get("motion_model"):
        raise ConfigError("model.motion_model: expected the motion model that the SparseCtrl works with, found none")
    if kind is DomainAdapterConfig and model.get("motion_model"):
        raise ConfigError(
            "model.motion_model: expected none, a domain adapter is trained without; found one. Leave it out."
        )
    if kind is not MotionDirectorConfig and "preset" in content:
        raise ConfigError(f"preset: expected in a motion_director recipe only, found in one of a {content['recipe']}")
    tables = content.get("dataset", {})
    tables = tables if isinstance(tables, list) else [tables]
    if preset := content.get("preset"):
        if preset not in PRESETS:
            raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}; found {preset!r}")
        # what the recipe says itself counts more
        training = {**PRESETS[preset].training, **training}
        tables = [{**PRESETS[preset].dataset, **table} for table in tables]
    resume, config = bool(training.pop("resume", True)), make_config(kind, training)
    sharded = [is_shards(str(table.get("source", ""))) for table in tables]
    if any(sharded) and not all(sharded):
        raise ConfigError(
            "dataset.source: expected shards (.tar) in every dataset or in none, found both. Train on one of the two."
        )
    shards = [shard for table in tables for shard in _shards(table)] if any(sharded) else []
    videos = [] if shards else [video for table in tables for video in _videos(table)]
    if kind not in (MotionModuleConfig, SparseCtrlConfig) and not shards:
        check_captions(videos)
    return Recipe(
        resume=resume,
        config=config,
        videos=videos,
        shards=shards,
        checkpoint=_file(model.get("checkpoint"), "model.checkpoint"),
        motion_model=_file(model["motion_model"], "model.motion_model") if model.get("motion_model") else None,
        domain_adapter=_file(model["domain_adapter"], "model.domain_adapter") if model.get("domain_adapter") else None,
        output=Path(content.get("output", ".")),
        sample_prompt=sample.get("prompt", ""),
        sample_every=sample.get("every", 0),
        sparse_ctrl=_file(model["sparse_ctrl"], "model.sparse_ctrl") if model.get("sparse_ctrl") else None,
    )


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name}: expected TOML: {error}") from None


def _videos(table: Mapping[str, Any]) -> list[VideoSource]:
    _known(table, "dataset.", DATASET)
    if "source" not in table:
        raise ConfigError("dataset.source: expected a video or a folder of videos, found none")
    if str(table["source"]).endswith(".csv") and not table.get("videos"):
        raise ConfigError(f"dataset.videos: expected the folder of the videos that {table['source']} lists, found none")
    settings = {key: value for key, value in table.items() if key not in ("source", "caption_file")}
    if table.get("caption_file"):
        settings["captions"] = [read_text(Path(table["caption_file"]))]
    return find_videos(Path(table["source"]), **settings)


def _shards(table: Mapping[str, Any]) -> list[Shard]:
    _known(table, "dataset.", DATASET)
    if others := [key for key in ("caption_file", "videos") if table.get(key)] + ["repeats"] * (
        table.get("repeats", 1) != 1
    ):
        raise ConfigError(
            f"dataset.{others[0]}: expected none beside shards, which have their captions with them. Leave it out."
        )
    return find_shards(
        **{key: value for key, value in table.items() if key not in ("caption_file", "videos", "repeats")}
    )


def _known(table: Mapping[str, Any], prefix: str, names: set[str]) -> None:
    for key in table:
        if key not in names:
            raise ConfigError(f"{prefix}{key}: expected one of {', '.join(sorted(names))}")


def _file(path: str | None, key: str) -> Path:
    if path is None or not Path(path).is_file():
        raise ConfigError(f"{key}: expected a file, found {'none' if path is None else path}")
    return Path(path)
