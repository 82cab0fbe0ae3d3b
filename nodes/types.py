"""The custom sockets of DiffDirector's nodes."""

from __future__ import annotations

from typing import Any, TypeVar

from comfy_api.latest import io

from ..lora.patches import MotionLora
from ..motion.curves import Curve
from ..motion.module import MotionModelHandle
from ..motion.sparsectrl import SparseControl
from ..motion.strength import MotionStrength
from ..trainers.sources import Clip, ClipSource

MotionModelSocket = io.Custom("MOTION_MODEL")
MotionLoraSocket = io.Custom("MOTION_LORA")
MotionDatasetSocket = io.Custom("MOTION_DATASET")
TrainingSettingsSocket = io.Custom("MOTION_TRAINING_SETTINGS")
CurveSocket = io.Custom("MOTION_CURVE")
MotionStrengthSocket = io.Custom("MOTION_STRENGTH")
FloatsSocket = io.Custom("FLOATS")  # the host's Create Hook Keyframes From Floats and other packs: a list of numbers


Own = TypeVar("Own")


def own(name: str, value: Any, kind: type[Own], source: str) -> Own | None:
    """value as ours, or None; other packs use the same socket names for objects of their own. source: our node that gives it."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(
            f"{name}: expected the output of DiffDirector's {source}, found a {type(value).__name__} of another pack."
        )
    return value


def motion_model(value: object) -> MotionModelHandle:
    """value as ours; other packs use the same socket names for objects of their own."""
    if not isinstance(value, MotionModelHandle):
        raise ValueError(
            f"motion_model: expected the output of DiffDirector's Load Motion Model, found a {type(value).__name__} of another pack."
        )
    return value


def motion_loras(value: object) -> tuple[MotionLora, ...]:
    """value as our chain of MotionLoRAs; None is an empty one."""
    if value is None:
        return ()
    if not isinstance(value, tuple) or not all(isinstance(item, MotionLora) for item in value):
        raise ValueError(
            f"motion_lora: expected the output of DiffDirector's Motion LoRA, found a {type(value).__name__} of another pack."
        )
    return value


def motion_strengths(value: object) -> tuple[MotionStrength, ...]:
    """value as our chain of strengths; None is an empty one."""
    if value is None:
        return ()
    if not isinstance(value, tuple) or not all(isinstance(item, MotionStrength) for item in value):
        raise ValueError(
            f"motion_strength: expected the output of DiffDirector's Motion Strength, found a {type(value).__name__} of another pack."
        )
    return value


def curve(value: object) -> Curve | None:
    """value as our curve; None is none."""
    if value is not None and not isinstance(value, Curve):
        raise ValueError(f"curve: expected the output of DiffDirector's Curve, found a {type(value).__name__}.")
    return value


def motion_dataset(value: object) -> tuple[Clip, ...]:
    """value as our clips to train on; None is an empty set."""
    if value is None:
        return ()
    if not isinstance(value, tuple) or not all(isinstance(item, ClipSource) for item in value):
        raise ValueError(
            f"dataset: expected the output of DiffDirector's Video Dataset, found a {type(value).__name__}."
        )
    return value


def training_settings(value: object) -> dict[str, Any]:
    """value as settings by name; None is none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(
            f"settings: expected the output of DiffDirector's MotionDirector Settings, found a {type(value).__name__}."
        )
    return value


def sparse_ctrl(value: object) -> SparseControl:
    """value as a SparseCtrl of ours; the socket is the host's, of every ControlNet."""
    if not isinstance(value, SparseControl):
        raise ValueError(
            f"start_from: expected a SparseCtrl from Load SparseCtrl, found a {type(value).__name__}. Disconnect it to start from the checkpoint."
        )
    return value
