"""Other trainers' settings files as recipes of ours: AnimateDiff's own, Evo-Tuner's, and AnimateDiff-MotionDirector's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import ConfigError
from .original_animatediff import recipe_of_animatediff
from .original_evo_tuner import recipe_of_evo_tuner
from .original_motion_director import recipe_of_motion_director
from .original_yaml import read_yaml


def is_original_config(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml")


def read_original_config(path: Path) -> dict[str, Any]:
    """The content of a recipe file, as TOML would give it. Raises ConfigError for what has no counterpart here."""
    content = read_yaml(path)
    data = content.get("train_data")
    data = data if isinstance(data, Mapping) else {}
    if "video" in content:
        return recipe_of_motion_director(content, path)
    if "image_finetune" in content or "csv_path" in data:
        return recipe_of_animatediff(content, path.stem)
    if data:
        return recipe_of_evo_tuner(content, path.stem)
    raise ConfigError(
        f"{path.name}: expected the settings of another trainer: video (my_video.yaml of AnimateDiff-MotionDirector) or train_data "
        f"(training.yaml of AnimateDiff, a config of Evo-Tuner); found {', '.join(map(str, content))}"
    )
