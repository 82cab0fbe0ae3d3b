"""The model folders, shared with the packs that introduced them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import folder_paths

MOTION_MODELS = "animatediff_models"
MOTION_LORAS = "animatediff_motion_lora"
LORAS = "loras"
CONTROLNETS = "controlnet"


def register() -> None:
    """Add our folders, keeping the paths that the user or another pack has given and adding the extensions we read."""
    for name in (MOTION_MODELS, MOTION_LORAS):
        path = os.path.join(folder_paths.models_dir, name)
        with suppress(OSError):  # a read-only models folder; others may be configured
            os.makedirs(path, exist_ok=True)
        folder_paths.add_model_folder_path(name, path)
        paths, extensions = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, set(extensions) | folder_paths.supported_pt_extensions)


def names(folder: str) -> list[str]:
    return folder_paths.get_filename_list(folder)


def path_of(folder: str, name: str) -> str:
    """Full path of a file that the folder lists. Names from outside it are refused: they may come through the API."""
    if name not in names(folder):
        raise ValueError(
            f"{name!r} is not in the folder models/{folder}. Put it there and press R to refresh, or choose one of: {', '.join(names(folder)) or 'none yet'}."
        )
    return folder_paths.get_full_path_or_raise(folder, name)


def first_path(folder: str) -> str:
    """Where new files of a model folder are written."""
    return folder_paths.get_folder_paths(folder)[0]


def next_path(folder: str, prefix: str) -> Path:
    """Where the next file of that name goes in a model folder: prefix_00001_.safetensors and so on, as the host numbers its own.

    prefix may name subfolders, which are made, and the host's variables such as %year%; prefixes that lead out of it are refused.
    """
    root = Path(first_path(folder)).resolve()
    target = (root / prefix).resolve()
    if target == root or not target.is_relative_to(root):
        raise ValueError(
            f"filename_prefix: expected the name of a file below models/{folder}, subfolders allowed; found {prefix!r}. Choose one such as my-motion."
        )
    parent, name, number, *_ = folder_paths.get_save_image_path(str(target.relative_to(root)), str(root))
    return Path(parent) / f"{name}_{number:05}_.safetensors"


def below_input(name: str) -> Path:
    """A file or folder below ComfyUI's input folder; names that lead out of it are refused."""
    root = Path(folder_paths.get_input_directory()).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"Expected a file or folder below {root}, found {name!r}, which leads out of it.")
    return path


def input_videos(extensions: Iterable[str]) -> list[str]:
    """The videos in ComfyUI's input folder and in the folders that lie in it."""
    root = Path(folder_paths.get_input_directory())
    found = (*root.glob("*"), *root.glob("*/*"))
    return sorted(path.relative_to(root).as_posix() for path in found if path.suffix.lower() in extensions)


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes when a file at or below paths, or a text of the same name, is changed, added or removed."""
    files = {file for path in paths for file in (path, path.with_suffix(".txt"), *path.rglob("*")) if file.is_file()}
    return str([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)])
