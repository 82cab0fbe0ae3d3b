"""Trainings of one, two and four processes for test_processes.py: as_package.py tests.trainers.ranks <folder>

The launcher is torchrun's own, told to fork from here, where everything has been imported once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffdirector.tests.host.inprocess import boot

boot(["--cpu"])

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diffdirector.motion.module import motion_model_from_state
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import randn
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state
from diffdirector.tests.trainers.test_shards import encode, write_shards
from diffdirector.trainers import cli, host, processes
from diffdirector.trainers.config import DomainAdapterConfig, MotionDirectorConfig, MotionModuleConfig, SparseCtrlConfig
from diffdirector.trainers.dataset import LatentClips
from diffdirector.trainers.domain_adapter import train_domain_adapter
from diffdirector.trainers.loop import StepReport
from diffdirector.trainers.lora_training import LoraFiles
from diffdirector.trainers.motion_director import MotionDirectorFiles, train_motion_director
from diffdirector.trainers.motion_module import MotionModuleTraining, train_motion_module
from diffdirector.trainers.sparse_ctrl import train_sparse_ctrl

BATCH: dict[str, Any] = {
    "steps": 2, "batch_size": 4, "learning_rate": 1e-4, "precision": "float32"
}  # fmt: skip


torch.set_num_threads(1)
MODEL = load_unet(unet_state(unet_config("sd15", **TINY)))
MOTION = motion_model_from_state(motion_state(tiny_motion_config()), "motion")


def main() -> None:
    folder = Path(sys.argv[1])
    for count in (1, 2, 4):
        launch(count, only_the_module if count == 4 else every_recipe, folder / str(count))
    launch(2, sharded, folder / "sharded")
    launch(2, killed, folder / "killed")
    launch(2, killed, folder / "restarted", restarts=1)
    launch(2, moved, folder / "moved")
    launch(2, mistaken, folder / "mistaken")
    launch(2, encoding, folder / "encoding")


def launch(count: int, task: Callable[[Path], None], folder: Path, restarts: int = 0) -> None:
    """task(folder) in so many processes; outcome.txt in it says how that ended."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, start_method="fork", run_id=folder.name, max_restarts=restarts,
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0"
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    try:
        elastic_launch(config, task)(folder)
        outcome = "done"
    except ChildFailedError as error:
        outcome = repr(sorted((rank, failure.exitcode) for rank, failure in error.failures.items()))
    (folder / "outcome.txt").write_text(outcome)


def clips(channels: int = 4) -> Any:
    """As small as a step can be: what is tested costs as much for larger ones."""
    latents, text = randn(5, 2, channels, 4, 4, seed=5), randn(2, 8, 768, seed=6)
    return LatentClips(latents, text, torch.zeros(5, dtype=torch.long))


def every_recipe(folder: Path) -> None:
    """Whatever others than the first process write is found apart."""
    with processes.joined():
        for recipe in (module, director, adapter, sparse):
            recipe(folder if processes.is_first() else folder / "others")


def module(folder: Path, on_step: Callable = lambda report: None, **changes: Any) -> None:
    train_motion_module(MODEL, clips(), module_config(**changes), folder, start_from=MOTION, on_step=on_step)


def module_config(**changes: Any) -> MotionModuleConfig:
    settings = {"image_fraction": 0.3, "ema_decay": 0.9, "held_out": 1, "validate_every": 4}
    settings |= {"steps": 4, "save_every": 2, "trainable": ("to_q", "to_v", "proj_out")}
    return MotionModuleConfig("module", **BATCH | settings | changes)


def killed(folder: Path) -> None:
    """One process of the first attempt is."""

    def kill(report: StepReport) -> None:
        if report.step == 3 and processes.rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    with processes.joined():
        try:
            module(folder, kill)
        except processes.ProcessLost:
            (folder / "lost.txt").write_text(str(processes.rank()))
            raise


def moved(folder: Path) -> None:
    """As the host does for a preview, which the first process makes: weights leave their place and come back to it."""

    def move(report: StepReport) -> None:
        if report.step == 2 and processes.is_first():
            for parameter in parameters:
                for dtype in (torch.float64, torch.float32):
                    parameter.data = parameter.data.to(dtype)

    with processes.joined(), host.training():
        training = MotionModuleTraining(MODEL, clips(), module_config(), MOTION)
        parameters = list(training.parameters.values())
        training.run(folder if processes.is_first() else folder / "others", True, move)


def only_the_module(folder: Path) -> None:
    with processes.joined():
        module(folder)


def sharded(folder: Path) -> None:
    """At once, and in two parts, the second of which starts from what the first has saved."""
    with processes.joined():
        module(folder, sharded=True)
        module(folder / "parts", sharded=True, steps=2)
        module(folder / "parts", sharded=True)


def encoding(folder: Path) -> None:
    """Three tars; each process writes down how many clips it has encoded, and what all of them are."""
    calls = list[str]()
    with processes.joined():
        if processes.is_first():
            write_shards(folder, 3)
        processes.wait()
        clips = encode(str(folder / "{000..002}.tar"), folder / "cache", calls)
        text = f"{calls.count('latents')} of {len(clips)}: {clips.digest}"
        (folder / f"{processes.rank()}.txt").write_text(text)


def mistaken(folder: Path) -> None:
    """The command line with a recipe that is not there."""
    (folder / f"{os.environ['RANK']}.txt").write_text(str(cli.run(folder / "recipe.toml")))


def director(folder: Path) -> None:
    config, files = (
        MotionDirectorConfig("director", **BATCH, rank=4, accumulate=2, spatial_probability=0.5),
        MotionDirectorFiles.in_folders("director", folder, folder),
    )
    train_motion_director(MODEL, MOTION, clips(), config, files)


def adapter(folder: Path) -> None:
    config, files = (
        DomainAdapterConfig("adapter", **BATCH, rank=4, noise_offset=0.1),
        LoraFiles.of_one("adapter", folder),
    )
    train_domain_adapter(MODEL, clips(), config, files)


def sparse(folder: Path) -> None:
    train_sparse_ctrl(MODEL, MOTION, clips(4 + 64), SparseCtrlConfig("sparse", **BATCH), folder)
