"""Files that are whole or not there: written to a temporary name, synced, renamed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

ABANDONED = 3600.0  # seconds after the last write to a temporary file that nobody can still be writing


class SaveError(OSError):
    """A file cannot be written; the message says where and why. What was there before is untouched."""


def write_atomically(path: Path, write: Callable[[str], Any]) -> None:
    """write(temporary name), then fsync and rename: a reader sees the old file or the new one, never half of it.

    Raises SaveError where the folder takes no file, or not all of it.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        name = path.with_name(f".{path.name}.{token_hex(4)}")
        open(name, "xb").close()  # not by mkstemp, whose files only their owner can read
        temporary = str(name)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save says RuntimeError of a full disk
        raise SaveError(
            f"{path} cannot be written: {error}. Make room on that disk or the folder writable, and run again; an earlier file of this name is untouched."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Temporary files of path that a killed process has left behind."""
    for found in path.parent.iterdir():
        if found.name.startswith(f".{path.name}."):
            try:
                if time.time() - found.stat().st_mtime > ABANDONED:
                    found.unlink()
            except OSError:  # another run has just removed it, or holds it
                continue


def check_writable(folder: Path) -> None:
    """Raise SaveError now rather than after hours of work."""
    write_atomically(folder / ".diffdirector", lambda temporary: None)
    (folder / ".diffdirector").unlink(missing_ok=True)  # another run does the same


def best_of(path: Path) -> Path:
    """Beside the result at path: what the lowest validation loss was measured of."""
    return path.with_suffix(f".best{path.suffix}")


def save_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file of contiguous copies on the CPU."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, dict(metadata)))


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """A resumable training state: nested dicts, lists, numbers, strings and tensors."""
    write_atomically(path, lambda temporary: torch.save(dict(state), temporary))


def load_state(path: Path) -> dict[str, Any]:
    """What save_state wrote, read without running code."""
    return torch.load(path, map_location="cpu", weights_only=True)
