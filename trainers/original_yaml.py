"""What the readers of other trainers' settings share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .config import ConfigError

Settings = Mapping[str, Any]

# of both trainers of motion modules, and ours
TRAINING = {
    "learning_rate": "learning_rate",
    "train_batch_size": "batch_size",
    "max_train_steps": "steps",
    "adam_weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "gradient_accumulation_steps": "accumulate",
}
SAME = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}  # here always


def read_yaml(path: Path) -> Settings:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: expected YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: expected settings by name, found {type(content).__name__}")
    return content


def number(key: str, value: Any) -> Any:
    """YAML 1.1 takes 5e-4 for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        raise ConfigError(f"{key}: expected a number, found {value!r}") from None


def check_known(settings: Settings, known: Sequence[str], inside: str = "") -> None:
    for key in settings:
        if key not in known:
            raise ConfigError(f"{inside}{key}: it has no counterpart here. Leave it out; known are {', '.join(known)}")


def check_same(settings: Settings, expected: Settings, inside: str = "") -> None:
    """Raise ConfigError for a setting that is chosen otherwise than what is done here."""
    for key, value in expected.items():
        found = settings.get(key, value)
        if (number(key, found) if type(value) is float else found) != value:
            raise ConfigError(f"{inside}{key}: expected {value}, which is what is done here; found {found}")


def checkpoint_file(key: str, value: object) -> str:
    if not str(value).lower().endswith((".safetensors", ".ckpt")):
        raise ConfigError(
            f"expected {key} to name a checkpoint file (.safetensors, .ckpt), found {value!r}: folders in diffusers' layout are not read. "
            "Give the same model as one file."
        )
    return str(value)


def trained(settings: Settings, defaults: Settings) -> dict[str, Any]:
    """Of TRAINING, by our names."""
    return {ours: number(theirs, settings.get(theirs, defaults[theirs])) for theirs, ours in TRAINING.items()}


def schedule(settings: Settings) -> dict[str, Any]:
    """Of diffusers' learning rate schedules those that are ours too."""
    name, warmup = settings.get("lr_scheduler", "constant"), settings.get("lr_warmup_steps", 0)
    if name == "constant":
        return {"lr_schedule": "constant", "warmup_steps": 0}
    if name not in ("constant_with_warmup", "cosine"):
        raise ConfigError(f"lr_scheduler: expected constant, constant_with_warmup or cosine; found {name!r}")
    return {"lr_schedule": name.split("_")[0], "warmup_steps": warmup}


def sampled(settings: Settings) -> dict[str, Any]:
    """The first of its prompts for validation, as our table of previews; their seed, steps and guidance are ours."""
    prompts = (settings.get("validation_data") or {}).get("prompts")
    if not prompts:
        return {}
    first = prompts if isinstance(prompts, str) else prompts[0]
    return {"sample": {"prompt": first, "every": settings.get("validation_steps", 100)}}
